-- Takes a worker off the lists, and its consumers away where nothing is pending for them.
local name, key = unpack(ARGV)
redis.call('DEL', key)
redis.call('ZREM', WORKERS, key)
redis.call('ZREM', LEAVING, key)
for _, queue in ipairs({Q0, Q1, QC}) do
  local pending = redis.pcall('XPENDING', queue, GROUP, '-', '+', 1, name)
  if not pending.err and #pending == 0 then redis.call('XGROUP', 'DELCONSUMER', queue, GROUP, name) end
end
return redis.status_reply('OK')
