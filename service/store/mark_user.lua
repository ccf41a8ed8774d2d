-- Records that a user is deleted or banned: before the user's sessions are ended, so that none which comes meanwhile
-- stays open, and after, so that the same event is a duplicate. docs/contract.md, section 10.
--
-- Returns `duplicate` if all sessions were ended by this event before; else `recorded`.

local
  gone_key      -- {clerk}:user:<user id>:gone    hash, TTL    deleted, banned: the event, JSON, as it is published;
                --                                             deleted_at, banned_at: ms; the latest of each counts;
                --                                             done: " <message id>", up to 16 times
  = unpack(KEYS)
local
  kind,         -- deleted | banned
  at_ms,
  event,
  message_id,
  is_done,      -- 1: all sessions have been ended; else 0
  ttl_ms
  = unpack(ARGV)

-- A mark that could not be given its TTL would stay for ever. Redis 6.2 can't be asked.
if redis.acl_check_cmd then
  for _, command in ipairs({ { 'HSET', gone_key, '', '' }, { 'PEXPIRE', gone_key, '1' } }) do
    if not redis.acl_check_cmd(unpack(command)) then
      return redis.error_reply('NOPERM this user may not run ' .. command[1] .. ' on ' .. command[2])
    end
  end
end

local done, stored_at = unpack(redis.call('HMGET', gone_key, 'done', kind .. '_at'))
local is_duplicate = done and string.find(done .. ' ', ' ' .. message_id .. ' ', 1, true)

if is_done == '1' and not is_duplicate then
  done = (done or '') .. ' ' .. message_id
  local _, count = string.gsub(done, ' ', ' ')
  redis.call('HSET', gone_key, 'done', count > 16 and string.gsub(done, '^ %S+', '') or done)
elseif not is_duplicate and not (stored_at and tonumber(stored_at) >= tonumber(at_ms)) then
  redis.call('HSET', gone_key, kind, event, kind .. '_at', at_ms)
end
-- Also for a duplicate, so that the WAIT that follows covers the first write.
redis.call('PEXPIRE', gone_key, ttl_ms)
return is_duplicate and 'duplicate' or 'recorded'
