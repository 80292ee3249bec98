-- Puts newer sampling parameters in force.
--
-- KEYS     as in prelude.lua
-- ARGV[1]  JSON object of strings: fields of `params`
-- Returns  1 if they are newer than those in force, or the same: this call may be a repeated one;
--          else 0
-- Time     O(1)
if not is_initialised() then
  return LOST
end
local params = cjson.decode(ARGV[1])
local attempt, step = tonumber(params.version_attempt), tonumber(params.version_step)
local last_attempt, last_step = number(PARAMS, 'version_attempt'), number(PARAMS, 'version_step')
if attempt == last_attempt and step == last_step then
  for field, value in pairs(params) do
    if redis.call('HGET', PARAMS, field) ~= value then
      return 0
    end
  end
  return 1
end
if attempt < last_attempt or (attempt == last_attempt and step < last_step) then
  return 0
end
local rate, new_rate =
  number(PARAMS, 'samples_per_insert'), tonumber(params.samples_per_insert)
if (rate == nil) ~= (new_rate == nil) then  -- the limiter is switched on or off
  redis.call('HSET', COUNTERS, 'balance', 0)
end
write_params(params)
return 1
