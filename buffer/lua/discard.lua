-- Takes samples out whose payload a client found missing or damaged, if they are still there.
--
-- KEYS     as in prelude.lua
-- ARGV[1]  incarnation the samples were drawn under
-- ARGV[2]  packed uint32 pairs slot, generation of training samples
-- Returns  how many were taken out; the others had been evicted since they were drawn
-- Time     O(n) for n samples
if redis.call('HGET', META, 'incarnation') ~= ARGV[1] then
  return 0
end
local discarded = 0
for at = 1, #ARGV[2], 8 do
  local slot, generation = struct.unpack('<I4I4', ARGV[2], at)
  local record = read_slot(slot)
  if record.state == COMMITTED and record.generation == generation then
    empty_slot(record)
    discarded = discarded + 1
  end
end
write_back()
count('evicted', discarded)
return discarded
