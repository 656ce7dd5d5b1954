-- One job as its submitter may see it; an empty list when it is unknown, 'gone' when its result has expired.
local id, tombstone = unpack(ARGV)
local MOST = 100
local key = JOB .. id

local function ahead(queue, entry)
  local from = '-'
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', queue)) do from = '(' .. group[8] end
  return #redis.call('XRANGE', queue, from, '(' .. entry, 'COUNT', MOST)
end

local f = redis.call('HMGET', key, 'state', 'kind', 'tenant', 'created', 'started', 'finished', 'attempts',
  'error_code', 'error_message', 'result', 'rows', 'cost', 'queue', 'entry')
if not f[1] then return redis.call('ZSCORE', GONE, tombstone) and {'gone'} or {} end
local position, rows, cost = -1, '0', '0'
if f[1] == 'Q' then
  rows, cost = f[11] or '1', f[12] or '1'
  position = redis.call('ZSCORE', RELEASED, id) and 0 or ahead(f[13], f[14])
end
return {f[1], f[2], f[3], f[4], f[5], f[6], f[7], f[8], f[9], f[10], rows, cost, position}
