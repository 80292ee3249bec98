-- Hands out the epoch of a process that inserts under a producer's name: above all earlier ones.
-- Epochs follow the clock, so that they grow even if the server has lost them with its data.
--
-- KEYS     as in prelude.lua, then `epochs`
-- ARGV[1]  producer
-- Returns  the epoch; a repeated call skips some
-- Time     O(1)
local EPOCHS = KEYS[#KEYS]
local epoch = math.max((number(EPOCHS, ARGV[1]) or 0) + 1, math.floor(now()))
local seen = redis.call('HGET', SEEN, ARGV[1])
if seen then
  epoch = math.max(epoch, struct.unpack('<I4', seen) + 1)
end
redis.call('HSET', EPOCHS, ARGV[1], epoch)
return epoch
