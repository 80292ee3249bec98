-- The newest probe samples.
--
-- KEYS     as in prelude.lua
-- ARGV[1]  how many at most
-- Returns  {incarnation, packed uint32 pairs slot, generation, newest first}
-- Time     O(m) for m slots looked at
if not is_initialised() then
  return LOST
end
local wanted, first = tonumber(ARGV[1]), number(META, 'capacity')
local ring, head = number(META, 'probe_capacity'), number(COUNTERS, 'probe_head')
local found, i = {}, 1
while i <= ring and #found < wanted do
  local record = read_slot(first + (head - i) % ring)
  if record.state == COMMITTED then
    found[#found + 1] = struct.pack('<I4I4', record.slot, record.generation)
  end
  i = i + 1
end
return {redis.call('HGET', META, 'incarnation'), table.concat(found)}
