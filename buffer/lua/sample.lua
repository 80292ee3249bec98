-- Draws training samples with replacement, each with the probability that buffer/priorities.py
-- defines. Repeating a call whose answer was lost counts its draws twice in the limiter.
--
-- KEYS     as in prelude.lua
-- ARGV[1]  draws
-- ARGV[2]  seed in [0, 2^31)
-- ARGV[3]  'draw'; 'redraw' if these draws replace some of an earlier call, which the limiter has
--          counted; 'look' if it need not know of them
-- Returns  {'wait', seconds, reason: 'filling' or 'limiter'}, or a packed string: uint32
--          incarnation, items, attempt and step of the parameters; float64 importance exponent,
--          mean of the raw weights over draws; then per draw uint32 slot, generation, float64
--          probability
-- Time     O(c + n log c) for c cells and n draws; about 0.5 us a cell and 4 us a draw
if not is_initialised() then
  return LOST
end
local draws, purpose = tonumber(ARGV[1]), ARGV[3]
local size = number(COUNTERS, 'size')
if number(COUNTERS, 'warm') == 0 or size == 0 then
  count('sample_waits', 1)
  return {'wait', tostring(FILLING_RETRY_SECONDS), 'filling'}
end
if purpose == 'draw' and not may_draw(draws) then
  count('sample_waits', 1)
  return {'wait', tostring(RETRY_SECONDS), 'limiter'}
end

local alpha = number(PARAMS, 'priority_exponent')
local uniform = number(PARAMS, 'uniform_share')
local balance = number(PARAMS, 'label_balance')
local kept = 1 - number(PARAMS, 'age_discount')
local newest = math.floor((number(COUNTERS, 'inserted') - 1) / cohort_width())

local value, freshness = {}, {}
for i = 0, 255 do
  value[i] = 2 ^ ((i - 128) / 4 * alpha)
  freshness[i] = kept ^ ((newest - i) % COHORTS)
end

-- The passes over the cells are what a draw costs: only locals in them.
local directory = read_cells()
local cells, unpack_cell = #directory / CELL_BYTES, struct.unpack
local masses, labels, counts, label_masses = {}, {}, {}, {}
for i = 1, cells do
  -- The bytes of the cell's number one by one: cohort, level, label; then its items.
  local cohort, level, label, items = unpack_cell('<I1I1I2I4', directory, i * CELL_BYTES - 7)
  local mass = value[level] * freshness[cohort]
  masses[i], labels[i], counts[i] = mass, label, items
  label_masses[label] = (label_masses[label] or 0) + mass * items
end
local factors, total = {}, 0
for label, mass in pairs(label_masses) do
  factors[label] = mass ^ -balance
end
for i = 1, cells do
  local mass = masses[i] * factors[labels[i]]
  masses[i] = mass
  total = total + mass * counts[i]
end

local by_mass, by_count = (1 - uniform) / total, uniform / size
local beta = number(PARAMS, 'importance_exponent')
local cumulative, reached, weight_mean = {}, 0, 0
for i = 1, cells do
  local chance = by_mass * masses[i] + by_count
  local share = chance * counts[i]
  reached = reached + share
  cumulative[i] = reached
  weight_mean = weight_mean + share * (size * chance) ^ -beta
end

-- The first cell whose cumulative probability exceeds the point.
local function cell_at(point)
  local low, high = 1, cells
  while low < high do
    local middle = math.floor((low + high) / 2)
    if cumulative[middle] > point then
      high = middle
    else
      low = middle + 1
    end
  end
  return low
end

math.randomseed(tonumber(ARGV[2]))
local reply = {struct.pack('<I4I4I4I4dd', number(META, 'incarnation'), size,
  number(PARAMS, 'version_attempt'), number(PARAMS, 'version_step'), beta, weight_mean)}
for i = 1, draws do
  local index = cell_at(math.random() * reached)
  local key = CELL .. struct.unpack('<I4', directory, index * CELL_BYTES - 7)
  local slot = uint32(key, (math.random(counts[index]) - 1) * 4)
  local generation = uint32(SLOTS, slot * RECORD_BYTES + GENERATION_AT)
  reply[i + 1] = struct.pack('<I4I4d', slot, generation, by_mass * masses[index] + by_count)
end

if purpose == 'redraw' then
  count('redraws', draws)
elseif purpose == 'draw' then
  count('sampled', draws)
  if number(PARAMS, 'samples_per_insert') then
    change_balance(-draws)
  end
end
return table.concat(reply)
