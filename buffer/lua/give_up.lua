-- Gives up the name of a run, if it is still one's own. Stands without the prelude.
--
-- KEYS[1]  owner
-- ARGV[1]  token of who asks
-- Returns  1 if it was theirs, else 0
-- Time     O(1)
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
