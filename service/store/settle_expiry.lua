-- Makes the expiry set agree with a session's hash, for an id that is due and has nothing to expire. Such an id
-- would stay due for ever: its hash is gone, or its expiry was applied, and then Clerk told of an open session
-- with the same expire_at. Returns 1 if the session still has to expire, else 0.

local
  session_key,  -- {clerk}:session:<session id>    hash    status, _expire_at (ms, or empty), _message:<message id>
  expiry_key    -- {clerk}:expiry                  zset    ids of open sessions by expire_at (ms)
  = unpack(KEYS)
local
  session_id
  = unpack(ARGV)

local status, expire_at = unpack(redis.call('HMGET', session_key, 'status', '_expire_at'))
local is_open = status == 'active' or status == 'pending'

if is_open and expire_at and expire_at ~= ''
  and redis.call('HEXISTS', session_key, '_message:exp_' .. session_id .. '_' .. expire_at) == 0 then
  redis.call('ZADD', expiry_key, expire_at, session_id)
  return 1
end
redis.call('ZREM', expiry_key, session_id)
return 0
