-- Everything that a snapshot needs but the payloads, at one moment.
--
-- KEYS     as in prelude.lua
-- Returns  {incarnation, newest cohort, {counter, value, ...}, {parameter, value, ...},
--          {role, attempt, ...}, packed slot records of the training samples, of the probe samples}
-- Time     O(N) for N slots: they are copied
if not is_initialised() then
  return LOST
end
local capacity = number(META, 'capacity')
local newest = newest_cohort()
return {redis.call('HGET', META, 'incarnation'), newest, redis.call('HGETALL', COUNTERS),
  redis.call('HGETALL', PARAMS), redis.call('HGETALL', ATTEMPTS),
  redis.call('GETRANGE', SLOTS, 0, capacity * RECORD_BYTES - 1),
  redis.call('GETRANGE', SLOTS, capacity * RECORD_BYTES, -1)}
