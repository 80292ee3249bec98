-- A consistent picture of the buffer.
--
-- KEYS     as in prelude.lua
-- Returns  {seconds since initialisation, {counter, value, ...}, packed directory of groups}
-- Time     O(g) for g groups
if not is_initialised() then
  return LOST
end
local seconds = now() - number(META, 'created')
return {string.format('%.6f', seconds), redis.call('HGETALL', COUNTERS), read_directory()}
