-- The state of each job, '' where it is unknown, 'gone' where its result has expired. ARGV: id, tombstone, …
local states = {}
for i = 1, #ARGV, 2 do
  local state = redis.call('HGET', JOB .. ARGV[i], 'state')
  states[#states + 1] = state or (redis.call('ZSCORE', GONE, ARGV[i + 1]) and 'gone' or '')
end
return states
