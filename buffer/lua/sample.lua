-- Draws training samples with replacement, each with the probability that buffer/priorities.py
-- defines. Repeating a call whose answer was lost counts its draws twice in the limiter.
--
-- KEYS     as in prelude.lua
-- ARGV[1]  packed float64 in [0, 1), rising: a random point of the distribution for each draw
-- ARGV[2]  'draw'; 'redraw' if these draws replace some of an earlier call, which the limiter has
--          counted; 'look' if it need not know of them
-- ARGV[3]  '' for a buffer of one shard, else what the `masses` of all shards make together, packed:
--          float64 this shard's share of the draws, items, mass; per label uint32 label, float64
--          factor of its masses
-- Returns  {'wait', seconds, reason: 'filling' or 'limiter'}, or a packed string: uint32
--          incarnation, items, attempt and step of the parameters; float64 importance exponent,
--          mean of the raw weights over draws; then per point uint32 slot, generation, float64
--          probability
-- Time     O(g + n) for g groups and n draws; docs/benchmarks.md has figures
local draws, purpose = #ARGV[1] / 8, ARGV[2]
local refused = refusal(purpose == 'draw' and draws or 0)
if refused then
  return refused
end

local directory = read_directory()
local labels, items, fresh, values, label_masses = weigh(directory)
local share, size, total, factors = 1, number(COUNTERS, 'size'), 0, {}
if ARGV[3] == '' then
  for label, mass in pairs(label_masses) do
    factors[label] = mass ^ -balance
    total = total + mass * factors[label]
  end
else
  share, size, total = struct.unpack('<ddd', ARGV[3])
  for at = 25, #ARGV[3], 12 do
    local label, factor = struct.unpack('<I4d', ARGV[3], at)
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
if reached == 0 then
  -- All labels came after the masses were taken.
  count('sample_waits', 1)
  return {'wait', tostring(RETRY_SECONDS), 'filling'}
end
local scale = share / reached

-- The cell of an item of a group with these counts, its position there, and its chance.
local function item_at(place, counts, rest)
  local each, found, chance = values[place], 0, 0
  for field = 1, COHORTS + 1 do
    local held = counts[field]
    if held > 0 then
      chance, found = each * freshness[field] + by_count, field
      if rest < held * chance then
        break
      end
      rest = rest - held * chance
    end
  end
  local position = floor(rest / chance)
  if position >= counts[found] then
    position = counts[found] - 1
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

local reply = {pack('<I4I4I4I4dd', number(META, 'incarnation'), size,
  number(PARAMS, 'version_attempt'), number(PARAMS, 'version_step'), beta, mean_weight())}
local place, counts = 1, nil
for i = 1, draws do
  local point = unpack_from('<d', ARGV[1], 8 * i - 7) * reached
  while cumulative[place] <= point and place < places do
    place, counts = place + 1, nil
  end
  counts = counts or {unpack_from(COUNTS, directory, (place - 1) * GROUP_BYTES + 9)}
  local cell, position, chance = item_at(place, counts, point - (cumulative[place - 1] or 0))
  local at = position * NAME_BYTES
  reply[2 * i] = call('GETRANGE', cell_key(cell), texts[at], texts[at + NAME_BYTES - 1])
  reply[2 * i + 1] = pack('<d', chance * scale)
end

count_draws(draws, purpose)
return table.concat(reply)
