-- Renews the lease of each job that is still running here; returns the ids that are not. Unconditional XCLAIM would
-- steal jobs back from the worker that reclaimed them.
local owner = ARGV[1]
local lost = {}
for i = 2, #ARGV, 3 do
  local id, queue, entry = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local f = redis.call('HMGET', JOB .. id, 'state', 'owner', 'entry')
  if f[1] == 'R' and f[2] == owner and f[3] == entry and holds(queue, entry, owner) then
    redis.call('XCLAIM', queue, GROUP, owner, 0, entry, 'JUSTID')
  else
    lost[#lost + 1] = id
  end
end
return lost
