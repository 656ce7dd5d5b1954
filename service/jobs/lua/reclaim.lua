-- Takes one job whose worker has been silent for a lease. ARGV: pairs of queue and cursor, then the ids held here.
-- Returns the cursors to go on from, and the job.
local owner, hint, lease_ms, count = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local LOOKS = 100
local held = {}
for i = 5 + 2 * count, #ARGV do held[ARGV[i]] = true end

local function take(queue, entry)
  local item = redis.call('XRANGE', queue, entry, entry)[1]
  if not item then
    acknowledge(queue, entry)
    return nil
  end
  local id = item[2][2]
  if held[id] then return nil end
  local f = redis.call('HMGET', JOB .. id, 'state', 'owner')
  if f[1] == 'R' and f[2] ~= owner then redis.call('HSET', JOB .. id, 'suspect', 1) end
  return attempt(id, queue, entry, owner, hint)
end

-- One XAUTOCLAIM looks at few entries only, hence the loop until the cursor is back at the start.
local function search(queue, cursor)
  for _ = 1, LOOKS do
    local reply = redis.pcall('XAUTOCLAIM', queue, GROUP, owner, lease_ms, cursor, 'COUNT', 1, 'JUSTID')
    if reply.err then return '0-0', nil end
    cursor = reply[1]
    local job = reply[2][1] and take(queue, reply[2][1])
    if job or cursor == '0-0' then return cursor, job end
  end
  return cursor, nil
end

local cursors, job = {}, nil
for i = 1, count do
  local queue, cursor = ARGV[3 + 2 * i], ARGV[4 + 2 * i]
  if not job then cursor, job = search(queue, cursor) end
  cursors[i] = cursor
end
return {cursors, job or false}
