-- Hands out the next attempt of a role: above those handed out, and above what the role has
-- published, which a live predecessor brings back to a server that lost its data.
--
-- KEYS     as in prelude.lua
-- ARGV[1]  role
-- ARGV[2]  the attempt must be above this number too
-- Returns  the attempt; a repeated call skips one
-- Time     O(1)
if not is_initialised() then
  return LOST
end
local role, newest = ARGV[1], math.max(number(ATTEMPTS, ARGV[1]) or 0, tonumber(ARGV[2]))
if role == 'controller' then
  newest = math.max(newest, number(PARAMS, 'version_attempt'))
elseif role == 'distiller' then
  for _, key in ipairs({PROGRESS_VERSION, STUDENT_VERSION}) do
    local version = redis.call('GET', key)
    newest = math.max(newest, version and tonumber(version:match('^%d+')) or 0)
  end
end
redis.call('HSET', ATTEMPTS, role, newest + 1)
return newest + 1
