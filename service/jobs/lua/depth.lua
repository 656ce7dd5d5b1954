-- Entries, pending entries and age of the oldest entry in ms of each queue, then open jobs, results and dead letters.
local reply = {}
for _, queue in ipairs({Q0, Q1, QC}) do
  local length = redis.call('XLEN', queue)
  local pending = redis.pcall('XPENDING', queue, GROUP)
  local oldest = redis.call('XRANGE', queue, '-', '+', 'COUNT', 1)[1]
  local age = oldest and math.max(now - tonumber(string.match(oldest[1], '^%d+')), 0) or 0
  reply[#reply + 1] = {length, pending.err and 0 or pending[1], age}
end
return {reply, redis.call('ZCARD', OPEN), redis.call('ZCARD', RES), redis.call('XLEN', DEAD)}
