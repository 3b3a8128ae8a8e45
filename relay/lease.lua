#!lua
-- Takes, keeps and leaves a lease. Its number, which only grows, is written here into shard 0's fence.
--
-- KEYS: the lease (its holder, until it ends), shard 0
-- ARGV: 'take' | 'keep' | 'leave', holder, life in ms, field of the fence, and its value (to take: the least that its number exceeds)
-- Returns for 'take' the number, or 0 if another has it; for the others 1, or 0 if it is no longer this holder's
local holder = redis.call('GET', KEYS[1])
local fence = redis.call('HGET', KEYS[2], ARGV[4])
if ARGV[1] == 'take' then
  if holder and holder ~= ARGV[2] then return 0 end
  local number = math.max(tonumber(fence and string.match(fence, '^%d+') or 0), tonumber(ARGV[5])) + 1
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
  redis.call('HSET', KEYS[2], ARGV[4], string.format('%.0f', number) .. ' ' .. ARGV[2])
  return number
end
if holder ~= ARGV[2] or fence ~= ARGV[5] then return 0 end
if ARGV[1] == 'keep' then redis.call('PEXPIRE', KEYS[1], ARGV[3]) else redis.call('DEL', KEYS[1]) end
return 1
