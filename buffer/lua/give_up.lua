-- Gives up the name of a run, if it is still one's own.
--
-- KEYS     as in prelude.lua, then `owner`
-- ARGV[1]  token of who asks
-- Returns  1 if it was theirs, else 0
-- Time     O(1)
local OWNER = KEYS[#KEYS]
if redis.call('GET', OWNER) == ARGV[1] then
  return redis.call('DEL', OWNER)
end
return 0
