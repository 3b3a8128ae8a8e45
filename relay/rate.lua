#!lua
-- Takes from a limit of so much a second, for the whole fleet: the generic cell rate algorithm (ITU-T I.371, Annex A).
--
-- KEYS: the limit's due time, in µs (when all that was taken is paid back)
-- ARGV: µs that one costs, how many are taken, µs that the due time may lie ahead
-- Returns 0 if they are taken, else in how many µs to come back
--
-- Several may be taken at once while there is room for one: a batch is never too large, but the next one waits for it.
local each, number, ahead = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local due = math.max(now, tonumber(redis.call('GET', KEYS[1]) or 0))
local early = due + each - now - ahead
if early > 0 then return math.ceil(early) end

due = due + number * each
redis.call('SET', KEYS[1], string.format('%.0f', due), 'PX', math.ceil((due - now) / 1000))
return 0
