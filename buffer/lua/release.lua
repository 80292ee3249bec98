-- Gives an unused permit back.
--
-- KEYS     as in prelude.lua
-- ARGV[1]  producer
-- Returns  1 if there was one
-- Time     O(1)
return redis.call('HDEL', PERMITS, ARGV[1])
