-- Sets the priority levels of training samples that are still there.
--
-- KEYS     as in prelude.lua
-- ARGV[1]  attempt of the updates' version
-- ARGV[2]  step of it
-- ARGV[3]  packed uint32 quadruples incarnation, slot, generation, level
-- Returns  {applied, stale, older}
-- Time     O(n) for n updates
if not is_initialised() then
  return LOST
end
local attempt, step = tonumber(ARGV[1]), tonumber(ARGV[2])
local incarnation, capacity = number(META, 'incarnation'), number(META, 'capacity')
local applied, stale, older = 0, 0, 0

-- The records that are updated, and the cell each goes to; of several updates the last one counts.
local updated, target = {}, {}

local function set_level(record, level)
  if not target[record] then
    updated[#updated + 1] = record
  end
  target[record] = record.cell - record.cell % 65536 + level * 256 + record.cell % 256
  record.attempt, record.step = attempt, step
  write_slot(record)
end

for at = 1, #ARGV[3], 16 do
  local theirs, slot, generation, level = unpack_from('<I4I4I4I4', ARGV[3], at)
  local record = theirs == incarnation and slot < capacity and read_slot(slot)
  if not record or record.state ~= COMMITTED or record.generation ~= generation then
    stale = stale + 1
  elseif attempt < record.attempt or (attempt == record.attempt and step < record.step) then
    older = older + 1
  else
    set_level(record, level)
    applied = applied + 1
  end
end

local movers = {}
for _, record in ipairs(updated) do
  if target[record] ~= record.cell then
    movers[#movers + 1] = record
  end
end
expect_moves(#movers)
for _, record in ipairs(movers) do
  leave_cell(record)
  enter_cell(record, target[record])
end
write_back()
count('applied', applied)
count('stale', stale)
count('older', older)
return {applied, stale, older}
