-- Lists some dead letters without their bodies, which may be a megabyte each. Writes nothing.
-- Returns {cursor, id, beginning, bytes, id, beginning, bytes, …}: where HSCAN goes on (`0` at the end), and for each
-- dead letter its id, the beginning of its JSON, and the length of all of that. One may come twice, as HSCAN does it.

local
  dead_letters_key  -- {clerk}:dead-letters    hash    message id -> the delivery, as JSON
  = unpack(KEYS)
local
  cursor,           -- where HSCAN begins; 0 at first
  count,            -- about how many are returned
  beginning_bytes   -- how much of each
  = unpack(ARGV)

local scanned = redis.call('HSCAN', dead_letters_key, cursor, 'COUNT', count)
local reply = { scanned[1] }
for i = 1, #scanned[2], 2 do
  local stored = scanned[2][i + 1]
  reply[#reply + 1] = scanned[2][i]
  reply[#reply + 1] = string.sub(stored, 1, tonumber(beginning_bytes))
  reply[#reply + 1] = #stored
end
return reply
