-- Lets the expiry set hold what a session's state says, for an id that was due and is nothing to expire. It
-- would be found due for ever if its hash is gone, or if its expiry was taken before and Clerk, later, still told of
-- an open session with the same expire_at.
--
-- KEYS
--   1  {clerk}:session:<session id>       hash    status, _expire_at (ms, or empty), _message:<message id>
--   2  {clerk}:expiry                     zset    ids of open sessions by expire_at (ms)
--
-- ARGV
--   1  session id
--
-- Returns 1 if the session waits for its expiry, else 0.

local session_key, expiry_key, session_id = KEYS[1], KEYS[2], ARGV[1]

local status, expire_at = unpack(redis.call('HMGET', session_key, 'status', '_expire_at'))
local is_open = status == 'active' or status == 'pending'

if is_open and expire_at and expire_at ~= ''
  and redis.call('HEXISTS', session_key, '_message:exp_' .. session_id .. '_' .. expire_at) == 0 then
  redis.call('ZADD', expiry_key, expire_at, session_id)
  return 1
end
redis.call('ZREM', expiry_key, session_id)
return 0
