-- What the operations share: names of keys, slot records, cells, the limiter. In front of each.
--
-- KEYS  all keys of buffer/keys.py that scripts use, in the order of the next lines; CELL is a
--       prefix, completed with a cell's number (keys.py says why that is sound)
local META, PARAMS, COUNTERS, SLOTS, GROUPS, INDEX, CELL = unpack(KEYS, 1, 7)
local SEEN, PERMITS, SCHEMA, FREE, QUEUE, ATTEMPTS = unpack(KEYS, 8, 13)
local PROGRESS_VERSION, STUDENT_VERSION = KEYS[15], KEYS[17]

-- The answer of a server that holds no buffer: the client initialises it and asks again.
local LOST = {ok = 'SSDKD_LOST'}

local EMPTY, RESERVED, COMMITTED = 0, 1, 2
local RECORD, RECORD_BYTES = '<I4I4I4I4I4I4', 24
local GENERATION_AT, POSITION_AT = 4, 12
local NAME, NAME_BYTES = '<I4I4', 8
-- A group's entry in the directory: its number, its items, its items in each cohort.
local GROUP, GROUP_BYTES = '<I4I4I4I4I4I4I4I4I4I4I4I4I4I4I4I4I4I4', 72
local COUNTS = '<I4I4I4I4I4I4I4I4I4I4I4I4I4I4I4I4'
local PERMIT = '<I4d'
local SEEN_HEAD, SEEN_BYTES = '<I4I4I4I4', 16
-- Cohorts are numbered round and round; what is older than all of them is in the last one.
local COHORTS, COHORTS_PER_BUFFER = 15, 8
local ANCIENT = COHORTS

-- Short against a synthesizer's round and a student's step, long against a round trip.
local RETRY_SECONDS, FILLING_RETRY_SECONDS = 0.05, 0.25

local call, floor, format = redis.call, math.floor, string.format
local pack, unpack_from = struct.pack, struct.unpack

-- A whole number as commands want it. Left to Redis, a number is written with 17 digits, which takes
-- longer than most commands.
local function text(whole)
  return format('%d', whole)
end

local function is_initialised()
  return redis.call('EXISTS', META) == 1
end

local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1e6
end

local function number(key, field)
  return tonumber(redis.call('HGET', key, field))
end

local function count(field, by)
  return redis.call('HINCRBY', COUNTERS, field, by)
end

-- Records of the slots that this call looks at, and those it has changed, for `write_back`.
local records, changed = {}, {}

local function record_of(slot, bytes, at)
  local state, generation, cell, position, attempt, step = unpack_from(RECORD, bytes, at)
  local record = {slot = slot, state = state, generation = generation, cell = cell,
    position = position, attempt = attempt, step = step, is_changed = false}
  records[slot] = record
  return record
end

-- Reads the records of slots, in one go where their numbers follow on each other.
local function read_slots(slots)
  local from = 1
  while from <= #slots do
    local to, first = from, slots[from]
    while slots[to + 1] == slots[to] + 1 do
      to = to + 1
    end
    local stop = (slots[to] + 1) * RECORD_BYTES - 1
    local bytes = call('GETRANGE', SLOTS, text(first * RECORD_BYTES), text(stop))
    for i = from, to do
      if not records[slots[i]] then
        record_of(slots[i], bytes, (i - from) * RECORD_BYTES + 1)
      end
    end
    from = to + 1
  end
end

local function read_slot(slot)
  local record, at = records[slot], slot * RECORD_BYTES
  return record or record_of(slot, call('GETRANGE', SLOTS, text(at), text(at + RECORD_BYTES - 1)), 1)
end

local function write_slot(record)
  if not record.is_changed then
    record.is_changed = true
    changed[#changed + 1] = record
  end
end

local function write_slots()
  local from = 1
  while from <= #changed do
    local to, packed = from - 1, {}
    repeat
      to = to + 1
      local record = changed[to]
      packed[#packed + 1] = pack(RECORD, record.state, record.generation, record.cell,
        record.position, record.attempt, record.step)
    until not changed[to + 1] or changed[to + 1].slot ~= record.slot + 1
    call('SETRANGE', SLOTS, text(changed[from].slot * RECORD_BYTES), table.concat(packed))
    from = to + 1
  end
end

local function cell_key(cell)
  return format('%s%d', CELL, cell)
end

-- The directory, packed, without what is left over behind it.
local function read_directory()
  local entries = call('HLEN', INDEX)
  return entries == 0 and '' or call('GETRANGE', GROUPS, '0', text(entries * GROUP_BYTES - 1))
end

-- Groups that this call looks at: arrays of the fields of GROUP, and where they are from.
local groups = {}

-- For a call that moves so many items: reads all groups in one go if they are few enough.
local function expect_moves(items)
  if call('HLEN', INDEX) <= 4 * items then
    local directory = read_directory()
    for entry = 0, #directory / GROUP_BYTES - 1 do
      local group = {unpack_from(GROUP, directory, entry * GROUP_BYTES + 1)}
      group.entry = entry
      groups[group[1]] = group
    end
  end
end

local function group_of(cell)
  local id = floor(cell / 256)
  local group = groups[id]
  if not group then
    local entry = call('HGET', INDEX, text(id))
    if entry then
      local at = entry * GROUP_BYTES
      group = {unpack_from(GROUP, call('GETRANGE', GROUPS, text(at), text(at + GROUP_BYTES - 1)))}
    else
      group = {id, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
    end
    group.entry = tonumber(entry)
    groups[id] = group
  end
  return group
end

-- Enters an item in a cell, at its end. For `write_back`, as all changes of items and groups.
local function enter_cell(record, cell)
  local group, field = group_of(cell), cell % 256 + 3
  local held = group[field]
  call('SETRANGE', cell_key(cell), text(held * NAME_BYTES), pack(NAME, record.slot, record.generation))
  group[2], group[field], group.is_changed = group[2] + 1, held + 1, true
  record.cell, record.position = cell, held
  write_slot(record)
end

local function set_position(slot, position)
  local record = records[slot]
  if record then
    record.position = position
    write_slot(record)
  else
    call('SETRANGE', SLOTS, text(slot * RECORD_BYTES + POSITION_AT), pack('<I4', position))
  end
end

-- Takes an item out of its cell; the cell's last item moves into its place.
local function leave_cell(record)
  local cell, position = record.cell, record.position
  local group, field, key = group_of(cell), cell % 256 + 3, cell_key(cell)
  local left = group[field] - 1
  group[2], group[field], group.is_changed = group[2] - 1, left, true
  if position < left then
    local last = left * NAME_BYTES
    local moved = call('GETRANGE', key, text(last), text(last + NAME_BYTES - 1))
    call('SETRANGE', key, text(position * NAME_BYTES), moved)
    set_position(unpack_from('<I4', moved), position)
  elseif left == 0 then
    call('DEL', key)
  end
end

-- Closes gaps in a directory of so many entries with its last ones.
local function close_gaps(vacant, entries)
  table.sort(vacant, function(a, b) return a > b end)
  for _, entry in ipairs(vacant) do
    entries = entries - 1
    if entry < entries then
      local at = entries * GROUP_BYTES
      local moved = call('GETRANGE', GROUPS, text(at), text(at + GROUP_BYTES - 1))
      call('SETRANGE', GROUPS, text(entry * GROUP_BYTES), moved)
      call('HSET', INDEX, text(unpack_from('<I4', moved)), text(entry))
    end
  end
end

local function write_groups()
  local entries, vacant = call('HLEN', INDEX), {}
  for id, group in pairs(groups) do
    if group[2] == 0 and group.entry then
      call('HDEL', INDEX, text(id))
      vacant[#vacant + 1] = group.entry
    end
  end
  for id, group in pairs(groups) do
    if group.is_changed and group[2] > 0 then
      if not group.entry then
        group.entry = table.remove(vacant)
        if not group.entry then
          group.entry, entries = entries, entries + 1
        end
        call('HSET', INDEX, text(id), text(group.entry))
      end
      call('SETRANGE', GROUPS, text(group.entry * GROUP_BYTES), pack(GROUP, unpack(group, 1, 18)))
    end
  end
  close_gaps(vacant, entries)
end

-- Writes the slots and groups that this call has changed, once.
local function write_back()
  write_slots()
  write_groups()
end

-- Takes a training sample out for good. Slots that no ring comes back to are kept in a stack.
local function empty_slot(record)
  if record.state == COMMITTED then
    leave_cell(record)
    count('size', -1)
  end
  record.state = EMPTY
  write_slot(record)
  if redis.call('HGET', META, 'eviction') ~= 'oldest' then
    local free = count('free', 1)
    redis.call('SETRANGE', FREE, (free - 1) * 4, struct.pack('<I4', record.slot))
  end
end

local function cohort_width()
  return math.max(1, math.floor(number(META, 'capacity') / COHORTS_PER_BUFFER))
end

-- Samples that producers other than this one hold live permits for; forgets lapsed permits.
local function held_by_others(producer, time)
  local total, permits = 0, redis.call('HGETALL', PERMITS)
  for i = 1, #permits, 2 do
    local samples, deadline = struct.unpack(PERMIT, permits[i + 1])
    if deadline <= time then
      redis.call('HDEL', PERMITS, permits[i])
    elseif permits[i] ~= producer then
      total = total + samples
    end
  end
  return total
end

local function grant(producer, samples, time)
  local deadline = time + number(META, 'lease_seconds')
  redis.call('HSET', PERMITS, producer, struct.pack(PERMIT, samples, deadline))
end

-- Whether a producer may insert so many training samples: the rules of buffer/limiter.py. A buffer
-- can be empty although it is warm, if payloads were lost; nobody can draw then.
local function may_insert(producer, samples, time)
  local per_insert = number(PARAMS, 'samples_per_insert')
  if not per_insert then
    return true
  end
  local others = held_by_others(producer, time)
  local size = number(COUNTERS, 'size')
  if number(COUNTERS, 'warm') == 0 or size == 0 then
    if others == 0 or size + others + samples <= number(META, 'min_size_to_sample') then
      return true
    end
  end
  local balance = number(COUNTERS, 'balance') + per_insert * others
  return balance <= 0 or balance + per_insert * samples <= number(META, 'error_buffer')
end

-- Whether so many draws may be made.
local function may_draw(draws)
  if not number(PARAMS, 'samples_per_insert') then
    return true
  end
  local balance = number(COUNTERS, 'balance')
  return balance >= 0 or balance - draws >= -number(META, 'error_buffer')
end

-- The answer to a draw that cannot be made now, or nil.
local function refusal(draws)
  if number(COUNTERS, 'warm') == 0 or number(COUNTERS, 'size') == 0 then
    count('sample_waits', 1)
    return {'wait', tostring(FILLING_RETRY_SECONDS), 'filling'}
  end
  if draws > 0 and not may_draw(draws) then
    count('sample_waits', 1)
    return {'wait', tostring(RETRY_SECONDS), 'limiter'}
  end
end

local function change_balance(by)
  local balance = number(COUNTERS, 'balance') + by
  redis.call('HSET', COUNTERS, 'balance', string.format('%.17g', balance))
end

local function write_params(params)
  for field, value in pairs(params) do
    redis.call('HSET', PARAMS, field, value)
  end
end

-- Sets up an empty buffer. Slots are written at their full length, so that they can be read.
local function create(incarnation, meta, params)
  for field, value in pairs(meta) do
    redis.call('HSET', META, field, value)
  end
  redis.call('HSET', META, 'incarnation', incarnation, 'created', string.format('%.6f', now()))
  local slots = meta.capacity + meta.probe_capacity
  redis.call('SETRANGE', SLOTS, slots * RECORD_BYTES - 1, '\0')
  redis.call('HSET', COUNTERS, 'size', 0, 'head', 0, 'inserted', 0, 'evicted', 0,
    'probe_size', 0, 'probe_head', 0, 'sampled', 0, 'redraws', 0, 'duplicates', 0,
    'applied', 0, 'stale', 0, 'older', 0, 'insert_waits', 0, 'sample_waits', 0,
    'balance', 0, 'warm', 0, 'free', 0, 'cursor', 0, 'queue_used', 0)
  write_params(params)
end

