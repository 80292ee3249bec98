-- Makes the samples of a reservation visible, where nobody has taken the slot since.
--
-- KEYS     as in prelude.lua
-- ARGV[1]  producer
-- ARGV[2]  epoch
-- ARGV[3]  sequence
-- ARGV[4]  incarnation of the reservation
-- ARGV[5]  packed uint32 per sample, in the reservation's order: label << 16 | level << 8
-- Returns  samples that became visible; a repeated commit gets the same answer
-- Time     O(n) for n samples
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

local capacity, width = number(META, 'capacity'), cohort_width()
local inserted, fresh, probes = number(COUNTERS, 'inserted'), 0, 0
for i = 0, #ARGV[5] / 4 - 1 do
  local slot, generation = struct.unpack('<I4I4', seen, SEEN_BYTES + i * 8 + 1)
  local record = read_slot(slot)
  if record.state == RESERVED and record.generation == generation then
    record.state = COMMITTED
    if slot < capacity then
      local cohort = math.floor((inserted + fresh) / width) % COHORTS
      enter_cell(record, struct.unpack('<I4', ARGV[5], i * 4 + 1) + cohort)
      fresh = fresh + 1
    else
      probes = probes + 1
    end
    write_slot(record)
  end
end

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
