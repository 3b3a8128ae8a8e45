#!lua
-- Sets a denial or takes it away, and appends the notice of it in the same step: behind these lines comes append.lua.
--
-- KEYS: append.lua's, then the denials: a sorted set of names, each with the second since when it holds
-- ARGV: append.lua's, then the name, since when ('' takes the denial away), the second before which denials hold for no token
--       any more, the most of them, their longest life in ms
-- Returns what append.lua does, or 'full' and nothing is done
local denials = table.remove(KEYS)
local life_ms, denials_max = table.remove(ARGV), tonumber(table.remove(ARGV))
local horizon, since, name = table.remove(ARGV), table.remove(ARGV), table.remove(ARGV)
redis.call('ZREMRANGEBYSCORE', denials, '-inf', '(' .. horizon)
if since == '' then
  redis.call('ZREM', denials, name)
elseif redis.call('ZCARD', denials) >= denials_max and not redis.call('ZSCORE', denials, name) then
  return 'full'
else
  redis.call('ZADD', denials, since, name)
  redis.call('PEXPIRE', denials, life_ms)
end
