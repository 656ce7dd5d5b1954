-- Opens ('1') or closes ('0') this revision of a model to new jobs, as part of the turn with this number. Changes
-- nothing and returns 0 when a later turn was here.
local open, number = unpack(ARGV)
local TURN_MS = 600000
if tonumber(redis.call('GET', TURN) or 0) > tonumber(number) then return 0 end
-- Longer than any turn takes; not for ever, should the clock that numbers them be set back.
redis.call('SET', TURN, number, 'PX', TURN_MS)
if open == '1' then redis.call('DEL', CLOSED) else redis.call('SET', CLOSED, now) end
return 1
