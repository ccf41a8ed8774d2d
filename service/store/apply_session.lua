-- Applies one session event, atomically: looks for the message id, compares, writes, indexes, appends to the
-- stream and publishes. docs/contract.md, section 6.
--
-- Returns {outcome, cursor, revision, remark}: applied | duplicate | stale; revision is empty for a stale event, and so
-- is cursor if `keeps_stale` is 0; remark is `other_body` for a duplicate whose id was seen with another body.
-- Returns {'other_partitions', number, '', ''}, and does nothing, if the data is not divided into `partitions`.
-- Returns {'superseded', '', '', ''}, and does nothing, if the stored state is not that of `from_cursor`.
-- Returns {'user_gone', status, time, event}, and does nothing, if an open state would be applied, and its user is
-- deleted, or was banned after the session began. It ends with that status, time and event: see mark_user.lua.
--
-- Redis does not roll back a script. So the script asks all that it can ask before its first write, and undoes
-- its writes if a later one fails.

local
  session_key,    -- {clerk}:session:<session id>       hash, TTL    the stored state; `_…` fields are bookkeeping:
                  --                                    _order, _expire_at, _user_key (the user_key of this state),
                  --                                    _base (not in all),
                  --                                    _message:<id> = "<cursor> <revision> <digest of body>"
  user_key,       -- {clerk}:user:<user id>:sessions    zset, TTL    ids of live sessions by expire_at (ms, +inf)
  pending_key,    -- {clerk}:user:<user id>:pending     zset, TTL    ids of the other open sessions, likewise
  gone_key,       -- {clerk}:user:<user id>:gone        hash, TTL    see mark_user.lua
  events_key,     -- {clerk}:events                     stream       outcome, session_id, user_id, message
  expiry_key,     -- {clerk}:expiry                     zset         ids of open sessions by expire_at (ms)
  layout_key      -- {clerk}:partitions                 hash, TTL    see mark_partitions.lua; often absent
  -- A session whose user changes leaves the old user's sets. The hash's `_user_key` names the one, which KEYS
  -- can't: nobody knows it before. It has the prefix's hash tag, so it is in the same slot; and so is the other.
  = unpack(KEYS)
local
  message_id,
  order_key,      -- "<0 open | 1 terminal | 2 ordered> <updated_at ms> <occurred_at ms> <rank> <message id>"
  base,           -- order key of the open state that this one was made from, if the relay ended it; else empty
  session_id,
  user_id,
  status,
  live,           -- 1 | 0
  expire_at,      -- ms, or empty
  created_at,     -- ms, or empty
  ttl_ms,         -- of the session's key
  retention_ms,   -- how long a message id is remembered at least
  stream_maxlen,  -- entries that the stream keeps, about
  channel,
  user_channel,
  message_tail,   -- the message from `,"event":` on
  confirm,        -- 1: write even for a duplicate, so that the WAIT that follows covers the first write; else 0
  body_digest,    -- hexadecimal; empty for what is no delivery
  from_cursor,    -- cursor of the stored state that may be replaced; `absent`: there may be none; empty: any
  keeps_stale,    -- 1: append it to the stream, and remember its id, if it is stale; else 0
  partitions      -- PARTITIONS
  = unpack(ARGV)
ttl_ms, retention_ms = tonumber(ttl_ms), tonumber(retention_ms)

local marked = redis.call('HMGET', layout_key, 'partitions')[1]
if marked and marked ~= partitions then
  return { 'other_partitions', marked, '', '' }
end

local message_field = '_message:' .. message_id
local FIELDS = {
  'state', 'status', 'live', 'user_id', 'revision', 'cursor', '_order', '_expire_at', '_user_key', '_base',
}

local values = redis.call('HMGET', session_key, message_field, unpack(FIELDS))
local seen = table.remove(values, 1)
if seen then
  if confirm == '1' then
    local left = redis.call('PTTL', session_key)
    redis.call('PEXPIRE', session_key, left > 0 and left or retention_ms)
  end
  local cursor, revision, first_digest = string.match(seen, '^(%S+) (%d*) (%x*)$')
  return { 'duplicate', cursor, revision, body_digest == first_digest and '' or 'other_body' }
end

local stored
if values[1] then
  stored = {}
  for i, field in ipairs(FIELDS) do
    stored[field] = values[i] or nil
  end
end
if from_cursor ~= '' and from_cursor ~= (stored and stored.cursor or 'absent') then
  return { 'superseded', '', '', '' }
end

local function is_open(status)
  return status == 'active' or status == 'pending'
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

-- What has to be answered if the user is gone and the state is open; else nil.
local function user_gone()
  if not is_open(status) then
    return nil
  end
  local deleted, deleted_at, banned, banned_at =
    unpack(redis.call('HMGET', gone_key, 'deleted', 'deleted_at', 'banned', 'banned_at'))
  if deleted then
    return { 'user_gone', 'removed', deleted_at, deleted }
  elseif banned and (created_at == '' or tonumber(created_at) <= tonumber(banned_at)) then
    return { 'user_gone', 'revoked', banned_at, banned }
  end
end

local gone = user_gone()

local function is_newer()
  if not stored then
    return true
  end
  if order_key == stored._order then -- two states that the same event about their user ended
    return base ~= '' and stored._base and is_after(base, stored._base)
  end
  if stored._base and is_open(status) then
    local place = string.sub(stored._order, 1, 2)
    local is_expiry = place == '0 ' and stored.status == 'expired'
    local voids_expiry = is_expiry and (expire_at == '' or tonumber(expire_at) > tonumber(stored._expire_at))
    if voids_expiry or gone and place == '1 ' then -- or both are ended by what was said about their user
      return is_after(order_key, stored._base)
    end
  end
  return is_after(order_key, stored._order)
end

local applied = is_newer()
if applied and gone then
  return gone
end

local function message(cursor, revision, previous_status)
  return '{"schema_version":1,"cursor":' .. (cursor and '"' .. cursor .. '"' or 'null')
    .. ',"revision":' .. (revision or 'null')
    .. ',"previous_status":' .. (previous_status and '"' .. previous_status .. '"' or 'null')
    .. message_tail
end

local function pending_key_of(state)
  return (string.gsub(state._user_key, ':sessions$', ':pending'))
end

-- The commands that make the three sorted sets agree with a state.
local function index(state)
  local is_live, end_at = state.live == '1', state._expire_at
  local function set(key, has_it)
    return has_it and { 'ZADD', key, end_at == '' and '+inf' or end_at, session_id } or { 'ZREM', key, session_id }
  end
  return
    set(state._user_key, is_live),
    set(pending_key_of(state), is_open(state.status) and not is_live),
    set(expiry_key, is_open(state.status) and end_at ~= '')
end

local function set_state(state)
  local command = { 'HSET', session_key }
  for _, field in ipairs(FIELDS) do
    if state[field] then
      command[#command + 1] = field
      command[#command + 1] = state[field]
    end
  end
  return command
end

-- The error as later versions word it: Redis 6.2 puts the place in the script before it, and has no code for a
-- lack of rights.
local function plain_error(reply)
  local no_right = string.match(reply.err, '@user_script: %d+: (The user executing the script .*)$')
  return redis.error_reply(
    no_right and 'NOPERM ' .. no_right or string.match(reply.err, ': %-(%u+ .*)$') or reply.err)
end

-- Appends the event to the stream, then runs the commands that `plan(cursor)` returns. Second, it returns a function
-- that returns the commands which undo them: they are run if one fails. Returns the cursor, or the error.
local function write(revision, previous_status, plan)
  local is_new_stream = redis.call('EXISTS', events_key) == 0
  -- This comes first: Redis refuses it when memory is short, but would not refuse a command that frees memory.
  local cursor = redis.pcall('XADD', events_key, 'MAXLEN', '~', stream_maxlen, '*',
    'outcome', revision and 'applied' or 'stale', 'session_id', session_id, 'user_id', user_id,
    'message', message(nil, revision, previous_status))
  if type(cursor) == 'table' and cursor.err then
    return plain_error(cursor)
  end
  local commands, undo = plan(cursor)
  for _, command in ipairs(commands) do
    local reply = redis.pcall(unpack(command))
    if type(reply) == 'table' and reply.err then
      redis.pcall('XDEL', events_key, cursor)
      if is_new_stream then
        redis.pcall('DEL', events_key)
      end
      for _, undoing in ipairs(undo()) do
        redis.pcall(unpack(undoing))
      end
      return plain_error(reply)
    end
  end
  return cursor
end

-- A message can't be unpublished, and undoing takes rights too. So the script asks for all rights now. Redis 6.2
-- can't be asked: there, a user who lacks one of them can leave an event in the stream that was not applied.
if redis.acl_check_cmd then
  for _, command in ipairs({
    { 'PUBLISH', channel, '' }, { 'PUBLISH', user_channel, '' }, { 'XDEL', events_key, '0-0' },
    { 'DEL', session_key }, { 'HDEL', session_key, '' }, { 'HSET', session_key, '', '' },
    { 'PEXPIRE', session_key, '1' }, { 'ZADD', user_key, '0', '' }, { 'ZREM', user_key, '' },
    { 'ZADD', pending_key, '0', '' }, { 'ZREM', pending_key, '' },
    { 'ZADD', expiry_key, '0', '' }, { 'ZREM', expiry_key, '' },
  }) do
    if not redis.acl_check_cmd(unpack(command)) then
      return redis.error_reply('NOPERM this user may not run ' .. command[1] .. ' on ' .. command[2])
    end
  end
end

local session_ttl = redis.call('PTTL', session_key)

if not applied then
  if keeps_stale == '0' then
    return { 'stale', '', '', '' }
  end
  local cursor = write(nil, nil, function(cursor)
    local commands = { { 'HSET', session_key, message_field, cursor .. '  ' .. body_digest } }
    -- The id of a late event has to outlast the sender's retries.
    if session_ttl < retention_ms then
      commands[2] = { 'PEXPIRE', session_key, retention_ms }
    end
    return commands, function()
      return { { 'HDEL', session_key, message_field } }
    end
  end)
  return cursor.err and cursor or { 'stale', cursor, '', '' }
end

local revision = string.format('%d', (stored and tonumber(stored.revision) or 0) + 1)
local is_users_other = stored and stored._user_key ~= user_key
-- Nearly all sessions are never in the set of pending ones, so it is left out where it can't matter.
local is_pending = is_open(status) and live == '0'
local was_pending = stored and is_open(stored.status) and stored.live == '0'
local ttls = { [session_key] = session_ttl, [user_key] = redis.call('PTTL', user_key) }
if is_pending or was_pending then
  ttls[pending_key] = redis.call('PTTL', pending_key)
end
if is_users_other then
  for _, key in ipairs({ stored._user_key, pending_key_of(stored) }) do
    ttls[key] = redis.call('PTTL', key)
  end
end

local cursor = write(revision, stored and stored.status, function(cursor)
  local published = message(cursor, revision, stored and stored.status)
  local state = {
    state = published, status = status, live = live, user_id = user_id, revision = revision,
    cursor = cursor, _order = order_key, _expire_at = expire_at, _user_key = user_key,
    _base = base ~= '' and base or nil,
  }
  local in_user_set, in_pending_set, in_expiry_set = index(state)
  local commands = {
    set_state(state),
    { 'HSET', session_key, message_field, cursor .. ' ' .. revision .. ' ' .. body_digest },
    { 'PEXPIRE', session_key, ttl_ms },
    in_user_set,
    in_expiry_set,
  }
  if is_pending or was_pending then
    commands[#commands + 1] = in_pending_set
  end
  if stored and stored._base and not state._base then
    commands[#commands + 1] = { 'HDEL', session_key, '_base' }
  end
  if is_users_other then
    commands[#commands + 1] = { 'ZREM', stored._user_key, session_id }
    commands[#commands + 1] = { 'ZREM', pending_key_of(stored), session_id }
  end
  -- A user's set lasts as long as the longest of its sessions.
  if is_open(status) then
    local key = live == '1' and user_key or pending_key
    if ttls[key] < ttl_ms then
      commands[#commands + 1] = { 'PEXPIRE', key, ttl_ms }
    end
  end
  commands[#commands + 1] = { 'PUBLISH', user_channel, published }
  commands[#commands + 1] = { 'PUBLISH', channel, published }

  return commands, function()
    local undo = {
      { 'ZREM', user_key, session_id }, { 'ZREM', pending_key, session_id }, { 'ZREM', expiry_key, session_id },
    }
    if stored then
      undo[4] = { 'HDEL', session_key, message_field, '_base' }
      undo[5] = set_state(stored)
      undo[6], undo[7], undo[8] = index(stored)
    else
      undo[4] = { 'DEL', session_key }
    end
    for key, left in pairs(ttls) do
      if left > 0 then
        undo[#undo + 1] = { 'PEXPIRE', key, left }
      end
    end
    return undo
  end
end)
return cursor.err and cursor or { 'applied', cursor, revision, '' }
