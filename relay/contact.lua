#!lua flags=allow-oom
-- The first contact with a shard: gives it its first epoch, so that its end is a place before anything was published.
-- What it writes is small and written once, so a server without memory for events takes it too.
--
-- KEYS: shard
-- ARGV: a fresh epoch's token
-- Returns nothing
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
if redis.call('HEXISTS', KEYS[1], 'epoch') == 0 then
  local s = redis.call('HGET', KEYS[1], 's') or '0'
  local replid = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
  redis.call('HSET', KEYS[1], 's', s, 'last', now .. '-' .. s, 'epoch', ARGV[1], 'replid', replid)
end
