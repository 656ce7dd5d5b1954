-- Gives a job back: the attempt is not counted and the entry is idle at once, so that another worker takes it.
local id, owner, queue, entry = unpack(ARGV)
local LONG_AGO_MS = 86400000
local key = JOB .. id
local f = redis.call('HMGET', key, 'state', 'owner', 'entry', 'suspect', 'cost')
if f[3] ~= entry or not holds(queue, entry, owner) then return 0 end
if f[1] == 'R' and f[2] == owner then
  redis.call('HINCRBY', key, 'attempts', -1)
  if f[4] == '1' then redis.call('HINCRBY', key, 'solo', -1) end
  redis.call('HSET', key, 'state', 'Q', 'owner', '', 'started', 0)
  redis.call('HINCRBY', WAITING, queue, f[5] or 0)
elseif f[1] ~= 'Q' then
  return 0
end
redis.call('XCLAIM', queue, GROUP, owner, 0, entry, 'IDLE', LONG_AGO_MS, 'JUSTID')
redis.call('ZADD', RELEASED, now, id)
return 1
