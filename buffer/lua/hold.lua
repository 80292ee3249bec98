-- Takes the name of a run, or holds it longer, unless another holds it.
--
-- KEYS     as in prelude.lua, then `owner`
-- ARGV[1]  token of who asks
-- ARGV[2]  milliseconds to hold it
-- Returns  1 if it is theirs, 0 if it is another's
-- Time     O(1)
local OWNER = KEYS[#KEYS]
local owner = redis.call('GET', OWNER)
if owner and owner ~= ARGV[1] then
  return 0
end
redis.call('SET', OWNER, ARGV[1], 'PX', ARGV[2])
return 1
