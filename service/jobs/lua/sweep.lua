-- Ends jobs whose deadline has passed (returns how many, 100 at most), drops results whose time is over, and forgets old tombstones.
local TOMBSTONE_MS = 3600000
local late = redis.call('ZRANGEBYSCORE', OPEN, '-inf', now, 'LIMIT', 0, 100)
for _, id in ipairs(late) do
  -- Without its hash (a damaged append-only file) an id would count as open for ever.
  if not terminate(id, 'X', '', 'deadline_passed', 'the deadline passed before the job was done') then
    redis.call('ZREM', OPEN, id)
  end
end
-- Such a file also leaves entries without an open job, which would count as waiting for ever.
for _, queue in ipairs({Q0, Q1, QC}) do
  local oldest = redis.call('XRANGE', queue, '-', '+', 'COUNT', 1)[1]
  if oldest then
    local f = redis.call('HMGET', JOB .. oldest[2][2], 'state', 'entry')
    if (f[1] ~= 'Q' and f[1] ~= 'R') or f[2] ~= oldest[1] then acknowledge(queue, oldest[1]) end
  end
end
-- Damage may also have left rows behind that nobody waits for.
if redis.call('ZCARD', OPEN) == 0 then redis.call('DEL', WAITING) end
drop_expired(200)
redis.call('ZREMRANGEBYSCORE', GONE, '-inf', now - TOMBSTONE_MS)
return #late
