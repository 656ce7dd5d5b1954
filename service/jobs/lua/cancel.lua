-- Returns 1 when the job was cancelled now, 0 when it was terminal already, -1 when this tenant has no such job.
local id, tenant = unpack(ARGV)
if redis.call('HGET', JOB .. id, 'tenant') ~= tenant then return -1 end
return terminate(id, 'C', '', 'cancelled', 'the job was cancelled') and 1 or 0
