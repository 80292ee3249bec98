-- What this shard would contribute to a draw over all shards.
--
-- KEYS     as in prelude.lua
-- ARGV[1]  draws that are wanted of all shards together
-- Returns  {'wait', seconds, reason: 'filling' or 'limiter'}, or a packed string: uint32 items;
--          float64 uniform share, label balance; per label uint32 label, float64 mass
-- Time     O(g) for g groups
if not is_initialised() then
  return LOST
end
local refused = refusal(0)
if refused then
  return refused
end
local _, _, _, _, label_masses = weigh(read_directory())
local reply = {struct.pack('<I4dd', number(COUNTERS, 'size'), uniform, balance)}
for label, mass in pairs(label_masses) do
  reply[#reply + 1] = struct.pack('<I4d', label, mass)
end
return table.concat(reply)
