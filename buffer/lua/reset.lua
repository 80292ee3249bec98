-- Empties the buffer and gives it a new incarnation. Payloads, producers' epochs and attempts stay:
-- the former are named by the old incarnation, and old epochs and attempts must not come back.
--
-- KEYS     as in prelude.lua, and more: all but the attempts are deleted
-- ARGV[1]  the new incarnation
-- ARGV[2]  JSON object of strings: fields of `meta`
-- ARGV[3]  JSON object of strings: fields of `params`
-- ARGV[4]  JSON object of strings: counters to begin with if samples are to be loaded, else ''
-- ARGV[5]  JSON object of strings: attempts handed out, or ''
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
      redis.call('DEL', cell_key(group[1] * 256 + cohort))
    end
  end
end
for _, key in ipairs(KEYS) do
  if key ~= ATTEMPTS then
    redis.call('UNLINK', key)
  end
end
create(ARGV[1], cjson.decode(ARGV[2]), cjson.decode(ARGV[3]))
if ARGV[4] ~= '' then
  for field, value in pairs(cjson.decode(ARGV[4])) do
    redis.call('HSET', COUNTERS, field, value)
  end
  for role, attempt in pairs(cjson.decode(ARGV[5])) do
    local newest = number(ATTEMPTS, role) or 0
    redis.call('HSET', ATTEMPTS, role, math.max(newest, tonumber(attempt)))
  end
  -- The first generation is that of the samples to be loaded: nobody else's, whoever comes first.
  redis.call('HSET', META, 'least_generation', 2)
end
return 1
