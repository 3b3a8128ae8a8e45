#!lua flags=no-writes
-- Reads topics of one shard after a place, and says whether the place is valid, all in one step.
--
-- KEYS: shard, then for each topic: stream, head
-- ARGV: epoch and id of the place, most entries of each topic, most bytes of data of each topic,
--       k ('' or: begin with the newest k entries of each topic instead of after the place),
--       then for each topic the id to begin after ('' for the place's)
-- Returns 'new' for a shard that nobody has met yet (contact.lua); else 'ok' | 'reset', epoch, last id, now in ms; and if ok for
--       each topic: entries, 1 if there are no more, head's n, last and first, the id it began after
local epoch_asked, id_asked = ARGV[1], ARGV[2]
local entries_max, bytes_max, newest_count = tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local FIRST_STEP = 32 -- entries; doubled while there is room, so that a few large events don't fill memory

local function not_after(a, b)
  local a_ms, a_s = string.match(a, '(%d+)-(%d+)')
  local b_ms, b_s = string.match(b, '(%d+)-(%d+)')
  if a_ms ~= b_ms then return #a_ms < #b_ms or #a_ms == #b_ms and a_ms < b_ms end
  return #a_s < #b_s or #a_s == #b_s and a_s <= b_s
end

local state = redis.call('HMGET', KEYS[1], 'epoch', 'last', 'e:' .. epoch_asked)
local epoch, last, closed = unpack(state)
if not epoch then return {'new'} end
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))

local valid = false
if epoch_asked == '0' then valid = id_asked == '0-0'
elseif epoch_asked == epoch then valid = not_after(id_asked, last)
elseif closed then valid = not_after(id_asked, string.match(closed, '^%S+')) end
if not valid then return {'reset', epoch, last, now} end

local topics = {}
for k = 2, #KEYS, 2 do
  local start = ARGV[5 + k / 2]
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
  topics[k / 2] = {entries, ended and 1 or 0, redis.call('HMGET', KEYS[k + 1], 'n', 'last', 'first'), start}
end
return {'ok', epoch, last, now, topics}
