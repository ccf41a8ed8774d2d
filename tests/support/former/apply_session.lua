-- Applies one session event, atomically: looks for the message id, compares, writes, indexes, appends to
-- the stream and publishes.
--
-- KEYS
--   1  {clerk}:session:<session id>       hash, TTL    the state held; `_…` fields are bookkeeping:
--                                                      _order, _expire_at, _user_key (this state's KEYS[2]),
--                                                      _message:<id> = "<cursor> <revision> <digest of body>"
--   2  {clerk}:user:<user id>:sessions    zset, TTL    ids of live sessions by expire_at (ms, +inf)
--   3  {clerk}:events                     stream       outcome, session_id, user_id, message
--   4  {clerk}:expiry                     zset         ids of open sessions by expire_at (ms)
--   A session that changes its user leaves the old user's set, the key named by the hash's `_user_key`:
--   the one key that can't be passed in KEYS. It has the prefix's hash tag, so it is in the same slot.
--
-- ARGV
--   1  message id        2  order key: "<terminal 1|0> <updated_at ms> <occurred_at ms> <rank> <message id>"
--   3  session id        4  user id              5  status               6  live (1|0)
--   7  expire_at (ms, or empty)                  8  TTL (ms)             9  retention (ms)
--   10 stream length     11 channel              12 user channel
--   13 the message from `,"event":` on           14 confirm (1|0): write even for a duplicate, so that
--                                                   the WAIT that follows covers the first time's write
--   15 digest of the body: hexadecimal; empty for an event of our own
--   16 cursor of the state that the event was made from, if it was made from what is held (an expiry); else empty
--
-- Returns {outcome, cursor, revision, remark}: applied | duplicate | stale; revision is empty for a stale event;
-- remark is `other_body` for a duplicate that is none: its id was seen with another body. Else it is empty.
-- Returns {'superseded', '', '', ''}, and has done nothing, if another state than that of ARGV 16 is held by now.
--
-- Redis does not roll back a script. So all that can be asked is asked before the first write, and a write
-- that fails all the same undoes those before it.

local session_key, user_key, events_key, expiry_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local message_id, order_key, session_id, user_id, status, live = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local expire_at, ttl, retention = ARGV[7], tonumber(ARGV[8]), tonumber(ARGV[9])
local channel, user_channel, tail, digest = ARGV[11], ARGV[12], ARGV[13], ARGV[15]

local message_field = '_message:' .. message_id
local FIELDS = { 'state', 'status', 'live', 'user_id', 'revision', 'cursor', '_order', '_expire_at', '_user_key' }

local held_values = redis.call('HMGET', session_key, message_field, unpack(FIELDS))
local seen = table.remove(held_values, 1)
if seen then
  if ARGV[14] == '1' then
    local left = redis.call('PTTL', session_key)
    redis.call('PEXPIRE', session_key, left > 0 and left or retention)
  end
  local cursor, revision, first_digest = string.match(seen, '^(%S+) (%d*) (%x*)$')
  return { 'duplicate', cursor, revision, digest == first_digest and '' or 'other_body' }
end

local held
if held_values[1] then
  held = {}
  for i, field in ipairs(FIELDS) do
    held[field] = held_values[i]
  end
end
if ARGV[16] ~= '' and not (held and held.cursor == ARGV[16]) then
  return { 'superseded', '', '', '' }
end

-- `<` on strings follows the server's locale; this does not.
local function is_after_bytewise(a, b)
  for i = 1, math.min(#a, #b) do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then
      return x > y
    end
  end
  return #a > #b
end

local function is_after(a, b)
  local PARTS = '^(%d) (%d+) (%d+) (%d+) (%S+)$'
  local x, y = { string.match(a, PARTS) }, { string.match(b, PARTS) }
  for i = 1, 4 do
    local m, n = tonumber(x[i]), tonumber(y[i]) -- up to 10^14: exact in a double
    if m ~= n then
      return m > n
    end
  end
  return is_after_bytewise(x[5], y[5])
end

local applied = not held or is_after(order_key, held._order)

local function message(cursor, revision, previous_status)
  return '{"schema_version":1,"cursor":' .. (cursor and '"' .. cursor .. '"' or 'null')
    .. ',"revision":' .. (revision or 'null')
    .. ',"previous_status":' .. (previous_status and '"' .. previous_status .. '"' or 'null')
    .. tail
end

-- The commands that put a session where its state says it belongs in the two sorted sets.
local function index(state)
  local is_open = state.status == 'active' or state.status == 'pending'
  return
    state.live == '1'
      and { 'ZADD', state._user_key, state._expire_at == '' and '+inf' or state._expire_at, session_id }
      or { 'ZREM', state._user_key, session_id },
    is_open and state._expire_at ~= ''
      and { 'ZADD', expiry_key, state._expire_at, session_id }
      or { 'ZREM', expiry_key, session_id }
end

local function set_state(state)
  local command = { 'HSET', session_key }
  for _, field in ipairs(FIELDS) do
    command[#command + 1] = field
    command[#command + 1] = state[field]
  end
  return command
end

-- Redis 6.2 puts the place in the script before an error, and has no code for a lack of rights.
local function as_redis_says_it(reply)
  local no_right = string.match(reply.err, '@user_script: %d+: (The user executing the script .*)$')
  return redis.error_reply(
    no_right and 'NOPERM ' .. no_right or string.match(reply.err, ': %-(%u+ .*)$') or reply.err)
end

-- Writes the event to the stream, then runs what `plan(cursor)` returns: commands, and what undoes them. A
-- command that fails undoes everything, and its error is what this returns; else the cursor.
local function write(revision, previous_status, plan)
  local events_is_new = redis.call('EXISTS', events_key) == 0
  -- First, because it is refused when memory is short, where a first write that frees memory is not.
  local cursor = redis.pcall('XADD', events_key, 'MAXLEN', '~', ARGV[10], '*',
    'outcome', revision and 'applied' or 'stale', 'session_id', session_id, 'user_id', user_id,
    'message', message(nil, revision, previous_status))
  if type(cursor) == 'table' and cursor.err then
    return as_redis_says_it(cursor)
  end
  local commands, undo = plan(cursor)
  for _, command in ipairs(commands) do
    local reply = redis.pcall(unpack(command))
    if type(reply) == 'table' and reply.err then
      redis.pcall('XDEL', events_key, cursor)
      if events_is_new then
        redis.pcall('DEL', events_key)
      end
      for _, undoing in ipairs(undo) do
        redis.pcall(unpack(undoing))
      end
      return as_redis_says_it(reply)
    end
  end
  return cursor
end

-- What was published can't be undone, and undoing takes rights too. Redis 6.2 has no way to ask; there, a user
-- without these rights can leave a trace of an event that was not applied.
if redis.acl_check_cmd then
  for _, command in ipairs({
    { 'PUBLISH', channel, '' }, { 'PUBLISH', user_channel, '' }, { 'XDEL', events_key, '0-0' },
    { 'DEL', session_key }, { 'HDEL', session_key, '' }, { 'HSET', session_key, '', '' },
    { 'PEXPIRE', session_key, '1' }, { 'ZADD', user_key, '0', '' }, { 'ZREM', user_key, '' },
    { 'ZADD', expiry_key, '0', '' }, { 'ZREM', expiry_key, '' },
  }) do
    if not redis.acl_check_cmd(unpack(command)) then
      return redis.error_reply('NOPERM this user may not run ' .. command[1] .. ' on ' .. command[2])
    end
  end
end

local session_ttl = redis.call('PTTL', session_key)

if not applied then
  local cursor = write(nil, nil, function(cursor)
    local commands = { { 'HSET', session_key, message_field, cursor .. '  ' .. digest } }
    -- A late event's id has to outlast its sender's retries.
    if session_ttl < retention then
      commands[2] = { 'PEXPIRE', session_key, retention }
    end
    return commands, { { 'HDEL', session_key, message_field } }
  end)
  return cursor.err and cursor or { 'stale', cursor, '', '' }
end

local revision = string.format('%d', (held and tonumber(held.revision) or 0) + 1)
local user_ttl = redis.call('PTTL', user_key)
local held_user_ttl = held and redis.call('PTTL', held._user_key) or -2

local cursor = write(revision, held and held.status, function(cursor)
  local published = message(cursor, revision, held and held.status)
  local state = {
    state = published, status = status, live = live, user_id = user_id, revision = revision,
    cursor = cursor, _order = order_key, _expire_at = expire_at, _user_key = user_key,
  }
  local in_user_set, in_expiry_set = index(state)
  local commands = {
    set_state(state),
    { 'HSET', session_key, message_field, cursor .. ' ' .. revision .. ' ' .. digest },
    { 'PEXPIRE', session_key, ttl },
    in_user_set,
    in_expiry_set,
  }
  if held and held._user_key ~= user_key then
    commands[#commands + 1] = { 'ZREM', held._user_key, session_id }
  end
  -- A user's set lasts as long as the longest of its sessions.
  if live == '1' and user_ttl < ttl then
    commands[#commands + 1] = { 'PEXPIRE', user_key, ttl }
  end
  commands[#commands + 1] = { 'PUBLISH', user_channel, published }
  commands[#commands + 1] = { 'PUBLISH', channel, published }

  local undo = { { 'ZREM', user_key, session_id }, { 'ZREM', expiry_key, session_id } }
  if held then
    undo[3] = { 'HDEL', session_key, message_field }
    undo[4] = set_state(held)
    undo[5], undo[6] = index(held)
  else
    undo[3] = { 'DEL', session_key }
  end
  for key, left in pairs({ [session_key] = session_ttl, [user_key] = user_ttl }) do
    if left > 0 then
      undo[#undo + 1] = { 'PEXPIRE', key, left }
    end
  end
  if held_user_ttl > 0 then
    undo[#undo + 1] = { 'PEXPIRE', held._user_key, held_user_ttl }
  end
  return commands, undo
end)
return cursor.err and cursor or { 'applied', cursor, revision, '' }
