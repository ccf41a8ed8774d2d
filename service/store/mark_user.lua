-- Records that a user is deleted or banned: before the user's sessions are ended, so that none which comes meanwhile
-- stays open, and after, so that the same event is a duplicate. docs/contract.md, section 10.
--
-- Returns {'duplicate'} if all sessions were ended by this event before, else {'recorded'}. Returns {'other_partitions',
-- number}, and does nothing, if the data is not divided into `partitions`.

local
  gone_key,     -- {clerk}:user:<user id>:gone    hash, TTL    deleted, banned: the event, JSON, as it is published;
                --                                             deleted_at, banned_at: ms; the latest of each counts;
                --                                             done: " <message id>", up to 16 times
  layout_key    -- {clerk}:partitions             hash, TTL    see mark_partitions.lua; often absent
  = unpack(KEYS)
local
  kind,         -- deleted | banned
  at_ms,
  event,
  message_id,
  is_done,      -- 1: all sessions have been ended; else 0
  ttl_ms,
  partitions    -- PARTITIONS
  = unpack(ARGV)

local marked = redis.call('HMGET', layout_key, 'partitions')[1]
if marked and marked ~= partitions then
  return { 'other_partitions', marked }
end

local done, stored_at = unpack(redis.call('HMGET', gone_key, 'done', kind .. '_at'))
local is_new = redis.call('EXISTS', gone_key) == 0
local is_duplicate = done and string.find(done .. ' ', ' ' .. message_id .. ' ', 1, true)

if is_done == '1' and not is_duplicate then
  done = (done or '') .. ' ' .. message_id
  local _, count = string.gsub(done, ' ', ' ')
  redis.call('HSET', gone_key, 'done', count > 16 and string.gsub(done, '^ %S+', '') or done)
elseif not is_duplicate and not (stored_at and tonumber(stored_at) >= tonumber(at_ms)) then
  redis.call('HSET', gone_key, kind, event, kind .. '_at', at_ms)
end
-- Also for a duplicate, so that the WAIT that follows covers the first write.
local reply = redis.pcall('PEXPIRE', gone_key, ttl_ms)
if type(reply) == 'table' and reply.err then
  if is_new then
    redis.pcall('DEL', gone_key) -- it would stay for ever
  end
  return reply
end
return { is_duplicate and 'duplicate' or 'recorded' }
