-- Makes the samples of a reservation visible, where nobody has taken the slot since.
--
-- KEYS     as in prelude.lua
-- ARGV[1]  producer
-- ARGV[2]  epoch
-- ARGV[3]  sequence
-- ARGV[4]  incarnation of the reservation
-- ARGV[5]  packed uint32 per sample, in the reservation's order: label << 16 | level << 8
-- Returns  samples that became visible; a repeated commit gets the same answer
-- Time     O(n) for n samples; O(n + g) for g groups unless the oldest are evicted and new samples
--          get the level they come with
if not is_initialised() then
  return LOST
end
local producer, epoch, sequence = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local seen = redis.call('HGET', SEEN, producer)
if not seen or redis.call('HGET', META, 'incarnation') ~= ARGV[4] then
  return 0
end
local last_epoch, last_sequence, committed, visible = struct.unpack(SEEN_HEAD, seen)
if epoch ~= last_epoch or sequence ~= last_sequence then
  return 0
end
if committed == 1 then
  return visible
end

-- The level that all new samples get, or nil for their own.
local function level_of_all()
  local policy, totals, size = redis.call('HGET', META, 'new_priority'), {}, 0
  if policy == 'disagreement' then
    return nil
  end
  local directory = read_directory()
  for at = 1, #directory, GROUP_BYTES do
    local level, _, held = struct.unpack('<I1I3I4', directory, at)
    totals[level] = (totals[level] or 0) + held
    size = size + held
  end
  local above, most = 0, policy == 'highest' and 0 or size / 10
  for level = 255, 0, -1 do
    above = above + (totals[level] or 0)
    if above > most then
      return level
    end
  end
end

-- Moves up to so many items of a cohort to the ancient ones.
local function retire(cohort, most)
  local directory, field = read_directory(), cohort + 3
  for at = 1, #directory, GROUP_BYTES do
    local group = group_of(struct.unpack('<I4', directory, at) * 256)
    while most > 0 and group[field] > 0 do
      local key, last = cell_key(group[1] * 256 + cohort), (group[field] - 1) * NAME_BYTES
      local record = read_slot(struct.unpack('<I4', redis.call('GETRANGE', key, last, last + 3)))
      leave_cell(record)
      enter_cell(record, group[1] * 256 + ANCIENT)
      most = most - 1
    end
  end
end

local capacity, width, override = number(META, 'capacity'), cohort_width(), level_of_all()
local queued = redis.call('HGET', META, 'selector') == 'fifo'
local before, fresh, probes = number(COUNTERS, 'inserted'), 0, 0
local ring = redis.call('HGET', META, 'eviction') == 'oldest'
local slots, generations = {}, {}
for i = 1, #ARGV[5] / 4 do
  slots[i], generations[i] = unpack_from(NAME, seen, SEEN_BYTES + (i - 1) * NAME_BYTES + 1)
end
read_slots(slots)
expect_moves(#slots)
for i, slot in ipairs(slots) do
  local record, generation = records[slot], generations[i]
  if record.state == RESERVED and record.generation == generation then
    record.state = COMMITTED
    if slot < capacity then
      local cell = unpack_from('<I4', ARGV[5], i * 4 - 3)
      if override then
        cell = cell - cell % 65536 + override * 256
      end
      local cohort = math.floor((before + fresh) / width)
      if (before + fresh) % width == 0 then
        -- Nothing, as a rule: what is left is older than a ring keeps, or comes from a snapshot.
        retire(cohort % COHORTS, capacity)
      end
      enter_cell(record, cell + cohort % COHORTS)
      fresh = fresh + 1
      if queued then
        redis.call('RPUSH', QUEUE, struct.pack(NAME, slot, generation))
      end
    else
      probes = probes + 1
    end
    write_slot(record)
  end
end
if queued then
  -- Those at the front that were evicted: the queue stays short although nobody takes from it.
  for _ = 1, 2 * fresh do
    local slot, generation = unpack_from(NAME, redis.call('LINDEX', QUEUE, 0))
    local record = read_slot(slot)
    if record.state == COMMITTED and record.generation == generation then
      break
    end
    redis.call('LTRIM', QUEUE, 1, -1)
    redis.call('HSET', COUNTERS, 'queue_used', 0)
  end
end
if not ring then
  -- Ahead of time, so that no commit has to retire a whole cohort.
  retire(math.ceil((before + fresh) / width) % COHORTS, 2 * fresh)
end
write_back()

redis.call('HDEL', PERMITS, producer)
if number(COUNTERS, 'warm') == 1 then
  change_balance((number(PARAMS, 'samples_per_insert') or 0) * fresh)
end
count('probe_size', probes)
-- Not the size: slots that producers hold or left behind could keep it below the minimum for ever.
local enough = count('inserted', fresh) >= number(META, 'min_size_to_sample')
if count('size', fresh) > 0 and enough then
  redis.call('HSET', COUNTERS, 'warm', 1)
end
visible = fresh + probes
redis.call('HSET', SEEN, producer, struct.pack(SEEN_HEAD, epoch, sequence, 1, visible))
return visible
