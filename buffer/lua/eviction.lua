-- Shared by the operations that give slots away: which ones, and who has to go.

-- Fields of groups from the oldest cohort to the newest.
local function fields_by_age()
  local newest = math.floor(number(COUNTERS, 'inserted') / cohort_width())
  local fields = {ANCIENT + 3}
  for behind = COHORTS - 1, 0, -1 do
    fields[#fields + 1] = (newest - behind) % COHORTS + 3
  end
  return fields
end

-- Up to so many slots of a cell, the last ones first.
local function last_of(group, field, wanted, slots)
  local held = group[field]
  local names = redis.call('GETRANGE', cell_key(group[1] * 256 + field - 3),
    math.max(0, held - wanted) * NAME_BYTES, held * NAME_BYTES - 1)
  for at = #names - NAME_BYTES + 1, 1, -NAME_BYTES do
    slots[#slots + 1] = struct.unpack('<I4', names, at)
  end
end

local function all_groups()
  local found, directory = {}, read_directory()
  for at = 1, #directory, GROUP_BYTES do
    found[#found + 1] = {struct.unpack(GROUP, directory, at)}
  end
  return found
end

-- The items of lowest priority, of one level the oldest cohorts first.
local function lowest(wanted, slots)
  local found, fields = all_groups(), fields_by_age()
  table.sort(found, function(a, b)
    return a[1] % 256 < b[1] % 256 or (a[1] % 256 == b[1] % 256 and a[1] < b[1])
  end)
  local from = 1
  while #slots < wanted and from <= #found do
    local to = from
    while found[to + 1] and found[to + 1][1] % 256 == found[from][1] % 256 do
      to = to + 1
    end
    for _, field in ipairs(fields) do
      for i = from, to do
        if #slots < wanted then
          last_of(found[i], field, wanted - #slots, slots)
        end
      end
    end
    from = to + 1
  end
end

-- How many items each label gives up so that the largest labels shrink to one size.
local function quotas(wanted, totals)
  local labels, given = {}, {}
  for label in pairs(totals) do
    labels[#labels + 1] = label
  end
  table.sort(labels, function(a, b)
    return totals[a] > totals[b] or (totals[a] == totals[b] and a < b)
  end)
  local larger, sum = 0, 0
  -- The `larger` largest labels shrink, as long as that leaves them no smaller than the next one.
  repeat
    larger = larger + 1
    sum = sum + totals[labels[larger]]
    local following = labels[larger + 1]
  until not following or sum - larger * totals[following] >= wanted
  local left = sum - wanted
  for i = 1, larger do
    -- What does not divide evenly stays with the first ones.
    local stay = math.floor(left / larger) + (i <= left % larger and 1 or 0)
    given[labels[i]] = math.max(0, totals[labels[i]] - stay)
  end
  return given
end

-- The oldest items of the labels that have most.
local function of_largest_labels(wanted, slots)
  local totals, by_label = {}, {}
  for _, group in ipairs(all_groups()) do
    local label = math.floor(group[1] / 256)
    totals[label] = (totals[label] or 0) + group[2]
    by_label[label] = by_label[label] or {}
    table.insert(by_label[label], group)
  end
  local fields = fields_by_age()
  for label, share in pairs(quotas(wanted - #slots, totals)) do
    local enough = #slots + share
    for _, field in ipairs(fields) do
      for _, group in ipairs(by_label[label]) do
        if #slots < enough then
          last_of(group, field, enough - #slots, slots)
        end
      end
    end
  end
end

-- Gives the slots of a reservation that was never committed back, where nobody has taken them.
local function reclaim(reserved)
  for at = 1, #reserved, NAME_BYTES do
    local slot, generation = struct.unpack(NAME, reserved, at)
    local record = read_slot(slot)
    if slot < number(META, 'capacity') and record.state == RESERVED and
        record.generation == generation then
      empty_slot(record)
    end
  end
end

-- Reservations whose producers have not been heard of for a lease, and this producer's last one.
local function reclaim_abandoned(producer, time)
  local seen = redis.call('HGETALL', SEEN)
  for i = 1, #seen, 2 do
    local _, _, committed = struct.unpack(SEEN_HEAD, seen[i + 1])
    if committed == 0 then
      local permit = redis.call('HGET', PERMITS, seen[i])
      local _, deadline = struct.unpack(PERMIT, permit or struct.pack(PERMIT, 0, 0))
      if seen[i] == producer or deadline <= time then
        reclaim(seen[i + 1]:sub(SEEN_BYTES + 1))
      end
    end
  end
end

local function from_ring(first, ring, head, wanted, slots)
  local start = number(COUNTERS, head)
  for i = 0, wanted - 1 do
    slots[#slots + 1] = first + (start + i) % ring
  end
  redis.call('HSET', COUNTERS, head, (start + wanted) % ring)
end

-- Slots that hold nothing, as far as there are enough.
local function unused(wanted, slots)
  local free = number(COUNTERS, 'free')
  local taken = math.min(free, wanted)
  local packed = redis.call('GETRANGE', FREE, (free - taken) * 4, free * 4 - 1)
  for at = 1, taken * 4, 4 do
    slots[#slots + 1] = struct.unpack('<I4', packed, at)
  end
  local head, capacity = number(COUNTERS, 'head'), number(META, 'capacity')
  local fresh = math.min(wanted - taken, capacity - head)
  for slot = head, head + fresh - 1 do
    slots[#slots + 1] = slot
  end
  redis.call('HSET', COUNTERS, 'free', free - taken, 'head', head + fresh)
end

-- Slots for so many training samples, or nil if other producers hold what is missing.
local function choose_slots(wanted, producer, time)
  local eviction, slots = redis.call('HGET', META, 'eviction'), {}
  local capacity = number(META, 'capacity')
  if eviction == 'oldest' then
    from_ring(0, capacity, 'head', wanted, slots)
    return slots
  end
  reclaim_abandoned(producer, time)
  local empty = number(COUNTERS, 'free') + capacity - number(COUNTERS, 'head')
  if empty + number(COUNTERS, 'size') < wanted then
    return nil
  end
  unused(wanted, slots)
  if #slots < wanted then
    local evict = eviction == 'lowest_priority' and lowest or of_largest_labels
    evict(wanted, slots)
  end
  return slots
end
