-- What this shard would contribute to a draw over all shards.
--
-- KEYS     as in prelude.lua
-- Returns  {'wait', seconds, reason: 'filling' or 'limiter'}, or a packed string: uint32 items;
--          float64 draws that the limiter admits now, uniform share, label balance; per label uint32
--          label, float64 mass
-- Time     O(g) for g groups
local refused = refusal(0)
if refused then
  return refused
end
local _, _, _, _, label_masses = weigh(read_directory())
local slack = math.huge
if number(PARAMS, 'samples_per_insert') and number(COUNTERS, 'balance') < 0 then
  slack = number(META, 'error_buffer') + number(COUNTERS, 'balance')
end
local reply = {struct.pack('<I4ddd', number(COUNTERS, 'size'), slack, uniform, balance)}
for label, mass in pairs(label_masses) do
  reply[#reply + 1] = struct.pack('<I4d', label, mass)
end
return table.concat(reply)
