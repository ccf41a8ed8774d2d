// The state of every session, then the stream, without a gap; or the channel, whose messages can get lost.
// A long module, since snapshots, stream and waiting share what is known of how far a partition was read.
import { clock } from "./clock.js";
import { BLOCK_MS, messageOf, type Command, type Connection, type Reply } from "./connection.js";
import { NOTHING, START, compareCursors, later, wholeCursor } from "./cursors.js";
import { CursorLostError } from "./errors.js";
import type { Keys } from "./keys.js";
import { type SessionUpdate, type Updates, published, streamed } from "./update.js";

export type { Updates };

/** Entries, or keys, in one response. */
export const BATCH = 500;
/** Milliseconds between two reads at a server that does not wait for news, though it is told to. */
export const POLL_MS = 1000;

/** An entry of a stream as Redis sends it: the id, then names and values in turns; null if it was removed. */
export type RawEntry = [id: string, fields: string[] | null];

/** An entry of the stream: docs/contract.md, section 4. */
export interface Entry {
  readonly cursor: string;
  readonly outcome: string;
  readonly sessionId: string;
  /** Throws an UnreadableMessageError. */
  update(): SessionUpdate;
}

/** A stream, the keys that belong to it, and how far it was read. */
export class Partition {
  /** null: the snapshots come first. */
  cursor: string | null = null;
  /** There was an entry with this id: if it is gone, entries after it may be gone too. */
  isEntry = false;
  /** Entries that the stream had got, and lost again, when this began at its end. */
  addedBefore = 0;
  /** The first entry behind a cursor that is no entry's, if it was added while this was awaited. */
  firstSeen: string | null = null;
  /** Sessions whose snapshot was newer than the cursor, and up to where they are known. */
  readonly ahead = new Map<string, string>();
  /** The greatest cursor in `ahead`. */
  aheadUntil = START;

  constructor(
    readonly number: number,
    readonly keys: Keys,
  ) {}

  /** Throws a RangeError if it is no cursor. */
  goTo(cursor: string): void {
    this.cursor = wholeCursor(cursor);
    this.isEntry = cursor.includes("-") && this.cursor !== START && this.cursor !== NOTHING;
    this.addedBefore = 0;
  }

  /** Goes to the last entry; without one, to where the next can come. `stream`: see `streamInfo`. */
  goToEnd(stream: Info): void {
    const last = stream["last-entry"] as RawEntry | null | undefined;
    if (last) return this.goTo(last[0]);
    this.cursor = later(NOTHING, (stream["last-generated-id"] as string | undefined) ?? START);
    this.isEntry = false;
    this.addedBefore = (stream["entries-added"] as number | undefined) ?? 0;
  }

  /** An entry of the stream by the names of its fields. */
  entry([cursor, fields]: RawEntry): Entry {
    const { outcome = "", session_id: sessionId = "", message = "" } = asObject(fields ?? []) as Record<string, string>;
    const where = `${this.keys.events} ${cursor}`;
    const update = (): SessionUpdate =>
      streamed(message, where, cursor, outcome as SessionUpdate["outcome"], this.number);
    return { cursor, outcome, sessionId, update };
  }

  /** Notes up to where a session is known, if that is behind the cursor from which the stream will be read. */
  note(sessionId: string, known: string, begunAt: string): void {
    if (compareCursors(known, begunAt) <= 0) return;
    this.ahead.set(sessionId, known);
    this.aheadUntil = later(this.aheadUntil, known);
  }

  /** Whether the session's snapshot was made after this entry. */
  isKnown(entry: Entry): boolean {
    if (compareCursors(entry.cursor, this.aheadUntil) > 0) this.ahead.clear();
    const known = this.ahead.get(entry.sessionId);
    return known !== undefined && compareCursors(entry.cursor, known) <= 0;
  }
}

/** A session as Redis has it. */
export interface Found<T> {
  readonly sessionId: string;
  readonly cursor: string;
  /** What a follower yields; undefined: nothing. */
  readonly item?: T;
}

/** What a follower makes of what Redis has, and how long it may wait. Times are milliseconds. */
export interface Reading<T> {
  /** Whether a snapshot may come twice. If not, its key is remembered until all have come. */
  readonly takesRepeats?: boolean;
  /** To wait for news at most, if that is less than BLOCK_MS. */
  readonly longestWait?: number;
  /** Between entries and the next read: what comes meanwhile is read at once. */
  readonly rest?: number;
  /** Reads the hashes of sessions; those that are gone are left out. Throws an UnreadableMessageError. */
  found(connection: Connection, partition: Partition, keys: readonly string[]): Promise<Iterable<Found<T>>>;
  /** What a follower yields for an entry that no snapshot had, if anything. Throws an UnreadableMessageError. */
  entry(entry: Entry, partition: Partition): T | undefined;
  /** Called before the snapshots of a partition, and again where they begin anew. */
  begin?(partition: Partition): void;
  /** Whether to look into a partition of which there is no news. */
  isDue?(partition: Partition): boolean;
  /**
   * Called when all is read that a partition had; it may take the cursor away, to have the snapshots again.
   *
   * `askedAt`: by `clock`, when that was asked.
   */
  reached?(connection: Connection, partition: Partition, askedAt: number): Promise<void>;
}

/** Yields each state as a SessionUpdate. `stale`: also what came too late to change anything. */
export const updateReading = (stale = false): Reading<SessionUpdate> => ({
  async found(connection, { number }, keys) {
    const states = await statesOf((...commands) => connection.ask(...commands), keys);
    return (function* () {
      for (const [key, state] of states) {
        const item = published(state, key, number, true);
        yield { sessionId: item.session.id, cursor: item.cursor, item };
      }
    })();
  },
  entry: (entry) => (stale || entry.outcome === "applied" ? entry.update() : undefined),
});

/**
 * Yields the snapshots of partitions without a cursor, then every entry behind the cursors; never ends.
 *
 * Throws a CursorLostError, unless `resync` is set: then the snapshots come again.
 */
export async function* follow<T>(
  connection: Connection,
  partitions: readonly Partition[],
  reading: Reading<T>,
  resync: boolean,
): AsyncGenerator<T, void, undefined> {
  let awake = [...partitions];
  for (;;) {
    for (const partition of awake) {
      if (partition.cursor === null) {
        // Before the snapshots: what happens meanwhile comes after this cursor.
        partition.goToEnd(await streamInfo(connection, partition.keys.events));
        yield* readSnapshots(connection, partition, reading);
      }
    }
    const behind: Partition[] = [];
    let isIdle = true;
    for (const partition of awake) {
      const { entries, askedAt } = await readOn(connection, partition, resync);
      for (const raw of entries) {
        const entry = partition.entry(raw);
        partition.cursor = entry.cursor;
        partition.isEntry = true;
        isIdle = false;
        if (entry.outcome !== "applied" || !partition.isKnown(entry)) {
          const news = reading.entry(entry, partition);
          if (news !== undefined) yield news;
        }
      }
      const isThrough = entries.length < BATCH;
      if (isThrough && partition.cursor !== null) await reading.reached?.(connection, partition, askedAt);
      if (!isThrough || partition.cursor === null) behind.push(partition);
    }
    if (!behind.length && !isIdle && reading.rest) await connection.pause(reading.rest);
    awake = behind.length ? behind : await sleepSeeingFirst(connection, partitions, reading.longestWait);
    awake.push(...partitions.filter((partition) => !awake.includes(partition) && reading.isDue?.(partition)));
  }
}

/** Yields what is published from now on; never ends. */
export async function* subscribe(connection: Connection, channel: string): Updates {
  for (;;) {
    const message = await connection.receive(channel);
    if (message !== null) yield published(message, channel);
  }
}

/**
 * Entries behind the cursor; none, and no cursor any more, if it is lost and `resync` is set; when that was asked.
 *
 * The range begins with the cursor's own entry: as long as that is there, nothing behind it is missing.
 */
async function readOn(
  connection: Connection,
  partition: Partition,
  resync: boolean,
): Promise<{ entries: RawEntry[]; askedAt: number }> {
  const cursor = partition.cursor as string;
  const first = partition.isEntry ? cursor : `(${cursor}`;
  const read: Command = ["XRANGE", partition.keys.events, first, "+", "COUNT", BATCH + 1];
  let entries: RawEntry[] = [];
  let isLost: boolean;
  let askedAt = 0;
  const ask: Connection["ask"] = (...commands) =>
    connection.persist(() => {
      askedAt = clock();
      return connection.execute(...commands);
    });
  if (partition.isEntry) {
    [entries] = (await ask(read)) as [RawEntry[]];
    isLost = entries.shift()?.[0] !== cursor;
  } else {
    let stream: Reply = [];
    try {
      [entries, stream] = (await ask(read, ["XINFO", "STREAM", partition.keys.events])) as [RawEntry[], Reply];
    } catch (error) {
      if (!isMissing(error)) throw error;
    }
    const info = asObject(stream);
    const isFirstSeen = entries[0]?.[0] === partition.firstSeen;
    isLost = entries.length
      ? isTrimmedPast(cursor, info, !isFirstSeen, partition.addedBefore)
      : // Redis 6.2 can't tell, once there is an entry, that others came before it, and went.
        cursor !== START && isEmptiedBehind(cursor, info);
  }
  if (!isLost) return { entries, askedAt };
  if (!resync) throw new CursorLostError(cursor, partition.number);
  connection.comparePartitionsAgain();
  partition.cursor = null;
  return { entries: [], askedAt };
}

/** Whether a stream that is empty had entries behind the cursor, if it does not count them. */
const isEmptiedBehind = (cursor: string, stream: Info): boolean =>
  stream["entries-added"] === undefined && compareCursors(String(stream["last-generated-id"] ?? START), cursor) > 0;

/** The cursor at the end of a stream. `ask`: `ask` or `askTwice` of a connection. */
export async function newest(ask: Connection["ask"], events: string): Promise<string> {
  const [entries] = (await ask(["XREVRANGE", events, "+", "-", "COUNT", 1])) as [RawEntry[]];
  return entries[0]?.[0] ?? NOTHING;
}

/** Keys of sessions with the messages that are their states; without those that are gone. `ask`: as for `newest`. */
export async function statesOf(
  ask: Connection["ask"],
  keys: readonly string[],
): Promise<[key: string, json: string][]> {
  const responses = await ask(...keys.map((key): Command => ["HMGET", key, "state"]));
  return keys.flatMap((key, index): [string, string][] => {
    const [state] = responses[index] as [string | null];
    return state === null ? [] : [[key, state]];
  });
}

/** What XINFO tells, by name. */
export type Info = Record<string, Reply | undefined>;

/** The response to XINFO STREAM; nothing if there is no stream. */
export async function streamInfo(connection: Connection, events: string): Promise<Info> {
  try {
    const [stream] = await connection.ask(["XINFO", "STREAM", events]);
    return asObject(stream);
  } catch (error) {
    if (!isMissing(error)) throw error;
    return {};
  }
}

/** Whether Redis says that a key is missing. */
export const isMissing = (error: unknown): boolean => messageOf(error).includes("no such key");

/**
 * Whether something behind the cursor was removed.
 *
 * `stream`: see `streamInfo`. `ifUnknown`: for Redis 6.2, which does not count what was ever added. `addedBefore`: how
 * many were added, and removed again, before the cursor.
 */
export function isTrimmedPast(cursor: string, stream: Info, ifUnknown = false, addedBefore = 0): boolean {
  const first = stream["first-entry"] as RawEntry | null | undefined;
  if (cursor === START || !first || compareCursors(first[0], cursor) <= 0) return false;
  const added = stream["entries-added"] as number | undefined;
  return added === undefined ? ifUnknown : added - addedBefore > (stream["length"] as number);
}

/** Yields the state of every session, each once. */
export const snapshots = (connection: Connection, partition: Partition): Updates =>
  readSnapshots(connection, partition, updateReading());

/**
 * Yields what is read of every session.
 *
 * The cursor of a SCAN means nothing on another connection, which may lead to another server, or to one that was
 * restarted. Then the SCAN begins again.
 */
async function* readSnapshots<T>(
  connection: Connection,
  partition: Partition,
  reading: Reading<T>,
): AsyncGenerator<T, void, undefined> {
  const pattern = `${partition.keys.session("").replace(/[\][*?\\^]/g, "\\$&")}*`;
  const begunAt = partition.cursor;
  const seen = new Set<string>();
  partition.ahead.clear();
  partition.aheadUntil = START;
  reading.begin?.(partition);
  let at = "0";
  let { connections } = connection;
  for (;;) {
    const scan: Command = ["SCAN", at, "MATCH", pattern, "COUNT", BATCH];
    const [[after, keys]] = (await connection.ask(scan)) as [[string, string[]]];
    if (at !== "0" && connection.connections !== connections) {
      reading.begin?.(partition);
      at = "0";
      continue;
    }
    ({ connections } = connection);
    const fresh = [...new Set(keys)].filter((key) => !seen.has(key));
    for (const { sessionId, cursor, item } of fresh.length ? await reading.found(connection, partition, fresh) : []) {
      if (begunAt !== null) partition.note(sessionId, cursor, begunAt);
      if (item !== undefined) yield item;
    }
    if (!reading.takesRepeats) for (const key of fresh) seen.add(key);
    if (after === "0") return;
    at = after;
  }
}

/** Waits; resolves to the partitions to look at: those with something behind the cursor, or all. */
export async function sleep(
  connection: Connection,
  partitions: readonly Partition[],
  cursors: readonly string[],
  milliseconds = Infinity,
): Promise<Partition[]> {
  const { news } = await awaitNews(connection, partitions, cursors, [], milliseconds);
  const awake = partitions.filter(({ keys }) => news.has(keys.events));
  return awake.length ? awake : [...partitions];
}

/**
 * Waits likewise, and notes what comes first behind cursors that are no entry's.
 *
 * Redis 6.2 can't tell later whether others had been there. It runs commands that are sent together one right after
 * the other, so what comes after the first found nothing is the first.
 */
async function sleepSeeingFirst(
  connection: Connection,
  partitions: readonly Partition[],
  milliseconds?: number,
): Promise<Partition[]> {
  const unsure = partitions.filter(({ isEntry, cursor }) => !isEntry && cursor !== START);
  const looks = unsure.map(({ keys, cursor }): Command => ["XRANGE", keys.events, `(${cursor}`, "+", "COUNT", 1]);
  const cursors = partitions.map(({ cursor }) => cursor as string);
  const { found, news } = await awaitNews(connection, partitions, cursors, looks, milliseconds);
  for (const [index, partition] of unsure.entries()) {
    partition.firstSeen = (found[index] as Reply[]).length ? null : (news.get(partition.keys.events) ?? null);
  }
  const awake = partitions.filter(({ keys }) => news.has(keys.events));
  // Entries of the others may be gone, and what came after them.
  return awake.length ? awake : partitions.filter(({ isEntry }) => isEntry);
}

/** Waits; resolves to the responses to commands sent before, and by stream the first id behind the cursor, if any. */
async function awaitNews(
  connection: Connection,
  partitions: readonly Partition[],
  cursors: readonly string[],
  before: readonly Command[],
  milliseconds = Infinity,
): Promise<{ found: Reply[]; news: Map<string, string> }> {
  const blockMs = Math.trunc(Math.min(BLOCK_MS, Math.max(1, milliseconds)));
  const begunAt = performance.now();
  const streams = partitions.map(({ keys }) => keys.events);
  const read: Command = ["XREAD", "COUNT", 1, "BLOCK", blockMs, "STREAMS", ...streams, ...cursors];
  const found = await connection.ask(...before, read);
  const response = found.pop() as [string, RawEntry[]][] | null;
  // Of an entry that was added and deleted at once, XREAD says that nothing is there.
  const news = new Map(response?.flatMap(([name, [first]]) => (first ? [[name, first[0]]] : [])));
  if (!news.size && performance.now() - begunAt < Math.min(POLL_MS, blockMs / 2)) {
    await connection.pause(Math.min(POLL_MS, blockMs));
  }
  return { found, news };
}

/** Names and values, which come in turns, as an object. */
export function asObject(response: Reply | undefined): Info {
  const parts = (response ?? []) as Reply[];
  const object: Info = {};
  for (let index = 0; index < parts.length; index += 2) object[String(parts[index])] = parts[index + 1];
  return object;
}
