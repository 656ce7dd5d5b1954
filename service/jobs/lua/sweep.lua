-- Ends jobs whose deadline has passed (returns how many, 100 at most), drops results whose time is over, and forgets old tombstones.
local TOMBSTONE_MS = 3600000
local late = redis.call('ZRANGEBYSCORE', OPEN, '-inf', now, 'LIMIT', 0, 100)
for _, id in ipairs(late) do
  -- Without its hash (a damaged append-only file) an id would count as open for ever.
  if not terminate(id, 'X', '', 'deadline_passed', 'the deadline passed before the job was done') then
    redis.call('ZREM', OPEN, id)
  end
end
drop_expired(200)
redis.call('ZREMRANGEBYSCORE', GONE, '-inf', now - TOMBSTONE_MS)
return #late
