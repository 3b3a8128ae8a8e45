#!lua
-- Raises a fence: from now on the shard takes nothing from earlier holders of the lease.
--
-- KEYS: shard
-- ARGV: field, number, value (number and holder)
-- Returns 0, or the number that stands there and is not lower
local known = tonumber(string.match(redis.call('HGET', KEYS[1], ARGV[1]) or '', '^%d+'))
if known and known >= tonumber(ARGV[2]) then return known end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 0
