-- Accepts a job or says why not. Submitting an id again changes nothing.
local id, queue, inbox, tenant_key, idem_key, events_key = unpack(ARGV, 1, 6)
local kind, tenant, fingerprint, payload, rows, keep, events, again = unpack(ARGV, 7, 14)
local deadline, ttl, open_limit, tenant_limit, result_limit = unpack(ARGV, 15, 19)
local LONGEST_RETRY_MS = 60000

local function retry_after()
  local rate = finish_rate()
  if rate == 0 then return 10000 end
  return math.min(math.max(math.ceil(redis.call('ZCARD', OPEN) * 1000 / rate), 1000), LONGEST_RETRY_MS)
end

local function full()
  local open = redis.call('ZCARD', OPEN)
  if open >= tonumber(open_limit) then return retry_after() end
  if open + redis.call('ZCARD', RES) < tonumber(result_limit) then return nil end
  local oldest = redis.call('ZRANGE', RES, 0, 0, 'WITHSCORES')
  if #oldest == 0 then return retry_after() end
  return math.min(math.max(oldest[2] - now, 1000), LONGEST_RETRY_MS)
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
drop_expired(100)
local wait_ms = full()
if wait_ms then return {'FULL', wait_ms} end
if redis.call('SCARD', tenant_key) >= tonumber(tenant_limit) then return {'TENANT', retry_after()} end

local entry = redis.call('XADD', queue, '*', 'id', id)
redis.call('HSET', JOB .. id, 'state', 'Q', 'queue', queue, 'entry', entry, 'inbox', inbox, 'owner', '',
  'tenant_key', tenant_key, 'idem_key', idem_key, 'events_key', events_key, 'kind', kind, 'tenant', tenant,
  'fingerprint', fingerprint, 'payload', payload, 'rows', rows, 'keep', keep, 'events', events, 'ttl', ttl,
  'deadline', now + deadline, 'created', now, 'started', 0, 'attempts', 0, 'solo', 0, 'suspect', 0)
redis.call('ZADD', OPEN, now + deadline, id)
redis.call('SADD', tenant_key, id)
if idem_key ~= '' then redis.call('SET', idem_key, id) end
return {'OK', id}
