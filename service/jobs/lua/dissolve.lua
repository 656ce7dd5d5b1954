-- Forgets a revision of which nothing is left: no job, result, tombstone or worker, and closed for a while, since a
-- worker that leaves closes it again at each of its beats. Returns 1 when it is forgotten.
local QUIET_MS = 60000
local LONGEST_JOB_MS = 2 * 3600000
redis.call('ZREMRANGEBYSCORE', WORKERS, '-inf', now)
for _, key in ipairs({OPEN, RES, GONE, WORKERS}) do
  if redis.call('EXISTS', key) == 1 then return 0 end
end
local closed = tonumber(redis.call('GET', CLOSED))
if not closed or now - closed < QUIET_MS then return 0 end
redis.call('DEL', Q0, Q1, QC, RELEASED, WAITING)
-- A gateway that stood still all the time must not find the door open.
redis.call('PEXPIRE', CLOSED, LONGEST_JOB_MS)
return 1
