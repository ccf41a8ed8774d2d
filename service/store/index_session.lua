-- Puts an open session into the set of its user that it belongs to: one whose state an earlier version wrote, which did
-- not index pending sessions, or one that got lost from the set.
--
-- Returns {'indexed'} if it was in neither set, else {'kept'}; {'other_partitions', number}, and does nothing, if the data
-- is not divided into `partitions`.

local
  session_key,  -- {clerk}:session:<session id>         hash    status, live, user_id, _expire_at (ms, or empty)
  user_key,     -- {clerk}:user:<user id>:sessions      zset    ids of the user's live sessions
  pending_key,  -- {clerk}:user:<user id>:pending       zset    ids of the user's other open sessions
  layout_key    -- {clerk}:partitions                   hash    see mark_partitions.lua; often absent
  = unpack(KEYS)
local
  session_id,
  user_id,
  partitions    -- PARTITIONS
  = unpack(ARGV)

local marked = redis.call('HMGET', layout_key, 'partitions')[1]
if marked and marked ~= partitions then
  return { 'other_partitions', marked }
end

local status, live, stored_user_id, expire_at = unpack(
  redis.call('HMGET', session_key, 'status', 'live', 'user_id', '_expire_at'))
if (status ~= 'active' and status ~= 'pending') or stored_user_id ~= user_id
  or redis.call('ZSCORE', user_key, session_id) or redis.call('ZSCORE', pending_key, session_id) then
  return { 'kept' }
end
local key = live == '1' and user_key or pending_key
redis.call('ZADD', key, expire_at and expire_at ~= '' and expire_at or '+inf', session_id)
local ttl_ms = redis.call('PTTL', session_key)
if redis.call('PTTL', key) < ttl_ms then
  redis.call('PEXPIRE', key, ttl_ms)
end
return { 'indexed' }
