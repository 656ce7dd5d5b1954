-- The only place where a job becomes terminal. The writes that free memory come first: once a script has written,
-- Redis lets it go on although memory is full.
local INLINE_BYTES = 65536
local INBOX_LENGTH = 4096
local INBOX_TTL_MS = 60000
local HINT_LENGTH = 1000
local DEAD_LENGTH = 100
local DEAD_TTL_MS = 7 * 86400000

local function acknowledge(queue, entry)
  redis.call('XACK', queue, GROUP, entry)
  redis.call('XDEL', queue, entry)
end

-- Returns false when the job is unknown or already terminal.
local function terminate(id, state, result, code, message)
  local key = JOB .. id
  local f = redis.call('HMGET', key, 'state', 'queue', 'entry', 'tenant_key', 'inbox', 'hint', 'ttl',
    'kind', 'tenant', 'created', 'started', 'attempts', 'cost', 'idem_key')
  local before = f[1]
  if before ~= 'Q' and before ~= 'R' then return false end
  redis.call('ZREM', OPEN, id)
  redis.call('SREM', f[4], id)
  if before == 'Q' then
    redis.call('ZREM', RELEASED, id)
    redis.call('HINCRBY', WAITING, f[2], -(f[13] or 0))
  end
  acknowledge(f[2], f[3])
  if code == 'poisoned' then
    -- A picture to tokenize may have megabytes: of that only the size is kept.
    local payload = redis.call('HGET', key, 'payload')
    local what = #payload <= INLINE_BYTES and {'payload', payload} or {'payload_bytes', #payload}
    redis.call('XADD', DEAD, 'MAXLEN', DEAD_LENGTH, '*', 'id', id, 'kind', f[8], 'tenant', f[9],
      'attempts', f[12], unpack(what))
    redis.call('PEXPIRE', DEAD, DEAD_TTL_MS)
  end
  -- Whoever asks again after this error wants another job.
  if code == 'unavailable' and f[14] ~= '' and redis.call('GET', f[14]) == id then redis.call('DEL', f[14]) end
  redis.call('HDEL', key, 'payload')
  local outcome = state == 'D' and {'result', result} or {'error_code', code, 'error_message', message}
  redis.call('HSET', key, 'state', state, 'finished', now, unpack(outcome))
  redis.call('ZADD', RES, now + f[7], id)

  local note = {'id', id, 'state', state, 'kind', f[8], 'tenant', f[9], 'created', f[10], 'finished', now,
    'started', f[11] or 0, 'attempts', f[12] or 0}
  if #result <= INLINE_BYTES then
    for _, part in ipairs(outcome) do note[#note + 1] = part end
  end
  redis.call('XADD', f[5], 'MAXLEN', '~', INBOX_LENGTH, '*', unpack(note))
  redis.call('PEXPIRE', f[5], INBOX_TTL_MS)
  if before == 'R' and (state == 'C' or state == 'X') then
    redis.call('XADD', f[6], 'MAXLEN', '~', HINT_LENGTH, '*', 'id', id)
    redis.call('PEXPIRE', f[6], INBOX_TTL_MS)
  end
  return true
end
