-- In front of every script: the names of keys.py (`Keys.shared`), the clock, and the consumer group.
local Q0, Q1, QC, OPEN, RES, GONE, RELEASED, DEAD, WAITING, WORKERS, LEAVING, CLOSED, TURN, OWED, JOB =
  unpack(KEYS)
local GROUP = 'g'

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

-- Whether `owner` holds this entry in its pending list.
local function holds(queue, entry, owner)
  local pending = redis.pcall('XPENDING', queue, GROUP, entry, entry, 1, owner)
  return pending.err == nil and #pending > 0
end
