-- Shared by the operations that the limiter decides on: permits, inserts and draws.

-- Samples that producers other than this one hold live permits for; forgets lapsed permits.
local function held_by_others(producer, time)
  local total, permits = 0, redis.call('HGETALL', PERMITS)
  for i = 1, #permits, 2 do
    local samples, deadline = struct.unpack(PERMIT, permits[i + 1])
    if deadline <= time then
      redis.call('HDEL', PERMITS, permits[i])
    elseif permits[i] ~= producer then
      total = total + samples
    end
  end
  return total
end

local function grant(producer, samples, time)
  local deadline = time + number(META, 'lease_seconds')
  redis.call('HSET', PERMITS, producer, struct.pack(PERMIT, samples, deadline))
end

-- Whether a producer may insert so many training samples: the rules of buffer/limiter.py. A buffer
-- can be empty although it is warm, if payloads were lost; nobody can draw then.
local function may_insert(producer, samples, time)
  local per_insert = number(PARAMS, 'samples_per_insert')
  if not per_insert then
    return true
  end
  local others = held_by_others(producer, time)
  local size = number(COUNTERS, 'size')
  if number(COUNTERS, 'warm') == 0 or size == 0 then
    if others == 0 or size + others + samples <= number(META, 'min_size_to_sample') then
      return true
    end
  end
  local balance = number(COUNTERS, 'balance') + per_insert * others
  return balance <= 0 or balance + per_insert * samples <= number(META, 'error_buffer')
end

-- Whether so many draws may be made.
local function may_draw(draws)
  if not number(PARAMS, 'samples_per_insert') then
    return true
  end
  local balance = number(COUNTERS, 'balance')
  return balance >= 0 or balance - draws >= -number(META, 'error_buffer')
end

-- The answer to a draw that cannot be made now, or nil.
local function refusal(draws)
  if number(COUNTERS, 'warm') == 0 or number(COUNTERS, 'size') == 0 then
    count('sample_waits', 1)
    return {'wait', tostring(FILLING_RETRY_SECONDS), 'filling'}
  end
  if draws > 0 and not may_draw(draws) then
    count('sample_waits', 1)
    return {'wait', tostring(RETRY_SECONDS), 'limiter'}
  end
end

local function change_balance(by)
  local balance = number(COUNTERS, 'balance') + by
  redis.call('HSET', COUNTERS, 'balance', string.format('%.17g', balance))
end

-- Counts draws that were made for this reason (see sample.lua).
local function count_draws(draws, purpose)
  if purpose == 'redraw' then
    count('redraws', draws)
  elseif purpose == 'draw' then
    count('sampled', draws)
    if number(PARAMS, 'samples_per_insert') then
      change_balance(-draws)
    end
  end
end
