-- The only place where a job becomes terminal. The writes that free memory come first: once a script has written,
-- Redis lets it go on although memory is full.
local INLINE_BYTES = 65536
local INBOX_LENGTH = 4096
local INBOX_TTL_MS = 60000
local HINT_LENGTH = 1000
local DEAD_LENGTH = 100

local function acknowledge(queue, entry)
  redis.call('XACK', queue, GROUP, entry)
  redis.call('XDEL', queue, entry)
end

local function count_finished()
  local f = redis.call('HMGET', RATE, 'since', 'count', 'before')
  local since, count = tonumber(f[1]) or 0, tonumber(f[2]) or 0
  if now - since < RATE_WINDOW_MS then
    redis.call('HINCRBY', RATE, 'count', 1)
  else
    local before = now - since < 2 * RATE_WINDOW_MS and count or 0
    redis.call('HSET', RATE, 'since', now, 'count', 1, 'before', before)
  end
end

-- Returns false when the job is unknown or already terminal.
local function terminate(id, state, result, code, message)
  local key = JOB .. id
  local f = redis.call('HMGET', key, 'state', 'queue', 'entry', 'tenant_key', 'inbox', 'hint', 'ttl',
    'kind', 'tenant', 'created', 'started', 'attempts')
  local before = f[1]
  if before ~= 'Q' and before ~= 'R' then return false end
  redis.call('ZREM', OPEN, id)
  redis.call('SREM', f[4], id)
  redis.call('ZREM', RELEASED, id)
  acknowledge(f[2], f[3])
  if code == 'poisoned' then
    redis.call('XADD', DEAD, 'MAXLEN', DEAD_LENGTH, '*', 'id', id, 'kind', f[8], 'tenant', f[9],
      'attempts', f[12], 'payload', redis.call('HGET', key, 'payload'))
  end
  redis.call('HDEL', key, 'payload')
  redis.call('HSET', key, 'state', state, 'finished', now, 'error_code', code, 'error_message', message)
  if state == 'D' then redis.call('HSET', key, 'result', result) end
  redis.call('ZADD', RES, now + f[7], id)
  if state == 'D' or state == 'E' then count_finished() end

  local note = {'id', id, 'state', state, 'kind', f[8], 'tenant', f[9], 'created', f[10], 'started', f[11],
    'attempts', f[12], 'finished', now, 'error_code', code, 'error_message', message}
  if state == 'D' and #result <= INLINE_BYTES then
    note[#note + 1] = 'result'
    note[#note + 1] = result
  end
  redis.call('XADD', f[5], 'MAXLEN', '~', INBOX_LENGTH, '*', unpack(note))
  redis.call('PEXPIRE', f[5], INBOX_TTL_MS)
  if before == 'R' and (state == 'C' or state == 'X') then
    redis.call('XADD', f[6], 'MAXLEN', '~', HINT_LENGTH, '*', 'id', id)
    redis.call('PEXPIRE', f[6], INBOX_TTL_MS)
  end
  return true
end
