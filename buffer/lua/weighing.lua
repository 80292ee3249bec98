-- Shared by the operations that look at the masses of all groups: what a draw is made from.

if not is_initialised() then
  return LOST
end
local alpha, beta = number(PARAMS, 'priority_exponent'), number(PARAMS, 'importance_exponent')
local balance = number(PARAMS, 'label_balance')
local kept = 1 - number(PARAMS, 'age_discount')
local uniform = redis.call('HGET', META, 'selector') == 'uniform' and 1
  or number(PARAMS, 'uniform_share')

-- What a cohort has kept of its mass, by the cohort's field in a group less two.
local freshness = {}
local newest = newest_cohort()
for cohort = 0, COHORTS - 1 do
  freshness[cohort + 1] = kept ^ ((newest - cohort) % COHORTS)
end
freshness[ANCIENT + 1] = kept ^ (COHORTS - 1)

-- Items of a group, discounted by age.
local function discounted(directory, at)
  local f = freshness
  local a, b, c, d, e, g, h, i, j, k, l, m, n, o, p, q = unpack_from(COUNTS, directory, at + 8)
  return a * f[1] + b * f[2] + c * f[3] + d * f[4] + e * f[5] + g * f[6] + h * f[7] + i * f[8]
    + j * f[9] + k * f[10] + l * f[11] + m * f[12] + n * f[13] + o * f[14] + p * f[15] + q * f[16]
end

-- What the groups weigh. Reads as little as it can: it is what a draw costs. Returns arrays by the
-- group's place in the directory (its label, its items, its items discounted by age, the value of
-- one of them), and the mass of each label.
local function weigh(directory)
  local labels, items, values, label_masses = {}, {}, {}, {}
  local fresh, value, place = kept < 1 and {} or items, {}, 0
  for at = 1, #directory, GROUP_BYTES do
    local level, label, held = unpack_from('<I1I3I4', directory, at)
    local left, each = held, value[level]
    if not each then
      each = 2 ^ ((level - 128) / 4 * alpha)
      value[level] = each
    end
    place = place + 1
    if kept < 1 then
      left = discounted(directory, at)
      fresh[place] = left
    end
    labels[place], items[place], values[place] = label, held, each
    label_masses[label] = (label_masses[label] or 0) + each * left
  end
  return labels, items, fresh, values, label_masses
end
