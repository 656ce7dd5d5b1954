-- Says that a worker is alive, and forgets those that stopped saying so. A consumer is deleted only when nothing is
-- pending for it: with its pending list its jobs would be lost.
local name, key, info, ttl_ms, stale_ms = unpack(ARGV)
redis.call('SET', key, info, 'PX', ttl_ms)
redis.call('ZADD', WORKERS, now + ttl_ms, key)
redis.call('ZREMRANGEBYSCORE', WORKERS, '-inf', now)
for _, queue in ipairs({Q0, Q1, QC}) do
  local consumers = redis.pcall('XINFO', 'CONSUMERS', queue, GROUP)
  for _, c in ipairs(consumers.err and {} or consumers) do
    if c[2] ~= name and c[4] == 0 and c[6] > tonumber(stale_ms) then
      redis.call('XGROUP', 'DELCONSUMER', queue, GROUP, c[2])
    end
  end
end
return redis.status_reply('OK')
