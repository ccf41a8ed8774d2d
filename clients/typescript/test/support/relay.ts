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
    const fields = ["outcome", outcome, "session_id", id, "user_id", userId, "message", entry];
    const cursor = (await this.redis.xadd(keys.events, "*", ...fields)) as string;
    if (isApplied) {
      this.revisions.set(id, revision as number);
      const state = message({ id, userId, status, revision, expireAt, cursor });
      const live = status === "active" ? "1" : "0";
      const common = { state, status, live, user_id: userId };
      const stored = { ...common, revision: `${revision}`, cursor, _expire_at: `${expireAt ?? ""}` };
      const users = keys.userSessions(userId);
      await this.redis
        .multi()
        .hset(keys.session(id), stored)
        [live === "1" ? "zadd" : "zrem"](
          users,
          ...((live === "1" ? [`${expireAt ?? "+inf"}`, id] : [id]) as [string, string]),
        )
        .publish("clerk:sessions", state)
        .publish(`clerk:sessions:user:${userId}`, state)
        .exec();
    }
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
