-- A consistent picture of the buffer.
--
-- KEYS     as in prelude.lua
-- Returns  {seconds since initialisation, {counter, value, ...}, {cell, items, ...}}
-- Time     O(c) for c cells
if not is_initialised() then
  return LOST
end
local seconds = now() - number(META, 'created')
return {string.format('%.6f', seconds), redis.call('HGETALL', COUNTERS), redis.call('HGETALL', CELLS)}
