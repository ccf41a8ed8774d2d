// A long module, since it is what users see: each method, and what it promises.
import { driverOf } from "./clients/index.js";
import type { Access, Connection } from "./connection.js";
import { START } from "./cursors.js";
import { FeedClosedError, type OnReconnect } from "./errors.js";
import { consume, groupOf } from "./group.js";
import { partitionOf, split } from "./keys.js";
import { merge } from "./iterate.js";
import { mirrorOf, type AskingMirror, type Mirror, type MirrorOptions } from "./mirror.js";
import { accessTo } from "./redis_connection.js";
import { explain } from "./refusals.js";
import * as reads from "./reads.js";
import { Partition, follow, subscribe, updateReading } from "./stream.js";
import type { LiveStatus, SessionUpdate, Updates } from "./update.js";

/** A client of `redis` (node-redis 5 or 6), `ioredis` (5 or 6) or `iovalkey`. */
export type RedisClient =
  | { duplicate(...overrides: any[]): unknown }
  // node-redis' pools, and the sentinels' client of its version 5
  | { readonly totalClients: number }
  | { getMasterNode(): unknown };

/** A cursor; with partitions, one for each, by its number. */
export type After = string | Readonly<Record<number, string | null>>;

/** The settings of the relay that differ from their defaults. */
export interface FeedOptions {
  /** REDIS_KEY_PREFIX; `{clerk}` by default. */
  prefix?: string;
  /** REDIS_CHANNEL; `clerk:sessions` by default. */
  channel?: string;
  /** PARTITIONS; 1 by default. */
  partitions?: number;
  /** Milliseconds for connecting and for one command; 2000 by default. */
  timeout?: number;
}

/** What every iterator takes. */
export interface IteratorOptions {
  /** Ends the iterator quietly, also while it waits. */
  signal?: AbortSignal;
  /** Called with the error before each new attempt to connect. Default: `console.warn`. */
  onReconnect?: OnReconnect;
}

export interface FollowOptions extends IteratorOptions {
  /** To go on behind it: an update's `position`; "0-0" for all that the stream holds. Null: the snapshots come first. */
  after?: After | null;
  /** Yield events, too, that came too late to change anything. */
  stale?: boolean;
  /** Begin again with the snapshots, instead of throwing a CursorLostError. */
  resync?: boolean;
}

export interface ConsumeOptions extends FollowOptions {
  /** Milliseconds until others get what this one has not done: twice what the body may take; 60,000 by default. */
  claimAfter?: number;
}

export interface SubscribeOptions extends IteratorOptions {
  /** Only what is published about this user. */
  userId?: string;
}

type Rules = (connection: Connection, partitions: readonly Partition[]) => Updates;

/**
 * Reads the state of sessions, and follows what happens to them.
 *
 *     for await (const update of new SessionFeed(client).follow()) …
 *
 * Iterators survive restarts and failovers of Redis, and throw errors of the Redis client only where another attempt
 * can't help. Short reads throw them, too, while Redis is away.
 */
export class SessionFeed {
  readonly #access: Access;
  readonly #channel: string;
  readonly #partitions: readonly Partition[];
  readonly #slots: readonly number[];
  readonly #readers = new Map<number, Connection>();
  /** What closes the connections of the iterators that run. */
  readonly #open = new Set<() => Promise<void>>();
  #isClosed = false;

  /** Makes a feed; it connects when it is first used. */
  constructor(client: RedisClient, options?: FeedOptions);
  /** @internal */
  constructor(client: Access, options?: FeedOptions);
  constructor(client: RedisClient | Access, options: FeedOptions = {}) {
    const { prefix = "{clerk}", channel = "clerk:sessions", partitions = 1, timeout = 2000 } = options;
    if (!Number.isInteger(partitions) || partitions < 1 || partitions > 1024) {
      throw new RangeError(`partitions: ${partitions} is no number from 1 to 1024`);
    }
    if (partitions > 1 && !/^[^{]*\{[^}]+\}/.test(prefix)) {
      throw new RangeError(`prefix: ${JSON.stringify(prefix)} has no {hash tag}, which partitions need`);
    }
    if (!(timeout > 0 && timeout <= 60_000)) throw new RangeError(`timeout: ${timeout} is no number up to 60000`);
    this.#access = isAccess(client) ? client : accessTo(driverOf(client), { prefix, partitions, timeout });
    this.#channel = channel;
    this.#partitions = split(prefix, partitions).map((keys, number) => new Partition(number, keys));
    this.#slots = this.#partitions.map(({ keys }) => this.#access.slot(keys.events));
  }

  /** Ends iterators and mirrors, and disconnects what the feed has connected. The client stays open. */
  async close(): Promise<void> {
    this.#isClosed = true;
    await Promise.all([...this.#open].map((close) => close()));
    await Promise.all([...this.#readers.values()].map((reader) => reader.close()));
  }

  /** What was applied to the session last; null if nothing is stored. With partitions, `userId` saves asking all. */
  async get(sessionId: string, userId?: string | null): Promise<SessionUpdate | null> {
    return reads.get(this.#sources(userId), sessionId);
  }

  /** Whether the session's `status` is `live`. */
  async isLive(sessionId: string, userId?: string | null): Promise<boolean> {
    return (await this.status(sessionId, userId)) === "live";
  }

  /**
   * Whether the session is live, in one round trip.
   *
   * - `live`: it is active and has not expired.
   * - `ended`: it is stored and not live; `pending` counts as that, too.
   * - `unknown`: nothing is stored of it; its webhook may be on the way. docs/feed.md says what to do.
   */
  async status(sessionId: string, userId?: string | null): Promise<LiveStatus> {
    return reads.status(this.#sources(userId), sessionId);
  }

  /** The user's live sessions, the first to expire first. */
  async liveSessions(userId: string): Promise<SessionUpdate[]> {
    const [source] = this.#sources(userId);
    return reads.liveSessions(source as reads.Source, userId);
  }

  /** What the stream still holds about the session. Reads the whole stream. */
  async history(sessionId: string, userId?: string | null): Promise<SessionUpdate[]> {
    return reads.history(this.#sources(userId), sessionId);
  }

  /** The cursor at the end of each partition, for `follow({ after })`. */
  async now(): Promise<Record<number, string>> {
    return reads.now(this.#sources());
  }

  /**
   * Yields every applied update, in the order of the stream, each once, until the feed is closed.
   *
   * Without `after`, the state of each session comes first (`isSnapshot`), also of those that ended.
   *
   * The iterator throws a CursorLostError if the stream was trimmed past what was read last, or Redis lost it.
   */
  follow(options: FollowOptions = {}): Updates {
    const { after, stale = false, resync = false } = options;
    const rules: Rules = (connection, partitions) => follow(connection, partitions, updateReading(stale), resync);
    return this.#begin(after, options, rules);
  }

  /**
   * Yields this consumer's share of what the group gets: each update at least once, whoever dies.
   *
   * An update is done when the next one is asked for. After a crash, what was done in the last second may come again.
   * Between consumers there is no order: an older update of a session may come after a newer one (`compareCursors`).
   *
   * `name`: this consumer's, the same after a restart. `after`: where the group begins if it does not exist.
   */
  consume(group: string, name: string, options: ConsumeOptions = {}): Updates {
    const { after, stale = false, resync = false, claimAfter = 60_000 } = options;
    const share = groupOf(group, name, claimAfter);
    const rules: Rules = (connection, partitions) => consume(connection, partitions, share, { stale, resync });
    return this.#begin(after, options, rules);
  }

  /** Yields what is published from now on; what comes while Redis is away is lost. */
  subscribe(options: SubscribeOptions = {}): Updates {
    const { userId } = options;
    const channel = userId === undefined ? this.#channel : `${this.#channel}:user:${userId}`;
    return this.#begin(undefined, options, (connection) => subscribe(connection, channel), true);
  }

  /** Keeps the state of all sessions in memory, from now on, and returns what answers from there. */
  mirror(options?: MirrorOptions & { pastMaxAge?: "raise" | "allow" }): Mirror;
  /** With `pastMaxAge: "ask"`, what answers may be a promise. */
  mirror(options: MirrorOptions): AskingMirror;
  mirror(options: MirrorOptions = {}): AskingMirror {
    if (this.#isClosed) throw new FeedClosedError();
    const { onReconnect = warn } = options;
    const source = {
      slots: this.#bySlot(this.#placed(undefined)),
      open: this.#open,
      onReconnect,
      connect: this.#connect,
      status: this.status.bind(this),
      get: this.get.bind(this),
    };
    return mirrorOf(source, options);
  }

  /** The partitions, or that of the user, each with the connection for short reads. */
  #sources(userId?: string | null): reads.Source[] {
    if (this.#isClosed) throw new FeedClosedError();
    const count = this.#partitions.length;
    const asked = userId == null ? this.#partitions : this.#partitions.slice(partitionOf(userId, count)).slice(0, 1);
    return asked.map((partition) => {
      const slot = this.#slots[partition.number] as number;
      let reader = this.#readers.get(slot);
      if (!reader) this.#readers.set(slot, (reader = this.#access.reader(partition.keys.events)));
      return [reader, partition];
    });
  }

  /** What the rules yield for all slots of a cluster, each over a connection of its own. */
  #begin(after: After | null | undefined, options: IteratorOptions, rules: Rules, isOne = false): Updates {
    if (this.#isClosed) throw new FeedClosedError();
    const { signal, onReconnect = warn } = options;
    const placed = this.#placed(after);
    const followers = (isOne ? [placed] : this.#bySlot(placed)).map((partitions) => {
      const connection = this.#connect(partitions, onReconnect);
      return { connection, updates: rules(connection, partitions) };
    });
    return merge(followers, this.#open, signal, () => this.#isClosed);
  }

  /** Partitions, those together that one connection serves. */
  #bySlot(partitions: readonly Partition[]): Partition[][] {
    const bySlot = new Map<number, Partition[]>();
    for (const partition of partitions) {
      const slot = this.#slots[partition.number] as number;
      bySlot.set(slot, [...(bySlot.get(slot) ?? []), partition]);
    }
    return [...bySlot.values()];
  }

  readonly #connect = (partitions: readonly Partition[], onReconnect: OnReconnect): Connection =>
    this.#access.follower((partitions[0] as Partition).keys.events, { onReconnect });

  #placed(after: After | null | undefined): Partition[] {
    const partitions = this.#partitions.map(({ number, keys }) => new Partition(number, keys));
    if (typeof after === "string") {
      if (partitions.length > 1 && after.includes("-") && after !== START) {
        throw new RangeError("A cursor counts within its stream: with partitions, give { [number]: cursor }.");
      }
      for (const partition of partitions) partition.goTo(after);
    }
    for (const [number, cursor] of typeof after === "object" ? Object.entries(after ?? {}) : []) {
      const partition = partitions[Number(number)];
      if (!partition) throw new RangeError(`There is no partition ${number}.`);
      if (cursor !== null) partition.goTo(cursor as string);
    }
    return partitions;
  }
}

const isAccess = (client: RedisClient | Access): client is Access => "follower" in client;

function warn(error: Error): void {
  console.warn(`clerk-session-feed: Redis: ${explain(error)}; trying again`);
}
