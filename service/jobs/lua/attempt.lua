-- The start of an attempt. `owner` must hold the entry already. Everything that can crash a worker comes later.
local SOLO_ATTEMPTS = 2

-- Returns what the worker needs, or nil when there is nothing to run; the entry is settled then.
local function attempt(id, queue, entry, owner, hint)
  local key = JOB .. id
  local f = redis.call('HMGET', key, 'state', 'entry', 'owner', 'deadline', 'attempts', 'solo', 'suspect',
    'payload', 'kind', 'rows', 'events', 'trace', 'created', 'cost')
  local state, attempts, suspect = f[1], tonumber(f[5] or 0), f[7] == '1'
  if (state ~= 'Q' and state ~= 'R') or f[2] ~= entry then
    acknowledge(queue, entry)
    return nil
  end
  if tonumber(f[4]) <= now then
    terminate(id, 'X', '', 'deadline_passed', 'the deadline passed before a worker took the job')
    return nil
  end
  -- The same owner asks again when the first answer was lost on the way: the same attempt.
  if state == 'Q' or f[3] ~= owner then
    if suspect and tonumber(f[6] or 0) >= SOLO_ATTEMPTS then
      terminate(id, 'E', '', 'poisoned', 'the job lost its worker ' .. attempts .. ' times and was given up')
      return nil
    end
    attempts = attempts + 1
    if state == 'Q' then redis.call('HINCRBY', WAITING, queue, -(f[14] or 0)) end
    redis.call('HSET', key, 'state', 'R', 'owner', owner, 'hint', hint, 'attempts', attempts, 'started', now)
    if suspect then redis.call('HINCRBY', key, 'solo', 1) end
    redis.call('ZREM', RELEASED, id)
  end
  return {id, f[9], queue, entry, attempts, suspect and 1 or 0, f[8], f[10], f[4], f[4] - now,
    f[11], f[12] or '', now - f[13]}
end
