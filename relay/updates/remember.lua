#!lua
-- Writes what is known of a source, if this process still has its lease.
--
-- KEYS: shard 0, place, seen, the status of all sources
-- ARGV: field and value of the fence, name, place ('' for none), status, life of what was seen in ms,
--       then in pairs: an item's digest, and since when (in s) it is no longer shown; 0: it is shown; -1: forget it
-- Returns 1, or 0 if another process has the lease
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
if ARGV[4] ~= '' then redis.call('SET', KEYS[2], ARGV[4]) end
redis.call('HSET', KEYS[4], ARGV[3], ARGV[5])
for k = 7, #ARGV, 2 do
  if ARGV[k + 1] == '-1' then redis.call('HDEL', KEYS[3], ARGV[k])
  else redis.call('HSET', KEYS[3], ARGV[k], ARGV[k + 1]) end
end
redis.call('PEXPIRE', KEYS[3], ARGV[6])
return 1
