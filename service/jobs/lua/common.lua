-- In front of every script: the names of keys.py (`Keys.shared`), the clock, and the consumer group.
local Q0, Q1, QC, OPEN, RES, GONE, RELEASED, DEAD, RATE, WORKERS, JOB = unpack(KEYS)
local GROUP = 'g'
local RATE_WINDOW_MS = 10000

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

-- Whether `owner` holds this entry in its pending list.
local function holds(queue, entry, owner)
  local pending = redis.pcall('XPENDING', queue, GROUP, entry, entry, 1, owner)
  return pending.err == nil and #pending > 0
end

-- Finished jobs per second over the last window or two; 0 when none finished.
local function finish_rate()
  local f = redis.call('HMGET', RATE, 'since', 'count', 'before')
  local elapsed = now - (tonumber(f[1]) or 0)
  if elapsed > 2 * RATE_WINDOW_MS then return 0 end
  local count, before = tonumber(f[2]), tonumber(f[3])
  return (count + before) * 1000 / (elapsed + (before > 0 and RATE_WINDOW_MS or 0) + 1)
end
