-- Draws training samples with replacement, each with the probability that buffer/priorities.py
-- defines. Repeating a call whose answer was lost counts its draws twice in the limiter.
--
-- KEYS     as in prelude.lua
-- ARGV[1]  draws
-- ARGV[2]  seed in [0, 2^31)
-- ARGV[3]  1 if these draws replace some of an earlier call, which the limiter has counted
-- Returns  {'wait', seconds, reason: 'filling' or 'limiter'}, or a packed string: uint32
--          incarnation, items, attempt and step of the parameters; float64 importance exponent,
--          smallest probability of any item; then per draw uint32 slot, generation, float64
--          probability
-- Time     O(c log c + n log c) for c cells and n draws
if not is_initialised() then
  return LOST
end
local draws, redraw = tonumber(ARGV[1]), ARGV[3] == '1'
local size = number(COUNTERS, 'size')
if number(COUNTERS, 'warm') == 0 or size == 0 then
  count('sample_waits', 1)
  return {'wait', tostring(FILLING_RETRY_SECONDS), 'filling'}
end
if not redraw and not may_draw(draws) then
  count('sample_waits', 1)
  return {'wait', tostring(RETRY_SECONDS), 'limiter'}
end

local alpha = number(PARAMS, 'priority_exponent')
local uniform = number(PARAMS, 'uniform_share')
local balance = number(PARAMS, 'label_balance')
local kept = 1 - number(PARAMS, 'age_discount')
local newest = math.floor((number(COUNTERS, 'inserted') - 1) / cohort_width())

-- Sorted, because a hash's order may change between two calls and a seed must fix the draws.
local counts, cells = {}, {}
local flat = redis.call('HGETALL', CELLS)
for i = 1, #flat, 2 do
  local cell = tonumber(flat[i])
  cells[#cells + 1] = cell
  counts[cell] = tonumber(flat[i + 1])
end
table.sort(cells)

local masses, label_masses, values = {}, {}, {}
for i, cell in ipairs(cells) do
  local label, level = math.floor(cell / 65536), math.floor(cell / 256) % 256
  local value = values[level] or 2 ^ ((level - 128) / 4 * alpha)
  values[level] = value
  local mass = value * kept ^ ((newest - cell) % COHORTS)
  masses[i] = mass
  label_masses[label] = (label_masses[label] or 0) + mass * counts[cell]
end
local total = 0
for i, cell in ipairs(cells) do
  masses[i] = masses[i] * label_masses[math.floor(cell / 65536)] ^ -balance
  total = total + masses[i] * counts[cell]
end

local cumulative, reached, smallest = {}, 0, 1
for i, cell in ipairs(cells) do
  local probability = (1 - uniform) * masses[i] / total + uniform / size
  masses[i] = probability
  smallest = math.min(smallest, probability)
  reached = reached + probability * counts[cell]
  cumulative[i] = reached
end

-- The first cell whose cumulative probability exceeds the point.
local function cell_at(point)
  local low, high = 1, #cells
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
  number(PARAMS, 'version_attempt'), number(PARAMS, 'version_step'),
  number(PARAMS, 'importance_exponent'), smallest)}
for i = 1, draws do
  local index = cell_at(math.random() * reached)
  local cell = cells[index]
  local at = (math.random(counts[cell]) - 1) * 4
  local packed = redis.call('GETRANGE', CELL .. cell, at, at + 3)
  local generation_at = struct.unpack('<I4', packed) * RECORD_BYTES + GENERATION_AT
  local generation = redis.call('GETRANGE', SLOTS, generation_at, generation_at + 3)
  reply[i + 1] = packed .. generation .. struct.pack('<d', masses[index])
end

if redraw then
  count('redraws', draws)
else
  count('sampled', draws)
  if number(PARAMS, 'samples_per_insert') then
    change_balance(-draws)
  end
end
return table.concat(reply)
