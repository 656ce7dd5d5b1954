-- Takes jobs without waiting until their images number `limit`: the entry that a blocking read brought, what this
-- owner holds without knowing it, then what another worker released, then the queues in the given order. The last job
-- may go over the limit.
local owner, hint, recover, limit, count = ARGV[1], ARGV[2], ARGV[3] == '1', tonumber(ARGV[4]), tonumber(ARGV[5])
local read_queue, read_entry, read_id = unpack(ARGV, 6, 8)
local queues = {unpack(ARGV, 9, 8 + count)}
local jobs = {}
local images = 0
local LOOKS = 100

local function full() return images >= limit end

local function start(id, queue, entry)
  local job = attempt(id, queue, entry, owner, hint)
  if job then
    jobs[#jobs + 1] = job
    images = images + tonumber(job[8])
  end
end

local function read(queue, from, most)
  local reply = redis.pcall('XREADGROUP', 'GROUP', GROUP, owner, 'COUNT', most, 'STREAMS', queue, from)
  if reply and reply.err then
    if not string.find(reply.err, 'NOGROUP', 1, true) then return reply end
    redis.call('XGROUP', 'CREATE', queue, GROUP, 0, 'MKSTREAM')
    reply = redis.call('XREADGROUP', 'GROUP', GROUP, owner, 'COUNT', most, 'STREAMS', queue, from)
  end
  return reply and reply[1][2] or {}
end

local function unknown_own()
  local held = {[read_id] = true}
  for i = 9 + count, #ARGV do held[ARGV[i]] = true end
  for _, queue in ipairs(queues) do
    local entries = read(queue, '0', 1000)
    if entries.err then return entries end
    for _, item in ipairs(entries) do
      local id = item[2] and item[2][2]
      -- A released entry stays in this list until somebody takes it.
      if id and not held[id] and not redis.call('ZSCORE', RELEASED, id) then
        start(id, queue, item[1])
        if full() then return end
      end
    end
  end
end

local function released()
  local wanted = {}
  for _, queue in ipairs(queues) do wanted[queue] = true end
  for _, id in ipairs(redis.call('ZRANGE', RELEASED, 0, LOOKS)) do
    local f = redis.call('HMGET', JOB .. id, 'queue', 'entry')
    if not f[1] then
      redis.call('ZREM', RELEASED, id)
    elseif wanted[f[1]] then
      local taken = redis.pcall('XCLAIM', f[1], GROUP, owner, 0, f[2], 'JUSTID')
      redis.call('ZREM', RELEASED, id)
      if not taken.err and #taken > 0 then start(id, f[1], f[2]) end
      if full() then return end
    end
  end
end

local function next_in(queue)
  for _ = 1, LOOKS do
    local entries = read(queue, '>', 1)
    if entries.err then return entries end
    for _, item in ipairs(entries) do start(item[2][2], queue, item[1]) end
    if #entries == 0 or full() then return nil end
  end
end

-- Another worker may have taken it meanwhile.
if read_id ~= '' and holds(read_queue, read_entry, owner) then start(read_id, read_queue, read_entry) end
if recover and not full() then
  local failure = unknown_own()
  if failure then return failure end
end
if not full() then released() end
for _, queue in ipairs(queues) do
  local failure = not full() and next_in(queue)
  if failure then return failure end
end
return jobs
