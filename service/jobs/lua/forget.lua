-- Drops results that their clients have received, unless they were to be kept or an idempotency key leads to them.
for _, id in ipairs(ARGV) do
  local f = redis.call('HMGET', JOB .. id, 'state', 'keep', 'idem_key')
  if f[1] and f[1] ~= 'Q' and f[1] ~= 'R' and f[2] == '0' and f[3] == '' then drop(id) end
end
return redis.status_reply('OK')
