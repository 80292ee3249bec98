-- Draws training samples with replacement, each with the probability that buffer/priorities.py
-- defines. Repeating a call whose answer was lost counts its draws twice in the limiter.
--
-- KEYS     as in prelude.lua
-- ARGV[1]  draws
-- ARGV[2]  seed in [0, 2^31)
-- ARGV[3]  'draw'; 'redraw' if these draws replace some of an earlier call, which the limiter has
--          counted; 'look' if it need not know of them
-- ARGV[4]  '' for a buffer of one shard, else what the `masses` of all shards make together, packed:
--          float64 this shard's share of the draws, items, mass; per label uint32 label, float64
--          factor of its masses
-- Returns  {'wait', seconds, reason: 'filling' or 'limiter'}, or a packed string: uint32
--          incarnation, items, attempt and step of the parameters; float64 importance exponent,
--          mean of the raw weights over draws; then per draw uint32 slot, generation, float64
--          probability
-- Time     O(g + n log g) for g groups and n draws; docs/benchmarks.md has figures
local draws, purpose = tonumber(ARGV[1]), ARGV[3]
local refused = refusal(purpose == 'draw' and draws or 0)
if refused then
  return refused
end

local directory = read_directory()
local labels, items, fresh, values, label_masses = weigh(directory)
local share, size, total, factors = 1, number(COUNTERS, 'size'), 0, {}
if ARGV[4] == '' then
  for label, mass in pairs(label_masses) do
    factors[label] = mass ^ -balance
    total = total + mass * factors[label]
  end
else
  share, size, total = struct.unpack('<ddd', ARGV[4])
  for at = 25, #ARGV[4], 12 do
    local label, factor = struct.unpack('<I4d', ARGV[4], at)
    factors[label] = factor
  end
end

-- The chance of an item is `by_mass * value * factor * freshness + by_count`, divided by what all
-- items here have together.
local by_mass, by_count = (1 - uniform) / total, uniform / size
local cumulative, reached, places = {}, 0, #items
for place = 1, places do
  -- A label that came after the masses were taken has no factor yet.
  local each = by_mass * values[place] * (factors[labels[place]] or 0)
  values[place] = each
  reached = reached + each * fresh[place] + by_count * items[place]
  cumulative[place] = reached
end
local scale = share / reached

-- For each of as many equal parts of the chances as there are places, where a search begins.
local guide, parts = {}, places / reached
do
  local place = 1
  for part = 0, places do
    while place < places and cumulative[place] * parts <= part do
      place = place + 1
    end
    guide[part] = place
  end
end

-- The first place whose cumulative chance exceeds the point.
local function place_at(point)
  local place = guide[floor(point * parts)]
  while cumulative[place] <= point and place < places do
    place = place + 1
  end
  return place
end

local opened = {}

-- The cell of an item of the group, its position there, and its chance.
local function item_at(place, rest)
  local group = opened[place]
  if not group then
    group = {unpack_from(COUNTS, directory, (place - 1) * GROUP_BYTES + 9)}
    opened[place] = group
  end
  local each, found, chance = values[place], 0, 0
  for field = 1, COHORTS + 1 do
    local held = group[field]
    if held > 0 then
      chance, found = each * freshness[field] + by_count, field
      if rest < held * chance then
        break
      end
      rest = rest - held * chance
    end
  end
  local position = floor(rest / chance)
  if position >= group[found] then
    position = group[found] - 1
  end
  return unpack_from('<I4', directory, (place - 1) * GROUP_BYTES + 1) * 256 + found - 1, position, chance
end

-- The mean raw weight of a draw, over all items.
local function mean_weight()
  local sum, less = 0, 1 - beta
  for place = 1, places do
    local each = values[place]
    if each + by_count == 0 then
      -- Its label has no factor yet.
    elseif kept == 1 then
      sum = sum + items[place] * (each + by_count) ^ less
    else
      local counts = {unpack_from(COUNTS, directory, (place - 1) * GROUP_BYTES + 9)}
      for field = 1, COHORTS + 1 do
        sum = sum + counts[field] * (each * freshness[field] + by_count) ^ less
      end
    end
  end
  return sum * scale ^ less * size ^ -beta / share
end

local texts = setmetatable({}, {__index = function(known, whole)
  local written = text(whole)
  known[whole] = written
  return written
end})

math.randomseed(tonumber(ARGV[2]))
local random = math.random
local reply = {pack('<I4I4I4I4dd', number(META, 'incarnation'), size,
  number(PARAMS, 'version_attempt'), number(PARAMS, 'version_step'), beta, mean_weight())}
for i = 1, draws do
  -- Two numbers of 31 bits: one alone could not tell the items of a large buffer apart.
  local point = (random() + random() * 2 ^ -31) * reached
  local place = place_at(point)
  local cell, position, chance = item_at(place, point - (cumulative[place - 1] or 0))
  local at = position * NAME_BYTES
  reply[2 * i] = call('GETRANGE', cell_key(cell), texts[at], texts[at + NAME_BYTES - 1])
  reply[2 * i + 1] = pack('<d', chance * scale)
end

count_draws(draws, purpose)
return table.concat(reply)
