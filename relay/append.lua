#!lua
-- Appends events, each under one id to its shard's journal and to its topic's stream.
--
-- KEYS: journal, shard, then for each event: topic, head, idempotency (the head again where the event has no key)
-- ARGV: retention in ms, journal's most events, topic's most events, life of an idempotency key in ms, a fresh epoch's token,
--       then for each event: topic, name, data, hash of name and data ('' where it has no key)
-- Returns for each event: id, n, 0 appended | 1 duplicate | 2 key reused for something else, epoch
--
-- shard: s (dense count of its events), last (id), epoch, replid (the master_replid under which the epoch began), and for
--        each past epoch a field 'e:<token>' = '<its last id> <closed at, ms>'
-- head:  n and last (number and id of the topic's newest event), first (number of the first one of this life)
local journal, shard = KEYS[1], KEYS[2]
local retention = tonumber(ARGV[1])
local journal_max, topic_max, idempotency_ms = ARGV[2], ARGV[3], ARGV[4]
local function int(x) return string.format('%.0f', x) end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local state = redis.call('HMGET', shard, 's', 'last', 'epoch', 'replid')
local s, last, epoch = tonumber(state[1] or 0), state[2], state[3]
local replid = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
local ms = math.max(now, last and tonumber(string.match(last, '^%d+')) or 0)

-- Another server, or another life of it, may have lost events that clients saw, so their places end with the epoch.
local function open_epoch()
  if epoch then
    redis.call('HSET', shard, 'e:' .. epoch, last .. ' ' .. int(now))
    local fields = redis.call('HGETALL', shard)
    for k = 1, #fields, 2 do
      local closed = string.sub(fields[k], 1, 2) == 'e:' and string.match(fields[k + 1], ' (%d+)$')
      if closed and tonumber(closed) + 3 * retention < now then redis.call('HDEL', shard, fields[k]) end
    end
  end
  epoch = ARGV[5]
  redis.call('HSET', shard, 'epoch', epoch, 'replid', replid)
end

local answers = {}
for k = 1, (#KEYS - 2) / 3 do
  local topic, head, idempotency = KEYS[3 * k], KEYS[3 * k + 1], KEYS[3 * k + 2]
  local name, event, data, hash = ARGV[4 * k + 2], ARGV[4 * k + 3], ARGV[4 * k + 4], ARGV[4 * k + 5]
  local first = hash ~= '' and redis.call('HMGET', idempotency, 'id', 'n', 'hash', 'epoch')
  if first and first[1] then
    answers[k] = {first[1], first[2], first[3] == hash and 1 or 2, first[4]}
  else
    local known = redis.call('HMGET', head, 'n', 'last', 'first')
    if not epoch or state[4] ~= replid then
      open_epoch()
      state[4] = replid
    end
    s = s + 1
    last = int(ms) .. '-' .. int(s)
    -- A topic whose head is forgotten goes on from s, which never repeats.
    local n = int(known[1] and tonumber(known[1]) + 1 or s)
    local before = known[2] or '0-0'
    redis.call('HSET', shard, 's', int(s), 'last', last)
    redis.call('XADD', journal, 'MAXLEN', '~', journal_max, last, 't', name, 'E', epoch, 'n', n, 'p', before, 'e', event, 'd', data)
    redis.call('XADD', topic, 'MAXLEN', '~', topic_max, last, 't', name, 'E', epoch, 'n', n, 'p', before, 'e', event, 'd', data)
    redis.call('XTRIM', topic, 'MINID', '~', int(ms - retention))
    redis.call('HSET', head, 'n', n, 'last', last, 'first', known[3] or n)
    redis.call('PEXPIRE', topic, ARGV[1])
    redis.call('PEXPIRE', head, int(3 * retention))
    if first then
      redis.call('HSET', idempotency, 'id', last, 'n', n, 'hash', hash, 'epoch', epoch)
      redis.call('PEXPIRE', idempotency, idempotency_ms)
    end
    answers[k] = {last, n, 0, epoch}
  end
end
redis.call('XTRIM', journal, 'MINID', '~', int(ms - retention))
return answers
