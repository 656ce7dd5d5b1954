-- Charges a tenant for requests and images or says which limit is in the way; negative numbers give back.
-- Requests: GCRA, `full` is when the whole burst is free again. Images: counted until midnight UTC.
local DAY_MS = 86400000
local key = KEYS[1] .. ARGV[1]
local requests, interval, burst, images, daily = unpack(ARGV, 2, 6)
requests, interval, burst, images, daily =
  tonumber(requests), tonumber(interval), tonumber(burst), tonumber(images), tonumber(daily)

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local today = math.floor(now / DAY_MS)
local f = redis.call('HMGET', key, 'full', 'day', 'images')
local full = math.max(tonumber(f[1]) or 0, now)
local used = tonumber(f[2]) == today and tonumber(f[3]) or 0

local wait = full + (requests - burst) * interval - now
if requests > 0 and wait > 0 then return {'REQUESTS', math.ceil(wait), 0} end
if images > 0 and used + images > daily then
  return {'IMAGES', (today + 1) * DAY_MS - now, math.max(daily - used, 0)}
end
full = math.max(full + requests * interval, now)
used = math.max(used + images, 0)
redis.call('HSET', key, 'full', string.format('%.3f', full), 'day', today, 'images', used)
redis.call('PEXPIRE', key, math.ceil(math.max(full - now, DAY_MS)))
if interval == 0 then return {'OK', 0, 0} end
return {'OK', math.ceil(full - now), math.floor(burst - (full - now) / interval + 0.001)}
