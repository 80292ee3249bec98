-- Creates the buffer if there is none, else compares it with what the client expects.
--
-- KEYS     as in prelude.lua
-- ARGV[1]  incarnation, should the buffer be created
-- ARGV[2]  JSON object of strings: fields of `meta`, should the buffer be created
-- ARGV[3]  JSON object of strings: fields of `params`, should the buffer be created
-- ARGV[4]  JSON object of strings: fields of `meta` that must agree
-- Returns  array of field, stored value, ... where the two differ
-- Time     O(1)
if not is_initialised() then
  create(ARGV[1], cjson.decode(ARGV[2]), cjson.decode(ARGV[3]))
  return {}
end
local different = {}
for field, value in pairs(cjson.decode(ARGV[4])) do
  local stored = redis.call('HGET', META, field)
  if stored ~= value then
    table.insert(different, field)
    table.insert(different, stored or '')
  end
end
return different
