-- The next training samples in order: of a queue that they leave again (`fifo`), or of all slots,
-- round and round (`sequential`). Repeating a call whose answer was lost skips samples.
--
-- KEYS     as in prelude.lua
-- ARGV[1]  how many
-- Returns  as in sample.lua: parameters that weigh nothing, and probabilities of 1
-- Time     O(n) for n samples; `sequential` also passes over empty slots
if not is_initialised() then
  return LOST
end
local wanted = tonumber(ARGV[1])
local reply = {struct.pack('<I4I4I4I4dd', number(META, 'incarnation'), number(COUNTERS, 'size'),
  number(PARAMS, 'version_attempt'), number(PARAMS, 'version_step'), 0, 1)}

local function answer(record)
  reply[#reply + 1] = struct.pack('<I4I4d', record.slot, record.generation, 1)
end

-- The samples at the head of the queue with how often each is taken now; nil if there are too few.
local function heads(most)
  local found, used, sum, place = {}, number(COUNTERS, 'queue_used'), 0, 0
  while sum < wanted do
    local name = redis.call('LINDEX', QUEUE, place)
    if not name then
      return nil
    end
    local slot, generation = struct.unpack(NAME, name)
    local record = read_slot(slot)
    if record.state == COMMITTED and record.generation == generation then
      local times = math.min(most - used, wanted - sum)
      found[#found + 1] = {record, times, used + times == most, place}
      sum = sum + times
    end
    -- Only what is at the very front can have been taken before; gone or not, it is passed now.
    used, place = 0, place + 1
  end
  return found
end

local function take_from_queue()
  local refused = refusal(wanted)
  if refused then
    return refused
  end
  local most = number(META, 'max_times_sampled')
  local found = heads(most)
  if not found then
    count('sample_waits', 1)
    return {'wait', tostring(RETRY_SECONDS), 'filling'}
  end
  local last, taken = found[#found], 0
  local before = found[1][4] == 0 and number(COUNTERS, 'queue_used') or 0
  for i, head in ipairs(found) do
    for _ = 1, head[2] do
      answer(head[1])
    end
    if head[3] then
      empty_slot(head[1])
      taken = taken + 1
    end
  end
  write_back()
  redis.call('LTRIM', QUEUE, last[3] and last[4] + 1 or last[4], -1)
  local used = last[2] + (#found == 1 and before or 0)
  redis.call('HSET', COUNTERS, 'queue_used', last[3] and 0 or used)
  count('evicted', taken)
end

local function take_in_turn()
  local cursor, capacity = number(COUNTERS, 'cursor'), number(META, 'capacity')
  if number(COUNTERS, 'size') == 0 then
    count('sample_waits', 1)
    return {'wait', tostring(FILLING_RETRY_SECONDS), 'filling'}
  end
  while #reply <= wanted do
    local record = read_slot(cursor)
    if record.state == COMMITTED then
      answer(record)
    end
    cursor = (cursor + 1) % capacity
  end
  redis.call('HSET', COUNTERS, 'cursor', cursor)
end

local queued = redis.call('HGET', META, 'selector') == 'fifo'
local refused
if queued then
  refused = take_from_queue()
else
  refused = take_in_turn()
end
if refused then
  return refused
end
if queued then
  count_draws(wanted, 'draw')
else
  count('sampled', wanted)
end
return table.concat(reply)
