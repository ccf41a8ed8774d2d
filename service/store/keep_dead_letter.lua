-- Keeps a delivery that could not be read, once per message id, while there is room.
--
-- KEYS  1  {clerk}:dead-letters    hash    message id -> the delivery, as JSON
-- ARGV  1  message id    2  the delivery    3  dead letters kept at most
--       4  confirm (1|0): write even if it is there already, so that the WAIT that follows covers it
--
-- Returns kept | full

local letters_key, message_id = KEYS[1], ARGV[1]

if redis.call('HEXISTS', letters_key, message_id) == 1 then
  if ARGV[4] == '1' then
    redis.call('HSET', letters_key, message_id, redis.call('HGET', letters_key, message_id))
  end
  return 'kept'
end
if redis.call('HLEN', letters_key) >= tonumber(ARGV[3]) then
  return 'full'
end
local reply = redis.pcall('HSET', letters_key, message_id, ARGV[2])
if type(reply) == 'table' and reply.err then
  -- Redis 6.2 puts the place in the script before an error.
  return redis.error_reply(string.match(reply.err, ': %-(%u+ .*)$') or reply.err)
end
return 'kept'
