#!lua
-- Appends events, each under one id to its shard's journal and to its topic's stream.
--
-- KEYS: journal, shard, then for each event: topic, head, idempotency (the head again where the event has no key)
-- ARGV: retention in ms, journal's most events, topic's most events, life of an idempotency key in ms, a fresh epoch's token,
--       then for each event: topic, name, data, hash of name and data ('' where it has no key);
--       then, only of one who may do this only while nobody else does (relay/lease.py): the field and the value of its fence
-- Returns for each event: id, n, 0 appended | 1 duplicate | 2 key reused for something else, epoch; or 'fenced' and nothing is done
--
-- shard: s (dense count of its events), last (id), epoch, replid (the master_replid under which the epoch began), and for
--        each past epoch a field 'e:<token>' = '<its last id> <closed at, ms>' (and more: rewound.lua); and the fences of leases, 'f:<lease>'
-- head:  n and last (number and id of the topic's newest event), first (number of the first one of this life)
local journal, shard = KEYS[1], KEYS[2]
local retention = tonumber(ARGV[1])
local journal_max, topic_max, idempotency_ms = ARGV[2], ARGV[3], ARGV[4]
local function int(x) return string.format('%.0f', x) end

local fence = ARGV[4 * (#KEYS - 2) / 3 + 6]
if fence and redis.call('HGET', shard, fence) ~= ARGV[#ARGV] then return 'fenced' end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local state = redis.call('HMGET', shard, 's', 'last', 'epoch', 'replid')
local s, last, epoch = tonumber(state[1] or 0), state[2], state[3]
local replid = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
local ms = math.max(now, last and tonumber(string.match(last, '^%d+')) or 0)

-- First all is read and decided, event by event, since one may follow another of its topic or have its key; then all is
-- written. What a topic or the shard needs once is done once for the whole call.
local answers, fresh, heads, keyed = {}, {}, {}, {}
local closed_epoch, closed_at, opened = epoch, last, false
for k = 1, (#KEYS - 2) / 3 do
  local topic, head, idempotency = KEYS[3 * k], KEYS[3 * k + 1], KEYS[3 * k + 2]
  local hash = ARGV[4 * k + 5]
  local first = false
  if hash ~= '' then
    first = keyed[idempotency] or redis.call('HMGET', idempotency, 'id', 'n', 'hash', 'epoch')
  end
  if first and first[1] then
    answers[k] = {first[1], first[2], first[3] == hash and 1 or 2, first[4]}
  else
    -- Another server, or another life of it, may have lost events that clients saw, so their places end with the epoch.
    if not opened and (not epoch or state[4] ~= replid) then
      epoch, opened = ARGV[5], true
    end
    local known = heads[head]
    if not known then
      local stored = redis.call('HMGET', head, 'n', 'last', 'first')
      known = {n = tonumber(stored[1]), last = stored[2], first = stored[3], topic = topic}
      heads[head] = known
    end
    s = s + 1
    last = int(ms) .. '-' .. int(s)
    -- A topic whose head is forgotten goes on from s, which never repeats.
    known.n = known.n and known.n + 1 or s
    local n = int(known.n)
    fresh[#fresh + 1] = {k, topic, last, n, known.last or '0-0'}
    known.last, known.first = last, known.first or n
    answers[k] = {last, n, 0, epoch}
    if hash ~= '' then keyed[idempotency] = {last, n, hash, epoch} end
  end
end
if #fresh == 0 then return answers end

redis.call('HSET', shard, 's', int(s), 'last', last, 'epoch', epoch, 'replid', replid)
if opened and closed_epoch then
  redis.call('HSET', shard, 'e:' .. closed_epoch, closed_at .. ' ' .. int(now))
  local fields = redis.call('HGETALL', shard)
  for k = 1, #fields, 2 do
    local at = string.sub(fields[k], 1, 2) == 'e:' and string.match(fields[k + 1], '^%S+ (%d+)')
    if at and tonumber(at) + 3 * retention < now then redis.call('HDEL', shard, fields[k]) end
  end
end
for _, event in ipairs(fresh) do
  local k, topic, id, n, before = unpack(event)
  local name, event_name, data = ARGV[4 * k + 2], ARGV[4 * k + 3], ARGV[4 * k + 4]
  redis.call('XADD', journal, 'MAXLEN', '~', journal_max, id, 't', name, 'E', epoch, 'n', n, 'p', before, 'e', event_name, 'd', data)
  redis.call('XADD', topic, 'MAXLEN', '~', topic_max, id, 't', name, 'E', epoch, 'n', n, 'p', before, 'e', event_name, 'd', data)
end
local horizon = int(ms - retention)
redis.call('XTRIM', journal, 'MINID', '~', horizon)
for head, known in pairs(heads) do
  redis.call('XTRIM', known.topic, 'MINID', '~', horizon)
  redis.call('HSET', head, 'n', int(known.n), 'last', known.last, 'first', known.first)
  redis.call('PEXPIRE', known.topic, ARGV[1])
  redis.call('PEXPIRE', head, int(3 * retention))
end
for key, answer in pairs(keyed) do
  redis.call('HSET', key, 'id', answer[1], 'n', answer[2], 'hash', answer[3], 'epoch', answer[4])
  redis.call('PEXPIRE', key, idempotency_ms)
end
return answers
