-- Records a result or an error; 0 means that it came too late. A result counts from any attempt, since the seed
-- contract makes all attempts by the same weights equal; an error only from the current one.
local id, owner, number, state, result, code, message = unpack(ARGV)
if state == 'E' then
  local f = redis.call('HMGET', JOB .. id, 'state', 'owner', 'attempts')
  if f[1] ~= 'R' or f[2] ~= owner or f[3] ~= number then return 0 end
end
return terminate(id, state, result, code, message) and 1 or 0
