-- Puts an open session into the set of its user that it belongs to: one whose state an earlier version wrote, which did
-- not index pending sessions, or one that got lost from the set.
--
-- Returns 1 if it was in neither set, else 0.

local
  session_key,  -- {clerk}:session:<session id>         hash    status, live, user_id, _expire_at (ms, or empty)
  user_key,     -- {clerk}:user:<user id>:sessions      zset    ids of the user's live sessions
  pending_key   -- {clerk}:user:<user id>:pending       zset    ids of the user's other open sessions
  = unpack(KEYS)
local
  session_id,
  user_id
  = unpack(ARGV)

local status, live, stored_user_id, expire_at = unpack(
  redis.call('HMGET', session_key, 'status', 'live', 'user_id', '_expire_at'))
if (status ~= 'active' and status ~= 'pending') or stored_user_id ~= user_id
  or redis.call('ZSCORE', user_key, session_id) or redis.call('ZSCORE', pending_key, session_id) then
  return 0
end
local key = live == '1' and user_key or pending_key
redis.call('ZADD', key, expire_at and expire_at ~= '' and expire_at or '+inf', session_id)
local ttl_ms = redis.call('PTTL', session_key)
if redis.call('PTTL', key) < ttl_ms then
  redis.call('PEXPIRE', key, ttl_ms)
end
return 1
