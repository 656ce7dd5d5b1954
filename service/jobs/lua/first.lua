-- The job that an idempotency key led to, with its fingerprint; an empty list for none.
local known = redis.call('GET', ARGV[1])
local its = known and redis.call('HGET', JOB .. known, 'fingerprint')
return its and {known, its} or {}
