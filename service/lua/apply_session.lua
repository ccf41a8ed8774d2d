-- Applies one session event, atomically: looks for the message id, compares, writes, indexes, appends to
-- the stream and publishes.
--
-- KEYS
--   1  {clerk}:session:<session id>       hash, TTL    the state held; `_…` fields are bookkeeping:
--                                                      _order, _expire_at, _user_key (this state's KEYS[2]),
--                                                      _message:<id> = "<cursor> <revision, empty if stale>"
--   2  {clerk}:user:<user id>:sessions    zset, TTL    ids of live sessions by expire_at (ms, +inf)
--   3  {clerk}:events                     stream       outcome, session_id, user_id, message
--   4  {clerk}:expiry                     zset         ids of open sessions by expire_at (ms)
--   A session that changes its user leaves the old user's set, the key named by the hash's `_user_key`:
--   the one key that can't be passed in KEYS. It has the prefix's hash tag, so it is in the same slot.
--
-- ARGV
--   1  message id        2  order: "<terminal 1|0> <updated_at ms> <occurred_at ms> <rank>"
--   3  session id        4  user id              5  status               6  live (1|0)
--   7  expire_at (ms, or empty)                  8  TTL (ms)             9  retention (ms)
--   10 stream length     11 channel              12 user channel
--   13 the message from `,"event":` on           14 confirm (1|0): write even for a duplicate, so that
--                                                   the WAIT that follows covers the first time's write
--
-- Returns {outcome, cursor, revision}: applied | duplicate | stale; revision is empty for a stale event.
--
-- Redis does not roll back a script, so a write that fails undoes those before it.

local session_key, user_key, events_key, expiry_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local message_id, order, session_id, user_id, status, live = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local expire_at, ttl, retention = ARGV[7], tonumber(ARGV[8]), tonumber(ARGV[9])
local channel, user_channel, tail = ARGV[11], ARGV[12], ARGV[13]

local message_field = '_message:' .. message_id
local FIELDS = { 'state', 'status', 'live', 'user_id', 'revision', 'cursor', '_order', '_expire_at', '_user_key' }

local held_values = redis.call('HMGET', session_key, message_field, unpack(FIELDS))
local seen = table.remove(held_values, 1)
if seen then
  if ARGV[14] == '1' then
    redis.call('PEXPIRE', session_key, math.max(redis.call('PTTL', session_key), retention))
  end
  local cursor, revision = string.match(seen, '^(%S+) (%d*)$')
  return { 'duplicate', cursor, revision }
end

local held
if held_values[1] then
  held = {}
  for i, field in ipairs(FIELDS) do
    held[field] = held_values[i]
  end
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

local order_key = order .. ' ' .. message_id
local applied = not held or is_after(order_key, held._order)

local function message(cursor, revision, previous_status)
  return '{"schema_version":1,"cursor":' .. (cursor and '"' .. cursor .. '"' or 'null')
    .. ',"revision":' .. (revision or 'null')
    .. ',"previous_status":' .. (previous_status and '"' .. previous_status .. '"' or 'null')
    .. tail
end

local function failed(reply)
  return type(reply) == 'table' and reply.err
end

local undo = {}
-- Runs the commands in turn; returns the error of the first that fails, after undoing all before it.
local function write(commands)
  for _, command in ipairs(commands) do
    local reply = redis.pcall(unpack(command))
    if failed(reply) then
      for _, undoing in ipairs(undo) do
        redis.pcall(unpack(undoing))
      end
      return reply
    end
  end
end

-- What was published can't be undone, so ask first. (Redis 6.2 has no way to ask.)
if applied and redis.acl_check_cmd then
  for _, name in ipairs({ channel, user_channel }) do
    if not redis.acl_check_cmd('PUBLISH', name, '') then
      return redis.error_reply('NOPERM this user may not publish on ' .. name)
    end
  end
end

local revision = applied and string.format('%d', (held and tonumber(held.revision) or 0) + 1) or nil
local previous_status = applied and held and held.status or nil

-- First, because it is refused when memory is short, where a first write that frees memory is not.
local cursor = redis.pcall('XADD', events_key, 'MAXLEN', '~', ARGV[10], '*',
  'outcome', applied and 'applied' or 'stale', 'session_id', session_id, 'user_id', user_id,
  'message', message(nil, revision, previous_status))
if failed(cursor) then
  return cursor
end
undo[1] = { 'XDEL', events_key, cursor }

if not applied then
  undo[2] = { 'HDEL', session_key, message_field }
  local commands = { { 'HSET', session_key, message_field, cursor .. ' ' } }
  -- A late event's id has to outlast its sender's retries.
  if redis.call('PTTL', session_key) < retention then
    commands[2] = { 'PEXPIRE', session_key, retention }
  end
  return write(commands) or { 'stale', cursor, '' }
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

local state = {
  state = message(cursor, revision, previous_status), status = status, live = live, user_id = user_id,
  revision = revision, cursor = cursor, _order = order_key, _expire_at = expire_at, _user_key = user_key,
}
local set_state = { 'HSET', session_key, message_field, cursor .. ' ' .. revision }
for _, field in ipairs(FIELDS) do
  set_state[#set_state + 1] = field
  set_state[#set_state + 1] = state[field]
end

if held then
  local set_held = { 'HSET', session_key }
  for _, field in ipairs(FIELDS) do
    set_held[#set_held + 1] = field
    set_held[#set_held + 1] = held[field]
  end
  undo[2] = { 'HDEL', session_key, message_field }
  undo[3] = set_held
  undo[4] = { 'ZREM', user_key, session_id }
  undo[5], undo[6] = index(held)
  for _, key in ipairs({ session_key, held._user_key }) do
    local left = redis.call('PTTL', key)
    if left > 0 then
      undo[#undo + 1] = { 'PEXPIRE', key, left }
    end
  end
else
  undo[2] = { 'DEL', session_key }
  undo[3] = { 'ZREM', user_key, session_id }
  undo[4] = { 'ZREM', expiry_key, session_id }
end

local in_user_set, in_expiry_set = index(state)
local commands = { set_state, { 'PEXPIRE', session_key, ttl }, in_user_set, in_expiry_set }
if held and held._user_key ~= user_key then
  commands[#commands + 1] = { 'ZREM', held._user_key, session_id }
end
-- A user's set lasts as long as the longest of its sessions.
if live == '1' and redis.call('PTTL', user_key) < ttl then
  commands[#commands + 1] = { 'PEXPIRE', user_key, ttl }
end
commands[#commands + 1] = { 'PUBLISH', user_channel, state.state }
commands[#commands + 1] = { 'PUBLISH', channel, state.state }
return write(commands) or { 'applied', cursor, revision }
