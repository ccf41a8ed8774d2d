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
  partitions,     -- PARTITIONS
  asks_rights     -- 1: ask whether the user has all rights that this takes, and those to undo it; else 0
  = unpack(ARGV)
ttl_ms, retention_ms = tonumber(ttl_ms), tonumber(retention_ms)

-- How many of the two are there: most often none.
local marks, marked = redis.call('EXISTS', layout_key, gone_key), nil
if marks > 0 then
  marked = redis.call('HMGET', layout_key, 'partitions')[1]
  if marked and marked ~= partitions then
    return { 'other_partitions', marked, '', '' }
  end
end

local message_field = '_message:' .. message_id
local session_ttl = redis.call('PTTL', session_key) -- -2 if nothing is stored
-- `was_…`: of the stored state.
local seen, was_status, was_live, was_user_id, was_revision, was_cursor, was_order, was_expire_at, was_user_key,
  was_base
if session_ttl ~= -2 then
  seen, was_status, was_live, was_user_id, was_revision, was_cursor, was_order, was_expire_at, was_user_key, was_base =
    unpack(redis.call('HMGET', session_key, message_field, 'status', 'live', 'user_id', 'revision', 'cursor', '_order',
      '_expire_at', '_user_key', '_base'))
end
local is_stored = was_cursor
if seen then
  if confirm == '1' then
    redis.call('PEXPIRE', session_key, session_ttl > 0 and session_ttl or retention_ms)
  end
  local cursor, revision, first_digest = string.match(seen, '^(%S+) (%d*) (%x*)$')
  return { 'duplicate', cursor, revision, body_digest == first_digest and '' or 'other_body' }
end
if from_cursor ~= '' and from_cursor ~= (was_cursor or 'absent') then
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

local is_live, is_open = live == '1', status == 'active' or status == 'pending'
local was_open = was_status == 'active' or was_status == 'pending'

local gone -- what has to be answered if the user is gone, and an open state would be applied
if is_open and marks > (marked and 1 or 0) then
  local deleted, deleted_at, banned, banned_at =
    unpack(redis.call('HMGET', gone_key, 'deleted', 'deleted_at', 'banned', 'banned_at'))
  if deleted then
    gone = { 'user_gone', 'removed', deleted_at, deleted }
  elseif banned and (created_at == '' or tonumber(created_at) <= tonumber(banned_at)) then
    gone = { 'user_gone', 'revoked', banned_at, banned }
  end
end

local applied
if not is_stored then
  applied = true
elseif order_key == was_order then -- two states that the same event about their user ended
  applied = base ~= '' and was_base and is_after(base, was_base)
else
  local compared = was_order
  if was_base and is_open then
    local place = string.sub(was_order, 1, 2)
    local is_expiry = place == '0 ' and was_status == 'expired'
    local voids_expiry = is_expiry and (expire_at == '' or tonumber(expire_at) > tonumber(was_expire_at))
    if voids_expiry or gone and place == '1 ' then -- or both are ended by what was said about their user
      compared = was_base
    end
  end
  applied = is_after(order_key, compared)
end
if applied and gone then
  return gone
end

-- Nearly all sessions are never in the set of pending ones, so it is left out where it can't matter.
local is_pending, was_pending = is_open and not is_live, was_open and was_live == '0'
local is_users_other = is_stored and was_user_key ~= user_key

-- Undoing takes rights too, and so do later events. So the script asks for all of them before it writes: once for each
-- connection, and where a session moves between sets, since to undo that takes both ZADD and ZREM. If one is withdrawn
-- while the connection lasts, those that are left undo the rest. Redis 6.2 can't be asked: there, a user who lacks one
-- of them can leave an event in the stream that was not applied.
if redis.acl_check_cmd and (asks_rights == '1' or is_users_other or is_pending or was_pending) then
  for _, command in ipairs({
    { 'HMGET', session_key, '' }, { 'DEL', session_key }, { 'HDEL', session_key, '' }, { 'HSET', session_key, '', '' },
    { 'PEXPIRE', session_key, '1' }, { 'ZADD', user_key, '0', '' }, { 'ZREM', user_key, '' },
    { 'ZADD', pending_key, '0', '' }, { 'ZREM', pending_key, '' },
    { 'ZADD', expiry_key, '0', '' }, { 'ZREM', expiry_key, '' },
  }) do
    if not redis.acl_check_cmd(unpack(command)) then
      return redis.error_reply('NOPERM this user may not run ' .. command[1] .. ' on ' .. command[2])
    end
  end
end

-- A message can't be unpublished, and consumers would take an entry of what was not applied. So these rights are asked
-- for each time.
if redis.acl_check_cmd then
  if not redis.acl_check_cmd('XDEL', events_key, '0-0') then
    return redis.error_reply('NOPERM this user may not run XDEL on ' .. events_key)
  end
  if not (redis.acl_check_cmd('PUBLISH', user_channel, '') and redis.acl_check_cmd('PUBLISH', channel, '')) then
    return redis.error_reply('NOPERM this user may not run PUBLISH on ' .. channel .. ', or on that of the user')
  end
end

if not applied and keeps_stale == '0' then
  return { 'stale', '', '', '' }
end

local was_pending_key = is_stored and string.gsub(was_user_key, ':sessions$', ':pending')
-- The state is read only where a command can fail after it is overwritten: to hash its text takes Lua a microsecond.
local was_state = applied and is_stored and (was_base or not redis.acl_check_cmd)
  and redis.call('HMGET', session_key, 'state')[1]
-- For undoing, and since a user's set lasts as long as the longest of its sessions.
local user_ttl = redis.call('PTTL', user_key)
local pending_ttl = (is_pending or was_pending) and redis.call('PTTL', pending_key) or -2
local was_user_ttl = is_users_other and redis.call('PTTL', was_user_key) or -2
local was_pending_ttl = is_users_other and redis.call('PTTL', was_pending_key) or -2

-- Lua allocates memory for each local of the script that a function in it uses. So what every event does is one
-- sequence, and these functions get what they need as arguments.

local function error_of(reply)
  return type(reply) == 'table' and reply.err
end

-- Puts a session into a sorted set, or takes it out.
local function index(key, session_id, has_it, end_at)
  if has_it then
    return error_of(redis.pcall('ZADD', key, end_at == '' and '+inf' or end_at, session_id))
  end
  return error_of(redis.pcall('ZREM', key, session_id))
end

-- The error as later versions word it: Redis 6.2 puts the place in the script before it, and has no code for a
-- lack of rights.
local function plain_error(text)
  local no_right = string.match(text, '@user_script: %d+: (The user executing the script .*)$')
  return redis.error_reply(no_right and 'NOPERM ' .. no_right or string.match(text, ': %-(%u+ .*)$') or text)
end

local revision = applied and string.format('%d', (is_stored and tonumber(was_revision) or 0) + 1) or ''
local after_cursor = ',"revision":' .. (applied and revision or 'null')
  .. ',"previous_status":' .. (applied and is_stored and '"' .. was_status .. '"' or 'null')
local outcome = applied and 'applied' or 'stale'
local entry = '{"schema_version":1,"cursor":null' .. after_cursor .. message_tail

-- This comes first: Redis refuses it when memory is short, but would not refuse a command that frees memory.
local cursor = redis.pcall('XADD', events_key, 'NOMKSTREAM', 'MAXLEN', '~', stream_maxlen, '*',
  'outcome', outcome, 'session_id', session_id, 'user_id', user_id, 'message', entry)
local is_new_stream = not cursor
if is_new_stream then
  cursor = redis.pcall('XADD', events_key, '*',
    'outcome', outcome, 'session_id', session_id, 'user_id', user_id, 'message', entry)
end
if error_of(cursor) then
  return plain_error(cursor.err)
end

local failure -- the error of the first command that fails: no other is run after it
local seen_now = cursor .. ' ' .. revision .. ' ' .. body_digest
if applied then
  local published = '{"schema_version":1,"cursor":"' .. cursor .. '"' .. after_cursor .. message_tail
  local set_key, set_ttl = user_key, user_ttl
  if is_pending then
    set_key, set_ttl = pending_key, pending_ttl
  end
  failure = is_stored and error_of(redis.pcall('PEXPIRE', session_key, ttl_ms))
    or index(user_key, session_id, is_live, expire_at)
    or index(expiry_key, session_id, is_open and expire_at ~= '', expire_at)
    or (is_pending or was_pending) and index(pending_key, session_id, is_pending, expire_at)
    or is_users_other and (index(was_user_key, session_id, false) or index(was_pending_key, session_id, false))
    or is_open and set_ttl < ttl_ms and error_of(redis.pcall('PEXPIRE', set_key, ttl_ms))
    or error_of(redis.pcall('HSET', session_key, 'state', published, 'status', status, 'live', live,
      'user_id', user_id, 'revision', revision, 'cursor', cursor, '_order', order_key, '_expire_at', expire_at,
      '_user_key', user_key, message_field, seen_now))
    or base ~= '' and error_of(redis.pcall('HSET', session_key, '_base', base))
    or base == '' and was_base and error_of(redis.pcall('HDEL', session_key, '_base'))
    or not is_stored and error_of(redis.pcall('PEXPIRE', session_key, ttl_ms))
    or error_of(redis.pcall('PUBLISH', user_channel, published))
    or error_of(redis.pcall('PUBLISH', channel, published))
else
  failure = error_of(redis.pcall('HSET', session_key, message_field, seen_now))
    -- The id of a late event has to outlast the sender's retries.
    or session_ttl < retention_ms and error_of(redis.pcall('PEXPIRE', session_key, retention_ms))
end
if not failure then
  return { outcome, cursor, revision, '' }
end

-- Undoes all of it: what was not done is as it was anyway.
redis.pcall('XDEL', events_key, cursor)
if is_new_stream then
  redis.pcall('DEL', events_key)
end
if is_stored then
  redis.pcall('HDEL', session_key, message_field)
else
  redis.pcall('DEL', session_key)
end
if applied then
  if is_stored then
    if not was_base then
      redis.pcall('HDEL', session_key, '_base')
    end
    local fields = {
      'state', was_state, 'status', was_status, 'live', was_live, 'user_id', was_user_id, 'revision', was_revision,
      'cursor', was_cursor, '_order', was_order, '_expire_at', was_expire_at, '_user_key', was_user_key,
      '_base', was_base,
    }
    for i = 1, #fields, 2 do
      if fields[i + 1] then
        redis.pcall('HSET', session_key, fields[i], fields[i + 1])
      end
    end
    index(was_user_key, session_id, was_live == '1', was_expire_at)
    index(was_pending_key, session_id, was_pending, was_expire_at)
  end
  if not is_stored or is_users_other then
    index(user_key, session_id, false)
    index(pending_key, session_id, false)
  end
  index(expiry_key, session_id, was_open and was_expire_at ~= '', was_expire_at)
end
for _, left in ipairs({
  { session_key, session_ttl }, { user_key, user_ttl }, { pending_key, pending_ttl },
  { was_user_key, was_user_ttl }, { was_pending_key, was_pending_ttl },
}) do
  if left[2] > 0 then
    redis.pcall('PEXPIRE', left[1], left[2])
  end
end
return plain_error(failure)
