-- Accepts a job or says why not. Submitting an id again changes nothing.
local id, queue, inbox, tenant_key, idem_key, events_key = unpack(ARGV, 1, 6)
local kind, tenant, fingerprint, payload, rows, cost, trace, keep, events, again = unpack(ARGV, 7, 16)
local deadline, ttl, open_limit, tenant_limit, result_limit = unpack(ARGV, 17, 21)
-- What the gateway forecasts: see Forecast in speed.py.
local run_ms, at_once, rows_per_ms = tonumber(ARGV[22]), tonumber(ARGV[23]), tonumber(ARGV[24])

-- For so long after a job that Redis had lost found no room, there is none for new jobs in any gateway.
local OWED_MS = 4000

local function refused(verdict, number)
  return {verdict, number, unpack(redis.call('HMGET', WAITING, Q0, Q1, QC))}
end

-- Milliseconds until there may be room, 0 when that depends on the backlog, nil when there is room.
local function full()
  local open = redis.call('ZCARD', OPEN)
  if open >= tonumber(open_limit) then return 0 end
  if again == '0' and redis.call('EXISTS', OWED) == 1 then return 0 end
  if open + redis.call('ZCARD', RES) < tonumber(result_limit) then return nil end
  drop_expired(100)
  if open + redis.call('ZCARD', RES) < tonumber(result_limit) then return nil end
  local oldest = redis.call('ZRANGE', RES, 0, 0, 'WITHSCORES')
  return #oldest == 0 and 0 or math.max(oldest[2] - now, 1)
end

-- Milliseconds that the job needs at best, if that is more than it has. One that was accepted once is not judged.
local function late()
  if again == '1' or run_ms == 0 and rows_per_ms == 0 then return nil end
  local needed = run_ms
  if rows_per_ms > 0 then
    local before = tonumber(redis.call('HGET', WAITING, queue) or 0)
    needed = needed + math.max(before - at_once, 0) / rows_per_ms
  end
  return needed > tonumber(deadline) and math.ceil(needed) or nil
end

if redis.call('EXISTS', JOB .. id) == 1 then return {'DUP', id} end
if idem_key ~= '' then
  local known = redis.call('GET', idem_key)
  local its = known and redis.call('HGET', JOB .. known, 'fingerprint')
  -- A job that is submitted again after Redis lost it was accepted once: it runs beside a younger namesake.
  if its and again == '1' then
    idem_key = ''
  elseif its then
    return its == fingerprint and {'DUP', known} or {'CONFLICT', known}
  end
end
if again == '0' and redis.call('EXISTS', CLOSED) == 1 then return {'MOVED', id} end
local wait_ms = full()
if wait_ms then
  if again == '1' then redis.call('SET', OWED, 1, 'PX', OWED_MS) end
  return refused('FULL', wait_ms)
end
if again == '0' and redis.call('SCARD', tenant_key) >= tonumber(tenant_limit) then return refused('TENANT', 0) end
local needed_ms = late()
if needed_ms then return refused('LATE', needed_ms) end

local entry = redis.call('XADD', queue, '*', 'id', id)
-- What the first attempt writes is left out until then: a queued job should be small.
redis.call('HSET', JOB .. id, 'state', 'Q', 'queue', queue, 'entry', entry, 'inbox', inbox,
  'tenant_key', tenant_key, 'idem_key', idem_key, 'events_key', events_key, 'kind', kind, 'tenant', tenant,
  'fingerprint', fingerprint, 'payload', payload, 'rows', rows, 'cost', cost, 'trace', trace, 'keep', keep,
  'events', events, 'ttl', ttl, 'deadline', now + deadline, 'created', now)
redis.call('ZADD', OPEN, now + deadline, id)
redis.call('SADD', tenant_key, id)
redis.call('HINCRBY', WAITING, queue, cost)
if idem_key ~= '' then redis.call('SET', idem_key, id) end
return {'OK', id}
