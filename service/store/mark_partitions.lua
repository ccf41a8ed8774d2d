-- Marks the data as divided into more than one partition, unless it is marked already, or has one.
-- Returns the number that it has: another one than was asked for, if somebody else was faster.

local
  layout_key,   -- {clerk}:partitions    hash, TTL    partitions: their number; or `<old>><new>@<ms>` during a move;
                --                                    moved_at: when the last move began (ms); after: see repartition
  events_key,   -- {clerk}:events        stream       these are there if the data has one partition
  expiry_key,   -- {clerk}:expiry        zset
  revokes_key   -- {clerk}:revokes       zset
  = unpack(KEYS)
local
  partitions,
  ttl_ms
  = unpack(ARGV)

local marked = redis.call('HMGET', layout_key, 'partitions')[1]
if not marked then
  if redis.call('EXISTS', events_key, expiry_key, revokes_key) > 0 then
    return '1'
  end
  redis.call('HSET', layout_key, 'partitions', partitions)
  marked = partitions
end
if marked == partitions then
  redis.call('PEXPIRE', layout_key, ttl_ms)
end
return marked
