-- Shared by the operations that look at items: slot records, cells and the directory of groups. What
-- a call changes is kept in tables, and written once by `write_back`.

-- Records of the slots that this call looks at, and those it has changed, for `write_back`.
local records, changed = {}, {}

local function record_of(slot, bytes, at)
  local state, generation, cell, position, attempt, step = unpack_from(RECORD, bytes, at)
  local record = {slot = slot, state = state, generation = generation, cell = cell,
    position = position, attempt = attempt, step = step, is_changed = false}
  records[slot] = record
  return record
end

-- Reads the records of slots, in one go where their numbers follow on each other.
local function read_slots(slots)
  local from = 1
  while from <= #slots do
    local to, first = from, slots[from]
    while slots[to + 1] == slots[to] + 1 do
      to = to + 1
    end
    local stop = (slots[to] + 1) * RECORD_BYTES - 1
    local bytes = call('GETRANGE', SLOTS, text(first * RECORD_BYTES), text(stop))
    for i = from, to do
      if not records[slots[i]] then
        record_of(slots[i], bytes, (i - from) * RECORD_BYTES + 1)
      end
    end
    from = to + 1
  end
end

local function read_slot(slot)
  local record, at = records[slot], slot * RECORD_BYTES
  return record or record_of(slot, call('GETRANGE', SLOTS, text(at), text(at + RECORD_BYTES - 1)), 1)
end

local function write_slot(record)
  if not record.is_changed then
    record.is_changed = true
    changed[#changed + 1] = record
  end
end

local function write_slots()
  local from = 1
  while from <= #changed do
    local to, packed = from - 1, {}
    repeat
      to = to + 1
      local record = changed[to]
      packed[#packed + 1] = pack(RECORD, record.state, record.generation, record.cell,
        record.position, record.attempt, record.step)
    until not changed[to + 1] or changed[to + 1].slot ~= record.slot + 1
    call('SETRANGE', SLOTS, text(changed[from].slot * RECORD_BYTES), table.concat(packed))
    from = to + 1
  end
end

local CELL_KEY = CELL:gsub('%%', '%%%%') .. '%d'

local function cell_key(cell)
  return format(CELL_KEY, cell)
end

-- The directory, packed, without what is left over behind it.
local function read_directory()
  local entries = call('HLEN', INDEX)
  return entries == 0 and '' or call('GETRANGE', GROUPS, '0', text(entries * GROUP_BYTES - 1))
end

-- Groups that this call looks at: arrays of the fields of GROUP, and where they are from.
local groups = {}

-- For a call that moves so many items: reads all groups in one go if they are few enough.
local function expect_moves(items)
  if call('HLEN', INDEX) <= 4 * items then
    local directory = read_directory()
    for entry = 0, #directory / GROUP_BYTES - 1 do
      local group = {unpack_from(GROUP, directory, entry * GROUP_BYTES + 1)}
      group.entry = entry
      groups[group[1]] = group
    end
  end
end

local function group_of(cell)
  local id = floor(cell / 256)
  local group = groups[id]
  if not group then
    local entry = call('HGET', INDEX, text(id))
    if entry then
      local at = entry * GROUP_BYTES
      group = {unpack_from(GROUP, call('GETRANGE', GROUPS, text(at), text(at + GROUP_BYTES - 1)))}
    else
      group = {id, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
    end
    group.entry = tonumber(entry)
    groups[id] = group
  end
  return group
end

-- Enters an item in a cell, at its end. For `write_back`, as all changes of items and groups.
local function enter_cell(record, cell)
  local group, field = group_of(cell), cell % 256 + 3
  local held = group[field]
  call('SETRANGE', cell_key(cell), text(held * NAME_BYTES), pack(NAME, record.slot, record.generation))
  group[2], group[field], group.is_changed = group[2] + 1, held + 1, true
  record.cell, record.position = cell, held
  write_slot(record)
end

local function set_position(slot, position)
  local record = records[slot]
  if record then
    record.position = position
    write_slot(record)
  else
    call('SETRANGE', SLOTS, text(slot * RECORD_BYTES + POSITION_AT), pack('<I4', position))
  end
end

-- Takes an item out of its cell; the cell's last item moves into its place.
local function leave_cell(record)
  local cell, position = record.cell, record.position
  local group, field, key = group_of(cell), cell % 256 + 3, cell_key(cell)
  local left = group[field] - 1
  group[2], group[field], group.is_changed = group[2] - 1, left, true
  if position < left then
    local last = left * NAME_BYTES
    local moved = call('GETRANGE', key, text(last), text(last + NAME_BYTES - 1))
    call('SETRANGE', key, text(position * NAME_BYTES), moved)
    set_position(unpack_from('<I4', moved), position)
  elseif left == 0 then
    call('DEL', key)
  end
end

-- Closes gaps in a directory of so many entries with its last ones.
local function close_gaps(vacant, entries)
  table.sort(vacant, function(a, b) return a > b end)
  for _, entry in ipairs(vacant) do
    entries = entries - 1
    if entry < entries then
      local at = entries * GROUP_BYTES
      local moved = call('GETRANGE', GROUPS, text(at), text(at + GROUP_BYTES - 1))
      call('SETRANGE', GROUPS, text(entry * GROUP_BYTES), moved)
      call('HSET', INDEX, text(unpack_from('<I4', moved)), text(entry))
    end
  end
end

local function write_groups()
  local entries, vacant, is_changed = call('HLEN', INDEX), {}, false
  for id, group in pairs(groups) do
    is_changed = is_changed or group.is_changed
    if group[2] == 0 and group.entry then
      call('HDEL', INDEX, text(id))
      vacant[#vacant + 1] = group.entry
    end
  end
  for id, group in pairs(groups) do
    if group.is_changed and group[2] > 0 then
      if not group.entry then
        group.entry = table.remove(vacant)
        if not group.entry then
          group.entry, entries = entries, entries + 1
        end
        call('HSET', INDEX, text(id), text(group.entry))
      end
      call('SETRANGE', GROUPS, text(group.entry * GROUP_BYTES), pack(GROUP, unpack(group, 1, 18)))
    end
  end
  close_gaps(vacant, entries)
  if is_changed then
    -- After the clock, so that no number comes back with an older snapshot of the server.
    local changes = math.max(number(COUNTERS, 'changes') + 1, floor(1e6 * now()))
    call('HSET', COUNTERS, 'changes', text(changes))
  end
end

-- Writes the slots and groups that this call has changed, once.
local function write_back()
  write_slots()
  write_groups()
end

-- Takes a training sample out for good. Slots that no ring comes back to are kept in a stack.
local function empty_slot(record)
  if record.state == COMMITTED then
    leave_cell(record)
    count('size', -1)
  end
  record.state = EMPTY
  write_slot(record)
  if redis.call('HGET', META, 'eviction') ~= 'oldest' then
    local free = count('free', 1)
    redis.call('SETRANGE', FREE, (free - 1) * 4, struct.pack('<I4', record.slot))
  end
end
