-- Empties the buffer and gives it a new incarnation. Payloads, producers' epochs and attempts stay:
-- the former are named by the old incarnation, and old epochs and attempts must not come back.
--
-- KEYS     as in prelude.lua, and more: all but the attempts are deleted
-- ARGV[1]  the new incarnation
-- ARGV[2]  JSON object of strings: fields of `meta`
-- ARGV[3]  JSON object of strings: fields of `params`
-- Returns  1; a repeated call with the same incarnation changes nothing
-- Time     O(g + N) for g groups and N slots
if redis.call('HGET', META, 'incarnation') == ARGV[1] then
  return 1
end
local directory = read_directory()
for at = 1, #directory, GROUP_BYTES do
  local group = {struct.unpack(GROUP, directory, at)}
  for cohort = 0, ANCIENT do
    if group[cohort + 3] > 0 then
      redis.call('DEL', CELL .. (group[1] * 256 + cohort))
    end
  end
end
for _, key in ipairs(KEYS) do
  if key ~= ATTEMPTS then
    redis.call('UNLINK', key)
  end
end
create(ARGV[1], cjson.decode(ARGV[2]), cjson.decode(ARGV[3]))
return 1
