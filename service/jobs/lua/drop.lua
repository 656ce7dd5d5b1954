-- Forgetting a terminal job.
local GONE_LENGTH = 10000

local function drop(id)
  local key = JOB .. id
  local f = redis.call('HMGET', key, 'idem_key', 'events_key')
  if f[1] and f[1] ~= '' and redis.call('GET', f[1]) == id then redis.call('DEL', f[1]) end
  redis.call('DEL', key)
  if f[2] then redis.call('DEL', f[2]) end
  redis.call('ZREM', RES, id)
end

-- Drops results whose time is over and leaves a tombstone of each, in bounded number.
local function drop_expired(limit)
  local ids = redis.call('ZRANGEBYSCORE', RES, '-inf', now, 'LIMIT', 0, limit)
  for _, id in ipairs(ids) do
    local tenant = redis.call('HGET', JOB .. id, 'tenant')
    drop(id)
    if tenant then redis.call('ZADD', GONE, now, tenant .. '/' .. id) end
  end
  if #ids > 0 then redis.call('ZREMRANGEBYRANK', GONE, 0, -1 - GONE_LENGTH) end
end
