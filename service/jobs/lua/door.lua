-- Opens ('1') or closes ('0') this revision of a model to new jobs.
if ARGV[1] == '1' then return redis.call('DEL', CLOSED) end
redis.call('SET', CLOSED, now)
return 1
