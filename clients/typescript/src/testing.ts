// A feed in memory, which a test drives: the rules that run over Redis run over it, too.
import { SessionFeed, type FeedOptions } from "./feed.js";
import { partitionOf, split, type Keys } from "./keys.js";
import { MemoryRedis } from "./memory.js";
import { memoryAccess } from "./memory_connection.js";
import type { Event, Session } from "./messages.js";
import { streamed, type SessionUpdate } from "./update.js";

/** Fields of a session, in place of those that it would have. `live` follows from `status` and `expire_at`. */
export type SessionFields = Partial<Omit<Session, "object" | "id" | "user_id" | "live">>;

/** A feed without Redis, and what happens to its sessions. Each event returns the update that an iterator yields. */
export interface MemoryFeed {
  /** What the code under test takes. Closing it ends all iterators. */
  readonly feed: SessionFeed;
  /** A session begins: active, for a week, unless `fields` say something else. */
  signIn(userId: string, fields?: SessionFields & { id?: string }): SessionUpdate;
  /** The user signs out. */
  end(sessionId: string): SessionUpdate;
  /** The session is removed: its user was deleted, say. */
  remove(sessionId: string): SessionUpdate;
  /** The session is revoked. */
  revoke(sessionId: string): SessionUpdate;
  /** The session expires: its `expire_at` is now, unless it has passed already. */
  expire(sessionId: string): SessionUpdate;
  /** Something else changes: `{ status: "active" }` of a pending one, say. */
  update(sessionId: string, fields: SessionFields): SessionUpdate;
  /** An event comes too late to change anything. Iterators yield it with `stale` only. */
  late(sessionId: string): SessionUpdate;
  /** Trims the stream to its last entries. With the next event, iterators whose last one is gone throw. */
  trim(keep?: number): void;
  /** Redis loses everything. */
  flush(): void;
  /** Redis is away until `restore`. */
  fail(error?: Error): void;
  /** Redis is back. */
  restore(): void;
  /** How many updates the consumers of a group have got and not acknowledged yet. */
  pending(group: string): number;
  /** Resolves when every loop that has begun is through with all that happened, and waits for more. */
  idle(): Promise<void>;
}

const DAY_MS = 86_400_000;

/** Makes a feed without Redis, for tests. `options`: as for a SessionFeed. */
export function memoryFeed(options: FeedOptions = {}): MemoryFeed {
  const { prefix = "{clerk}", channel = "clerk:sessions", partitions = 1 } = options;
  const redis = new MemoryRedis();
  const feed = new SessionFeed(memoryAccess(redis), options);
  const keys = split(prefix, partitions);
  const sessions = new Map<string, { session: Session; revision: number }>();
  let count = 0;
  const next = (length: number): string => String(++count).padStart(length, "0");
  /** An id as long as Clerk's. */
  const idOf = (kind: string): string => `${kind}_${next(27)}`;

  function find(sessionId: string): Session {
    const found = sessions.get(sessionId);
    if (!found) throw new Error(`There is no session ${sessionId}.`);
    return found.session;
  }

  /** Appends an entry, and applies it unless it is stale. */
  function take(fields: Session, event: Partial<Event>, isStale = false): SessionUpdate {
    const { id, user_id, status, expire_at } = fields;
    const session = { ...fields, live: status === "active" && (expire_at ?? Infinity) > Date.now() };
    const number = partitionOf(user_id, partitions);
    const { events, session: sessionKey, userSessions } = keys[number] as Keys;
    const before = sessions.get(id);
    const revision = isStale ? null : (before?.revision ?? 0) + 1;
    const common = { id: idOf("msg"), type: `session.${status}`, occurred_at: Date.now() };
    const message = {
      schema_version: 1,
      cursor: null,
      revision,
      previous_status: (!isStale && before?.session.status) || null,
      event: { ...common, instance_id: `ins_${"0".repeat(27)}`, source: "clerk", ...event },
      session,
    };
    const json = JSON.stringify(message);
    const cursor = redis.nextId();
    const outcome = isStale ? "stale" : "applied";
    const update = streamed(json, `${events} ${cursor}`, cursor, outcome, number);
    if (revision) {
      const live = session.live ? "1" : "0";
      const stored = { state: update.json, status, live, user_id, revision: `${revision}`, cursor };
      redis.hashes.set(sessionKey(id), { ...stored, _expire_at: `${expire_at ?? ""}` });
      redis.setMember(userSessions(user_id), id, session.live ? (expire_at ?? Infinity) : undefined);
      sessions.set(id, { session, revision });
    }
    redis.add(events, cursor, ["outcome", outcome, "session_id", id, "user_id", user_id, "message", json]);
    if (revision) for (const name of [channel, `${channel}:user:${user_id}`]) redis.publish(name, update.json);
    return update;
  }

  function change(sessionId: string, fields: SessionFields, event: Partial<Event> = {}): SessionUpdate {
    const session = find(sessionId);
    const { status } = session;
    // Clerk's evidence, of an end or of a later one, outweighs that the relay found the session expired.
    const isOpen = status === "active" || status === "pending" || (status === "expired" && fields.status !== status);
    if (!isOpen) throw new Error(`${sessionId} is over: ${status}.`);
    return take({ ...session, updated_at: Date.now(), ...fields }, event);
  }

  return {
    feed,
    signIn(userId, { id = idOf("sess"), ...fields } = {}) {
      if (sessions.has(id)) throw new Error(`There is a session ${id} already.`);
      const now = Date.now();
      const session: Session = {
        object: "session",
        id,
        user_id: userId,
        client_id: idOf("client"),
        actor: null,
        status: "active",
        live: true,
        last_active_organization_id: null,
        last_active_at: now,
        latest_activity: null,
        expire_at: now + 7 * DAY_MS,
        abandon_at: now + 30 * DAY_MS,
        updated_at: now,
        created_at: now,
        tasks: [],
        ...fields,
      };
      return take(session, session.status === "active" ? { type: "session.created" } : {});
    },
    end: (sessionId) => change(sessionId, { status: "ended" }),
    remove: (sessionId) => change(sessionId, { status: "removed" }),
    revoke: (sessionId) => change(sessionId, { status: "revoked" }),
    expire(sessionId) {
      const end = Math.min(find(sessionId).expire_at ?? Infinity, Date.now());
      const event = { id: `exp_${sessionId}_${end}`, source: "synthetic" };
      return change(sessionId, { status: "expired", expire_at: end }, event);
    },
    update: (sessionId, fields) => change(sessionId, fields, { id: `api_${next(32)}`, source: "clerk-api" }),
    late(sessionId) {
      const session = find(sessionId);
      const event = { type: "session.created", occurred_at: session.created_at ?? Date.now() };
      return take({ ...session, status: "active" }, event, true);
    },
    trim(keep = 0) {
      for (const stream of redis.streams.values()) stream.entries = keep ? stream.entries.slice(-keep) : [];
    },
    flush() {
      for (const kept of [sessions, redis.hashes, redis.sets, redis.streams]) kept.clear();
      redis.wake();
    },
    fail(error = Object.assign(new Error("connect ECONNREFUSED"), { code: "ECONNREFUSED" })) {
      redis.failure = error;
      redis.wake();
    },
    restore() {
      redis.failure = undefined;
      redis.wake();
    },
    pending: (group) =>
      [...redis.streams.values()].reduce((sum, { groups }) => sum + (groups.get(group)?.pending.size ?? 0), 0),
    idle: () => redis.idle(),
  };
}
