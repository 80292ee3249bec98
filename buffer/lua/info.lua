-- A consistent picture of the buffer.
--
-- KEYS     as in prelude.lua
-- Returns  {seconds since initialisation, {counter, value, ...}, packed uint32 pairs cell, items}
-- Time     O(c) for c cells
if not is_initialised() then
  return LOST
end
local seconds = now() - number(META, 'created')
return {string.format('%.6f', seconds), redis.call('HGETALL', COUNTERS), read_cells()}
