-- Takes a worker off the list before it ends, and closes the revision to new jobs when it was the last one. It comes
-- again until nothing is open any more: returns how many jobs are, and 1 when no worker is on the list. Until then
-- others see that these jobs have a worker.
local key, ttl_ms = unpack(ARGV)
redis.call('DEL', key)
redis.call('ZREM', WORKERS, key)
redis.call('ZADD', LEAVING, now + ttl_ms, key)
redis.call('PEXPIRE', LEAVING, ttl_ms)
redis.call('ZREMRANGEBYSCORE', WORKERS, '-inf', now)
redis.call('ZREMRANGEBYSCORE', LEAVING, '-inf', now)
local last = redis.call('EXISTS', WORKERS) == 0
if last then redis.call('SET', CLOSED, now) end
return {redis.call('ZCARD', OPEN), last and 1 or 0}
