-- Grants or refuses a producer's permit to insert; asking again renews it.
--
-- KEYS     as in prelude.lua
-- ARGV[1]  producer
-- ARGV[2]  training samples
-- Returns  '' if granted, else seconds until asking again may succeed
-- Time     O(p) for p producers
if not is_initialised() then
  return LOST
end
local producer, samples, time = ARGV[1], tonumber(ARGV[2]), now()
if not may_insert(producer, samples, time) then
  redis.call('HDEL', PERMITS, producer)
  count('insert_waits', 1)
  return tostring(RETRY_SECONDS)
end
grant(producer, samples, time)
return ''
