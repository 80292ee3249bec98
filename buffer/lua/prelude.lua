-- What the operations share: names of keys, slot records, cells, the limiter. In front of each.
--
-- KEYS  all keys of buffer/keys.py that scripts use, in the order of the next lines; CELL is a
--       prefix, completed with a cell's number (keys.py says why that is sound)
local META, PARAMS, COUNTERS, SLOTS, CELLS, INDEX, CELL = unpack(KEYS, 1, 7)
local SEEN, PERMITS, SCHEMA, ATTEMPTS = unpack(KEYS, 8, 11)
local PROGRESS_VERSION, STUDENT_VERSION = KEYS[13], KEYS[15]

-- The answer of a server that holds no buffer: the client initialises it and asks again.
local LOST = {ok = 'SSDKD_LOST'}

local RESERVED, COMMITTED = 1, 2
local RECORD, RECORD_BYTES = '<I4I4I4I4I4I4', 24
local GENERATION_AT, POSITION_AT = 4, 12
local CELL_BYTES = 8
local PERMIT = '<I4d'
local SEEN_HEAD, SEEN_BYTES = '<I4I4I4I4', 16
-- Cohorts are numbered modulo the first; at most sixteen are alive at a time.
local COHORTS, COHORTS_PER_BUFFER = 256, 8

-- Short against a synthesizer's round and a student's step, long against a round trip.
local RETRY_SECONDS, FILLING_RETRY_SECONDS = 0.05, 0.25

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

local function read_slot(slot)
  local at = slot * RECORD_BYTES
  local bytes = redis.call('GETRANGE', SLOTS, at, at + RECORD_BYTES - 1)
  local record = {slot = slot}
  record.state, record.generation, record.cell, record.position, record.attempt, record.step =
    struct.unpack(RECORD, bytes)
  return record
end

local function write_slot(record)
  redis.call('SETRANGE', SLOTS, record.slot * RECORD_BYTES, struct.pack(RECORD, record.state,
    record.generation, record.cell, record.position, record.attempt, record.step))
end

local function uint32(key, at)
  return (struct.unpack('<I4', redis.call('GETRANGE', key, at, at + 3)))
end

local function write_uint32(key, at, value)
  redis.call('SETRANGE', key, at, struct.pack('<I4', value))
end

-- Enters an item in a cell, at its end; the caller writes the record.
local function enter_cell(record, cell)
  local entry = redis.call('HGET', INDEX, cell)
  local held = 0
  if entry then
    held = uint32(CELLS, entry * CELL_BYTES + 4)
  else
    entry = redis.call('HLEN', INDEX)
    redis.call('HSET', INDEX, cell, entry)
  end
  redis.call('SETRANGE', CELLS, entry * CELL_BYTES, struct.pack('<I4I4', cell, held + 1))
  write_uint32(CELL .. cell, held * 4, record.slot)
  record.cell, record.position = cell, held
end

-- Takes an empty cell out of the directory; the directory's last entry moves into its place.
local function forget_cell(cell, entry)
  local last = redis.call('HLEN', INDEX) - 1
  if entry < last then
    local at = last * CELL_BYTES
    local moved = redis.call('GETRANGE', CELLS, at, at + CELL_BYTES - 1)
    redis.call('SETRANGE', CELLS, entry * CELL_BYTES, moved)
    redis.call('HSET', INDEX, (struct.unpack('<I4', moved)), entry)
  end
  redis.call('HDEL', INDEX, cell)
  redis.call('DEL', CELL .. cell)
end

-- Takes an item out of its cell; the cell's last item moves into its place.
local function leave_cell(record)
  local key, entry = CELL .. record.cell, number(INDEX, record.cell)
  local left = uint32(CELLS, entry * CELL_BYTES + 4) - 1
  if left == 0 then
    forget_cell(record.cell, entry)
    return
  end
  write_uint32(CELLS, entry * CELL_BYTES + 4, left)
  if record.position < left then
    local moved = uint32(key, left * 4)
    write_uint32(key, record.position * 4, moved)
    write_uint32(SLOTS, moved * RECORD_BYTES + POSITION_AT, record.position)
  end
end

-- The directory of cells, packed, without what is left over behind it.
local function read_cells()
  local cells = redis.call('HLEN', INDEX)
  return cells == 0 and '' or redis.call('GETRANGE', CELLS, 0, cells * CELL_BYTES - 1)
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
    'balance', 0, 'warm', 0)
  write_params(params)
end

