// Mirrors: the state of all sessions in memory, for answers without a round trip that know how old they are.
/// <reference lib="esnext.disposable" preserve="true" />
import { asError } from "./clients/link.js";
import { clock } from "./clock.js";
import { BLOCK_MS, type Connection } from "./connection.js";
import { FeedClosedError, MirrorTooOldError, type OnReconnect } from "./errors.js";
import { partitionOf } from "./keys.js";
import { isOpen, mirrorReading } from "./mirror_reading.js";
import { explain } from "./refusals.js";
import { follow, type Partition } from "./stream.js";
import type { LiveStatus, SessionUpdate } from "./update.js";

/** What becomes of a question when a mirror is too old: it throws, asks Redis, or answers nevertheless. */
export type PastMaxAge = "raise" | "ask" | "allow";

export interface MirrorOptions {
  /** Milliseconds that an answer may be old; 5000 by default. */
  maxAge?: number;
  /** When it is older: `raise` a MirrorTooOldError (the default), `ask` Redis, or `allow` any age once it was ready. */
  pastMaxAge?: PastMaxAge;
  /** Milliseconds that ids are kept after a session's end: the relay's SESSION_RETENTION; 7 days by default. */
  keepEnded?: number;
  /** Closes the mirror. */
  signal?: AbortSignal;
  /** Called with the error before each new attempt to connect. Default: `console.warn`. */
  onReconnect?: OnReconnect;
}

/** A `Mirror` with `pastMaxAge: "ask"`: what answers returns a promise if Redis has to be asked. */
export interface AskingMirror {
  /** Whether it has read the state of all sessions, and still follows. */
  readonly isReady: boolean;
  /** Milliseconds since it last knew that it had missed nothing; Infinity before it is ready. */
  readonly age: number;
  /** Number of open sessions: `active` or `pending`. */
  readonly size: number;
  /** Resolves as soon as the state of all sessions has been read. Rejects if the mirror ends, or `signal` is aborted. */
  ready(options?: { signal?: AbortSignal }): Promise<void>;
  /** What the feed's `status` would have said at most `maxAge` ago. */
  status(sessionId: string, userId?: string | null): LiveStatus | Promise<LiveStatus>;
  /** Whether the session's `status` is `live`. */
  isLive(sessionId: string, userId?: string | null): boolean | Promise<boolean>;
  /** The user of an open session; null for any other. */
  userId(sessionId: string): string | null | Promise<string | null>;
  /** Stops following. */
  close(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
}

/**
 * The state of all sessions in memory, kept up to date in the background.
 *
 * What answers throws a MirrorTooOldError if it is older than `maxAge`, was never ready, or has ended by an error.
 */
export interface Mirror extends AskingMirror {
  status(sessionId: string, userId?: string | null): LiveStatus;
  isLive(sessionId: string, userId?: string | null): boolean;
  userId(sessionId: string): string | null;
}

/** What a mirror needs of its feed. @internal */
export interface Source {
  /** The partitions, those together that one connection serves. */
  readonly slots: readonly (readonly Partition[])[];
  /** What closes that which the feed has opened. */
  readonly open: Set<() => Promise<void>>;
  readonly onReconnect: OnReconnect;
  connect(partitions: readonly Partition[], onReconnect: OnReconnect): Connection;
  status(sessionId: string, userId?: string | null): Promise<LiveStatus>;
  get(sessionId: string): Promise<SessionUpdate | null>;
}

/** Begins to follow. Throws a RangeError. @internal */
export function mirrorOf(source: Source, options: MirrorOptions): AskingMirror {
  const { maxAge = 5000, pastMaxAge = "raise", keepEnded = 7 * 86_400_000, signal } = options;
  if (!(maxAge > 0)) throw new RangeError(`maxAge: ${maxAge} is no number of milliseconds`);
  if (!(keepEnded >= 0 && keepEnded < Infinity)) {
    throw new RangeError(`keepEnded: ${keepEnded} is no number of milliseconds`);
  }
  if (!["raise", "ask", "allow"].includes(pastMaxAge)) {
    throw new RangeError(`pastMaxAge: ${JSON.stringify(pastMaxAge)} is not "raise", "ask" or "allow"`);
  }
  const { slots } = source;
  const count = slots.flat().length;
  const oldest = pastMaxAge === "allow" ? Infinity : maxAge;
  const longestWait = Math.min(maxAge / 2, BLOCK_MS);
  const reading = mirrorReading(count, { maxAge: oldest, keepEnded, longestWait, onReady: wake });
  /** What looks whether the mirror is ready, or never will be. */
  const waiting = new Set<() => void>();
  /** By slot, since when Redis is away, and what was said last. Out of date once Redis was heard again. */
  const away = new Map<number, { since: number; error: Error }>();
  /** What ended it. */
  let failure: Error | undefined;
  let isOver = false;

  const connections = slots.map((slot, number) => source.connect(slot, (error) => noteAway(number, error)));
  source.open.add(close);
  signal?.addEventListener("abort", close);
  const followers = slots.map((slot, number) => keep(connections[number] as Connection, slot));
  if (signal?.aborted) void close();

  async function keep(connection: Connection, slot: readonly Partition[]): Promise<void> {
    try {
      await follow(connection, slot, reading, true).next();
    } catch (error) {
      if (!isOver && !(error instanceof FeedClosedError)) {
        failure = asError(error);
        console.warn(`clerk-session-feed: the mirror has ended: ${explain(failure)}`);
      }
    }
    await end();
  }

  async function end(): Promise<void> {
    isOver = true;
    reading.end();
    source.open.delete(close);
    signal?.removeEventListener("abort", close);
    wake();
    await Promise.all(connections.map((connection) => connection.close()));
  }

  async function close(): Promise<void> {
    await end();
    await Promise.all(followers);
  }

  function wake(): void {
    for (const look of waiting) look();
  }

  const heardAt = (slot: number): number => reading.heardAt(slots[slot] ?? []);

  function noteAway(slot: number, error: Error): void {
    const known = away.get(slot);
    away.set(slot, { since: known && known.since > heardAt(slot) ? known.since : clock(), error });
    source.onReconnect(error);
  }

  function reason(): string {
    if (failure) return `it has ended, since ${explain(failure)}`;
    const [longest] = [...away]
      .flatMap(([slot, each]) => (each.since > heardAt(slot) ? [each] : []))
      .sort((a, b) => a.since - b.since);
    if (longest) {
      const seconds = ((clock() - longest.since) / 1000).toFixed(1);
      return `Redis has been away for ${seconds} s: ${explain(longest.error)}`;
    }
    const isFirst = reading.knownAt() === -Infinity;
    const count = reading.growing() ?? (isFirst ? 0 : undefined);
    if (count !== undefined) {
      return `the sessions are ${isFirst ? "still" : "again, since the stream has lost its place,"} being read, ${count} so far`;
    }
    return "Redis does not answer, or this process had no time to look";
  }

  const age = (): number => clock() - reading.knownAt();
  const isReady = (): boolean => reading.knownAt() > -Infinity && !isOver;
  const tooOld = (cause: unknown): MirrorTooOldError => new MirrorTooOldError(age(), maxAge, reason(), cause);

  /** What memory says, or Redis. */
  function answer<T>(known: (now: number) => T, ask: () => Promise<T>): T | Promise<T> {
    const now = Date.now();
    if (!reading.isTooOld(now)) return known(now);
    if (isOver && !failure) throw new FeedClosedError("mirror");
    if (pastMaxAge === "ask") return ask();
    throw tooOld(failure);
  }

  const mirror: AskingMirror = {
    get isReady() {
      return isReady();
    },
    get age() {
      return age();
    },
    get size() {
      return reading.size();
    },
    ready: ({ signal } = {}) =>
      new Promise((resolve, reject) => {
        const look = (): void => {
          if (!isReady() && !isOver && !signal?.aborted) return;
          waiting.delete(look);
          signal?.removeEventListener("abort", look);
          if (isReady()) resolve();
          else reject(failure ?? (isOver ? new FeedClosedError("mirror") : tooOld(signal?.reason)));
        };
        waiting.add(look);
        signal?.addEventListener("abort", look);
        look();
      }),
    status: (sessionId, userId) =>
      answer(
        (now) => reading.status(sessionId, now, userId == null || count === 1 ? undefined : partitionOf(userId, count)),
        () => source.status(sessionId, userId),
      ),
    isLive(sessionId, userId) {
      const status = mirror.status(sessionId, userId);
      return typeof status === "string" ? status === "live" : status.then((told) => told === "live");
    },
    userId: (sessionId) =>
      answer(
        () => reading.userId(sessionId),
        async () => {
          const session = (await source.get(sessionId))?.session;
          return session && (session.live || isOpen(session.status)) ? session.user_id : null;
        },
      ),
    close,
    [Symbol.asyncDispose]: close,
  };
  return mirror;
}
