-- Reserves slots for one insert, evicting what is in them. Without a permit for as many samples the
-- limiter decides; from here to the commit the insert counts as permitted.
--
-- KEYS     as in prelude.lua
-- ARGV[1]  producer
-- ARGV[2]  epoch
-- ARGV[3]  sequence; a repeated reservation gets the same slots if it still has all of them
-- ARGV[4]  training samples
-- ARGV[5]  probe samples
-- ARGV[6]  JSON object of strings: dtype and shape of `image` and of each target
-- Returns  {'reserved', incarnation, packed pairs slot, generation: training samples first},
--          {'duplicate'}, {'superseded'} by a newer epoch, {'wait', seconds} or
--          {'schema', name, what is stored}
-- Time     O(n + p) for n samples and p producers; with evictions other than the oldest, also O(g log g)
--          for g groups
if not is_initialised() then
  return LOST
end
local producer, epoch, sequence = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local samples, probes, time = tonumber(ARGV[4]), tonumber(ARGV[5]), now()

-- Whether nobody has taken a slot of these packed pairs since they were reserved.
local function are_reserved(pairs)
  for at = 1, #pairs, 8 do
    local slot, generation = struct.unpack('<I4I4', pairs, at)
    local record = read_slot(slot)
    if record.state ~= RESERVED or record.generation ~= generation then
      return false
    end
  end
  return true
end

local seen = redis.call('HGET', SEEN, producer)
if seen then
  local last_epoch, last_sequence, committed = struct.unpack(SEEN_HEAD, seen)
  if epoch < last_epoch then
    count('duplicates', 1)
    return {'superseded'}
  end
  if epoch == last_epoch and (sequence < last_sequence or
      (sequence == last_sequence and committed == 1)) then
    count('duplicates', 1)
    return {'duplicate'}
  end
  local stored = seen:sub(SEEN_BYTES + 1)
  if epoch == last_epoch and sequence == last_sequence and are_reserved(stored) then
    return {'reserved', redis.call('HGET', META, 'incarnation'), stored}
  end
end

local schema = cjson.decode(ARGV[6])
for name, form in pairs(schema) do
  local stored = redis.call('HGET', SCHEMA, name)
  if stored and stored ~= form then
    return {'schema', name, stored}
  end
end

local slots = {}
if samples > 0 then
  local permit = redis.call('HGET', PERMITS, producer)
  local held = false
  if permit then
    local permitted, deadline = struct.unpack(PERMIT, permit)
    held = deadline > time and permitted >= samples
  end
  if held or may_insert(producer, samples, time) then
    slots = choose_slots(samples, producer, time)
  else
    slots = nil
  end
  if not slots then
    -- Slots that were given back meanwhile stay free.
    write_back()
    count('insert_waits', 1)
    return {'wait', tostring(RETRY_SECONDS)}
  end
  grant(producer, samples, time)
end
for name, form in pairs(schema) do
  redis.call('HSET', SCHEMA, name, form)
end

-- A server that came back with an older snapshot of itself has forgotten generations that clients
-- know. Those it gives from then on are above the hundredths of a second since the buffer began: no
-- ring is turned that often.
if call('HGET', META, 'process') ~= process_id() then
  local age = floor(100 * (time - number(META, 'created')))
  call('HSET', META, 'process', process_id(), 'least_generation', text(age))
end
local least = number(META, 'least_generation')

local capacity = number(META, 'capacity')
if probes > 0 then
  from_ring(capacity, number(META, 'probe_capacity'), 'probe_head', probes, slots)
end
read_slots(slots)
expect_moves(#slots)
local reserved, evicted, lost_probes = {}, 0, 0
for i, slot in ipairs(slots) do
  local record = read_slot(slot)
  if record.state == COMMITTED then
    if slot < capacity then
      leave_cell(record)
      evicted = evicted + 1
    else
      lost_probes = lost_probes + 1
    end
  end
  record.state, record.attempt, record.step = RESERVED, 0, 0
  record.generation = math.max(record.generation + 1, least)
  write_slot(record)
  reserved[i] = pack(NAME, slot, record.generation)
end
write_back()
count('size', 0 - evicted)
count('evicted', evicted)
count('probe_size', 0 - lost_probes)
local packed = table.concat(reserved)
redis.call('HSET', SEEN, producer, struct.pack(SEEN_HEAD, epoch, sequence, 0, 0) .. packed)
return {'reserved', redis.call('HGET', META, 'incarnation'), packed}
