#!lua
-- Leaves a process's figures where the others find them, and drops what was left by processes that are gone.
--
-- KEYS: fleet (hash: a process's name to when it left them, in ms, and its figures)
-- ARGV: name, figures, how long they count in ms
local life = tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local stored = redis.call('HGETALL', KEYS[1])
for k = 1, #stored, 2 do
  if tonumber(string.match(stored[k + 1], '^%d+')) + life < now then redis.call('HDEL', KEYS[1], stored[k]) end
end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', now) .. ' ' .. ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return true
