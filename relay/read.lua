#!lua flags=no-writes
-- Reads topics of one shard after a place, and says whether the place is valid, all in one step.
--
-- KEYS: shard, journal, then for each topic: stream, head
-- ARGV: epoch and id of the place, most entries of each topic, most bytes of data of each topic,
--       k ('' or: begin with the newest k entries of each topic instead of after the place), retention in ms,
--       then for each topic the id to begin after ('' for the place's)
-- Returns 'new' for a shard that nobody has met yet (contact.lua); else 'ok' | 'reset', epoch, last id, now in ms; and if ok 1 if
--       events after the place may have left no trace, and for each topic: entries, 1 if there are no more, head's n, last and first,
--       the id it began after
local epoch_asked, id_asked = ARGV[1], ARGV[2]
local entries_max, bytes_max, newest_count = tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local FIRST_STEP = 32 -- entries; doubled while there is room, so that a few large events don't fill memory

local function numbers(id)
  local ms, s = string.match(id, '(%d+)-(%d+)')
  return tonumber(ms), tonumber(s)
end
local asked_ms, asked_s = numbers(id_asked)
-- Within an epoch both parts of an id only grow.
local function reaches(last)
  local ms, s = numbers(last)
  return asked_ms <= ms and asked_s <= s
end

local state = redis.call('HMGET', KEYS[1], 'epoch', 'last', 'e:' .. epoch_asked)
local epoch, last, closed = unpack(state)
if not epoch then return {'new'} end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local now = string.format('%.0f', now_ms)

local valid = false
if epoch_asked == '0' then valid = id_asked == '0-0'
elseif epoch_asked == epoch then valid = reaches(last)
elseif closed then
  -- Its last id; and where an older copy came into it (rewound.lua), from where to where it went on behind that.
  local last_of, from, upto = string.match(closed, '^(%S+) %S+ ?(%S*) ?(%S*)$')
  valid = reaches(last_of)
  if not valid and from ~= '' then
    local from_ms, from_s = numbers(from)
    valid = asked_ms >= from_ms and asked_s >= from_s and reaches(upto)
  end
end
if not valid then return {'reset', epoch, last, now} end

-- Heads live for three times the retention, less half of one for clocks on either side: of what was appended before this, a topic
-- without a head may have had events. That matters only for what came after the place; and where the journal still has the entry
-- right behind that, which `s` tells, all that came is no older than this entry.
local horizon = now_ms - 2 * tonumber(ARGV[6])
local untraced = false
local _, last_s = numbers(last)
if epoch_asked ~= '0' and asked_ms < horizon and asked_s < last_s then
  local next_entry = redis.call('XRANGE', KEYS[2], '(' .. id_asked, '+', 'COUNT', 1)[1]
  local next_ms, next_s = 0, 0
  if next_entry then next_ms, next_s = numbers(next_entry[1]) end
  untraced = next_s > asked_s + 1 or next_ms < horizon
end

local topics = {}
for k = 3, #KEYS, 2 do
  local start = ARGV[6 + (k - 1) / 2]
  if start == '' then start = id_asked end
  if newest_count ~= '' then
    start = last
    -- COUNT 0 answers nil, not an empty list.
    local newest = newest_count ~= '0' and redis.call('XREVRANGE', KEYS[k], '+', '-', 'COUNT', newest_count)
    if newest and #newest > 0 then
      local ms, s = string.match(newest[#newest][1], '(%d+)-(%d+)')
      start = ms .. '-' .. string.format('%.0f', s - 1)
    end
  end
  local entries, bytes, step, from, ended = {}, 0, math.min(FIRST_STEP, entries_max), '(' .. start, false
  repeat
    local part = redis.call('XRANGE', KEYS[k], from, '+', 'COUNT', step)
    for _, entry in ipairs(part) do
      entries[#entries + 1] = entry
      bytes = bytes + #entry[2][12]
    end
    ended = #part < step
    if #part > 0 then from = '(' .. part[#part][1] end
    step = math.min(2 * step, entries_max - #entries)
  until ended or step == 0 or bytes >= bytes_max
  topics[(k - 1) / 2] = {entries, ended and 1 or 0, redis.call('HMGET', KEYS[k + 1], 'n', 'last', 'first'), start}
end
return {'ok', epoch, last, now, untraced and 1 or 0, topics}
