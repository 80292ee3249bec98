-- What all operations share: names of keys, layouts, small tools. In front of each.
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
local POSITION_AT = 12
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

-- Of the server as it runs now: another one after each start.
local function process_id()
  return call('INFO', 'server'):match('run_id:(%x+)')
end

local function number(key, field)
  return tonumber(redis.call('HGET', key, field))
end

local function count(field, by)
  return redis.call('HINCRBY', COUNTERS, field, by)
end

local function cohort_width()
  return math.max(1, math.floor(number(META, 'capacity') / COHORTS_PER_BUFFER))
end

-- Number of the cohort of the newest sample.
local function newest_cohort()
  return floor((number(COUNTERS, 'inserted') - 1) / cohort_width())
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
  redis.call('HSET', META, 'incarnation', incarnation, 'created', string.format('%.6f', now()),
    'process', process_id(), 'least_generation', 0)
  local slots = meta.capacity + meta.probe_capacity
  redis.call('SETRANGE', SLOTS, slots * RECORD_BYTES - 1, '\0')
  redis.call('HSET', COUNTERS, 'size', 0, 'head', 0, 'inserted', 0, 'evicted', 0,
    'probe_size', 0, 'probe_head', 0, 'sampled', 0, 'redraws', 0, 'duplicates', 0,
    'applied', 0, 'stale', 0, 'older', 0, 'insert_waits', 0, 'sample_waits', 0,
    'balance', 0, 'warm', 0, 'free', 0, 'cursor', 0, 'queue_used', 0, 'changes', 0)
  write_params(params)
end

