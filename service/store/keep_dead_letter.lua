-- Keeps a delivery that could not be read, once per message id, while there is room. Returns kept | full.

local
  dead_letters_key  -- {clerk}:dead-letters    hash    message id -> the delivery, as JSON
  = unpack(KEYS)
local
  message_id,       -- the Svix message id
  dead_letter,      -- the delivery, as JSON
  max_dead_letters, -- dead letters kept at most
  confirm           -- 1: write it even if it is there already, so that the WAIT that follows covers it; else 0
  = unpack(ARGV)

if redis.call('HEXISTS', dead_letters_key, message_id) == 1 then
  if confirm == '1' then
    redis.call('HSET', dead_letters_key, message_id, redis.call('HGET', dead_letters_key, message_id))
  end
  return 'kept'
end
if redis.call('HLEN', dead_letters_key) >= tonumber(max_dead_letters) then
  return 'full'
end
local reply = redis.pcall('HSET', dead_letters_key, message_id, dead_letter)
if type(reply) == 'table' and reply.err then
  -- Redis 6.2 puts the place in the script before an error.
  return redis.error_reply(string.match(reply.err, ': %-(%u+ .*)$') or reply.err)
end
return 'kept'
