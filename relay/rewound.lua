#!lua flags=allow-oom
-- Ends the shard's epoch if the log had been further in it: an older copy has come into this life of the server, whose
-- master_replid is the same as before, so that the append script sees nothing of it.
--
-- KEYS: shard, journal
-- ARGV: epoch and id of a place that was the log's for certain (never one that a client sent), a fresh epoch's token
-- Returns 1 if it has ended the epoch, else 0
--
-- Within an epoch both parts of an id only grow. So the copy ends where the first entry that is later than the known place and
-- counts less says so, or where the log ends. What was appended after the copy came is later than all that was known before; its
-- places stay good: the epoch has two parts, up to the copy's end, and from there to where it is ended here.
local state = redis.call('HMGET', KEYS[1], 'epoch', 'last')
local epoch, last = state[1], state[2]
if epoch ~= ARGV[1] then return 0 end
local function numbers(id)
  local ms, s = string.match(id, '(%d+)-(%d+)')
  return tonumber(ms), tonumber(s)
end
local function int(x) return string.format('%.0f', x) end
local known_ms, known_s = numbers(ARGV[2])
local last_ms, last_s = numbers(last)
local later = redis.call('XRANGE', KEYS[2], '(' .. ARGV[2], '+', 'COUNT', 1)[1]
local closed
if later then
  local ms, s = numbers(later[1])
  if s > known_s then return 0 end
  closed = int(known_ms) .. '-' .. int(s - 1)
  if ms > known_ms then later = int(ms) .. '-' .. int(s - 1) .. ' ' .. last else later = nil end
elseif known_ms <= last_ms and known_s <= last_s then
  return 0
else
  -- Without an entry that tells where the copy ends, nothing that was appended after it came may pass for what was before.
  closed = last_ms <= known_ms and last or '0-0'
end
local time = redis.call('TIME')
local now = int(time[1] * 1000 + math.floor(time[2] / 1000))
local replid = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
redis.call('HSET', KEYS[1], 'e:' .. epoch, closed .. ' ' .. now .. (later and ' ' .. later or ''), 'epoch', ARGV[3], 'replid', replid)
return 1
