// Writes what the relay writes (docs/contract.md, sections 4 and 5), for tests that need no relay.
import { Redis } from "ioredis6";
import { keysOf, partitionOf, split, type Keys } from "../../src/keys.js";
import { message } from "./messages.js";

export interface Applied {
  id: string;
  userId?: string;
  status?: string;
  outcome?: "applied" | "stale";
  expireAt?: number | null;
}

/**
 * Nobody sees an entry without the state that it led to: the relay's script, too, does all of it at once.
 *
 * KEYS: the stream, the session, the user's sessions. ARGV: what the entry has; state, status, live, revision, end.
 */
const APPLY = `
local outcome, id, user, entry, state, status, live, revision, expire_at = unpack(ARGV)
local cursor = redis.call('XADD', KEYS[1], '*', 'outcome', outcome, 'session_id', id, 'user_id', user, 'message', entry)
if outcome == 'applied' then
  state = state:gsub('CURSOR', cursor)
  redis.call('HSET', KEYS[2], 'state', state, 'status', status, 'live', live, 'user_id', user, 'revision', revision,
    'cursor', cursor, '_expire_at', expire_at)
  if live == '1' then
    redis.call('ZADD', KEYS[3], expire_at == '' and '+inf' or expire_at, id)
  else
    redis.call('ZREM', KEYS[3], id)
  end
  redis.call('PUBLISH', 'clerk:sessions', state)
  redis.call('PUBLISH', 'clerk:sessions:user:' .. user, state)
end
return cursor`;

/** What stands for the relay. `partitions`: how many it divides its data into. */
export class Relay {
  readonly redis: Redis;
  readonly revisions = new Map<string, number>();
  readonly #keys: Keys[];

  constructor(
    readonly port: number,
    readonly partitions = 1,
    readonly prefix = "{clerk}",
  ) {
    this.redis = new Redis({ host: "127.0.0.1", port, maxRetriesPerRequest: null });
    this.redis.on("error", () => undefined);
    this.#keys = split(prefix, partitions);
  }

  keys(userId = "user_1"): Keys {
    return this.#keys[partitionOf(userId, this.partitions)] as Keys;
  }

  /** Applies an event; resolves to its cursor. */
  async apply({
    id,
    userId = "user_1",
    status = "active",
    outcome = "applied",
    expireAt = null,
  }: Applied): Promise<string> {
    const keys = this.keys(userId);
    const isApplied = outcome === "applied";
    const revision = isApplied ? (this.revisions.get(id) ?? 0) + 1 : null;
    const entry = message({ id, userId, status, revision, expireAt });
    const names = [keys.events, keys.session(id), keys.userSessions(userId)];
    const common = [outcome, id, userId, entry];
    const state = isApplied ? message({ id, userId, status, revision, expireAt, cursor: "CURSOR" }) : "";
    const live = status === "active" ? "1" : "0";
    const stored = [state, status, live, `${revision}`, `${expireAt ?? ""}`];
    const cursor = (await this.redis.eval(APPLY, names.length, ...names, ...common, ...stored)) as string;
    if (isApplied) this.revisions.set(id, revision as number);
    return cursor;
  }

  /** Trims the stream to its last entries. */
  trim(keep = 0): Promise<number> {
    return this.redis.xtrim(this.keys().events, "MAXLEN", keep);
  }

  /** Marks the data as the relay's `repartition` does. */
  mark(text: string): Promise<number> {
    return this.redis.hset(keysOf(this.prefix).layout, "partitions", text);
  }

  close(): void {
    this.redis.disconnect();
  }
}
