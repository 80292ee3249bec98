-- Empties the buffer and gives it a new incarnation. Payloads and producers' epochs stay: the
-- former are named by the old incarnation, and an old epoch must not come back.
--
-- KEYS     as in prelude.lua, and more: all are deleted
-- ARGV[1]  the new incarnation
-- ARGV[2]  JSON object of strings: fields of `meta`
-- ARGV[3]  JSON object of strings: fields of `params`
-- Returns  1; a repeated call with the same incarnation changes nothing
-- Time     O(c + N) for c cells and N slots
if redis.call('HGET', META, 'incarnation') == ARGV[1] then
  return 1
end
for _, cell in ipairs(redis.call('HKEYS', INDEX)) do
  redis.call('DEL', CELL .. cell)
end
redis.call('UNLINK', unpack(KEYS))
create(ARGV[1], cjson.decode(ARGV[2]), cjson.decode(ARGV[3]))
return 1
