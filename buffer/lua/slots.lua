-- Admits draws that a client makes for itself, and gives it the records of all training samples, if
-- they are not those it has already. Repeating a call whose answer was lost counts its draws twice
-- in the limiter.
--
-- KEYS     as in prelude.lua
-- ARGV[1]  draws
-- ARGV[2]  why they are made: as in sample.lua
-- ARGV[3]  incarnation and
-- ARGV[4]  number of changes of the records that the client has
-- Returns  {'wait', seconds, reason: 'filling' or 'limiter'}, or {incarnation, changes, newest cohort,
--          {parameter, value, ...}, packed slot records, or '' if nothing has changed}
-- Time     O(N) for N slots, which are copied; O(1) if nothing has changed
if not is_initialised() then
  return LOST
end
local draws, purpose = tonumber(ARGV[1]), ARGV[2]
local refused = refusal(purpose == 'draw' and draws or 0)
if refused then
  return refused
end
local incarnation, changes = call('HGET', META, 'incarnation'), call('HGET', COUNTERS, 'changes')
local newest, bytes = newest_cohort(), ''
if incarnation ~= ARGV[3] or changes ~= ARGV[4] then
  bytes = call('GETRANGE', SLOTS, '0', text(number(META, 'capacity') * RECORD_BYTES - 1))
end
count_draws(draws, purpose)
return {incarnation, changes, newest, call('HGETALL', PARAMS), bytes}
