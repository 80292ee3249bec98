-- Puts samples of a snapshot into a buffer that was emptied for it, under generation 1.
--
-- KEYS     as in prelude.lua
-- ARGV[1]  incarnation; nothing happens if another has begun
-- ARGV[2]  JSON object of strings: dtype and shape of `image` and of each target
-- ARGV[3]  packed uint32 quadruples slot, label << 16 | level << 8 | cohorts behind the newest,
--          attempt, step
-- Returns  samples that were put back: those whose slot nobody has taken meanwhile
-- Time     O(n) for n samples
if not is_initialised() then
  return LOST
end
if redis.call('HGET', META, 'incarnation') ~= ARGV[1] then
  return 0
end
for name, form in pairs(cjson.decode(ARGV[2])) do
  redis.call('HSETNX', SCHEMA, name, form)
end

local capacity = number(META, 'capacity')
local newest = newest_cohort()
local queued = redis.call('HGET', META, 'selector') == 'fifo'
local samples, probes = 0, 0
for at = 1, #ARGV[3], 16 do
  local slot, cell, attempt, step = struct.unpack('<I4I4I4I4', ARGV[3], at)
  local record = read_slot(slot)
  if record.state == EMPTY and record.generation == 0 then
    record.state, record.generation = COMMITTED, 1
    record.attempt, record.step = attempt, step
    if slot < capacity then
      local behind = cell % 256
      local cohort = behind < COHORTS and (newest - behind) % COHORTS or ANCIENT
      enter_cell(record, cell - behind + cohort)
      if queued then
        redis.call('RPUSH', QUEUE, struct.pack(NAME, slot, 1))
      end
      samples = samples + 1
    else
      probes = probes + 1
    end
    write_slot(record)
  end
end
write_back()
count('size', samples)
count('probe_size', probes)
return samples + probes
