// How a mirror reads what Redis has, and what it knows of its own age.
//
// Snapshots are read field by field: to parse the messages of a million sessions takes a while.
import { clock } from "./clock.js";
import type { Command, Connection } from "./connection.js";
import { START, compareCursors } from "./cursors.js";
import { UnreadableMessageError } from "./errors.js";
import { isId } from "./keys.js";
import { HOUR_MS, Table, isLiveAt, userOf, type Kept } from "./mirror_table.js";
import { BATCH, statesOf, type Found, type Partition, type Reading } from "./stream.js";
import { published, type LiveStatus } from "./update.js";

/** Of a session's hash. The last is the relay's own affair: where it is missing, `state` has the end. */
const FIELDS = ["live", "status", "user_id", "cursor", "_expire_at"];
/** Milliseconds between news and the next read: with 1,000 events a second, 20 are read at once, which is cheaper. */
const REST_MS = 20;
/** Sessions that are looked at between two reads, for whether to forget them: a millisecond's work. */
const FORGET_AT_ONCE = 2000;
/** Milliseconds by which the time of day may be set within an hour. Otherwise nothing is forgotten for another hour. */
const CLOCK_MS = 60_000;

/** Whether a session may be live, now or later. */
export const isOpen = (status: string | null): boolean => status === "active" || status === "pending";

/** What a mirror keeps of a partition, and how far that was read. */
class Part {
  /** What answers. A table is complete when it gets in here. While the snapshots are read, it grows elsewhere. */
  table: Table;
  growing: Table | undefined;
  /** When nothing was missing in the table, by `clock`; -Infinity before it is complete. */
  knownAt = -Infinity;
  /** When Redis was heard last, by `clock`. */
  heardAt = -Infinity;
  /** The partition's `aheadUntil` when all was last read. */
  wasAheadUntil = START;
  /** Sessions of which an entry did not say when they end, and its cursor. */
  readonly unsure = new Map<string, string>();
  /** Those of which nobody has looked yet whether to forget them. */
  forgetting: Iterator<string> | undefined;
  forgetAt = clock() + HOUR_MS;
  /** Differs later if somebody sets the time of day. */
  setAt = Date.now() - clock();

  constructor(keepEnded: number) {
    this.table = new Table(keepEnded);
  }
}

/** Keeps the tables that a mirror looks into. Times are milliseconds. */
export interface MirrorReading extends Reading<never> {
  /** When nothing was missing in any table, by `clock`; -Infinity before they are complete. */
  knownAt(): number;
  /** When Redis was heard last, by `clock`, of these partitions. */
  heardAt(partitions: readonly Partition[]): number;
  /** Number of open sessions. */
  size(): number;
  /** Number of sessions that were read so far, while snapshots are read. */
  growing(): number | undefined;
  /** Whether the tables are too old to answer from. `now`, here and below: the time of day. */
  isTooOld(now: number): boolean;
  /** `number`: of the partition that the session would be in, if that is known. */
  status(sessionId: string, now: number, number?: number): LiveStatus;
  /** Whose session it is, if it is open. */
  userId(sessionId: string): string | null;
  /** Lets nothing be answered any more. */
  end(): void;
}

/** `onReady`: called again and again. */
export function mirrorReading(
  partitions: number,
  {
    maxAge,
    keepEnded,
    longestWait,
    onReady,
  }: { maxAge: number; keepEnded: number; longestWait: number; onReady(): void },
): MirrorReading {
  const parts = Array.from({ length: partitions }, () => new Part(keepEnded));
  const partOf = ({ number }: Partition): Part => parts[number] as Part;
  const knownAt = (): number => Math.min(...parts.map((part) => part.knownAt));
  const tableOf = (part: Part): Table => part.growing ?? part.table;
  /** What is kept of a session. */
  function find(sessionId: string, number?: number): Kept | undefined {
    for (const { table } of number === undefined ? parts : [parts[number] as Part]) {
      const kept = table.kept.get(sessionId);
      if (kept !== undefined) return kept;
    }
    return undefined;
  }

  /** When the tables are too old to answer from, by `clock`; -Infinity also after the end. */
  let oldAt = -Infinity;
  /** Before both of these, they are not too old. Each is quick to look at; sleep, or a clock that was set, parts them. */
  let isYoungUntil = -Infinity;
  let isYoungUntilTime = -Infinity;
  let isOver = false;

  /** Whether the tables are too old, by the clock that counts. */
  function lookAtClock(): boolean {
    const left = oldAt - clock();
    isYoungUntil = performance.now() + left;
    isYoungUntilTime = Date.now() + left;
    return left <= 0;
  }

  async function found(connection: Connection, partition: Partition, keys: readonly string[]): Promise<Found<never>[]> {
    const part = partOf(partition);
    const table = tableOf(part);
    const before = partition.keys.session("").length;
    const read = await connection.ask(...keys.map((key): Command => ["HMGET", key, ...FIELDS]));
    part.heardAt = clock();
    const stored = (read as (string | null)[][]).flatMap((fields, index) =>
      fields[0] == null ? [] : [{ key: keys[index] as string, fields }],
    );
    const elsewhere = stored.flatMap(({ key, fields }) => (fields[4] == null ? [key] : []));
    const ends = elsewhere.length ? await endsOf(connection, elsewhere) : undefined;
    const now = Date.now();
    const sessions: Found<never>[] = [];
    for (const { key, fields } of stored) {
      const [live, status = null, userId, cursor, expireAt] = fields;
      if (userId == null || cursor == null) throw new UnreadableMessageError(`${key}: fields of its hash are missing`);
      const end = expireAt == null ? ends?.get(key) : expireAt === "" ? null : Number(expireAt);
      if (end === undefined) continue; // the key expired between the two reads
      const sessionId = key.slice(before);
      // Not the relay's; or of a server that does not have the entry.
      if (!isId(sessionId) || compareCursors(cursor, part.unsure.get(sessionId) ?? START) < 0) continue;
      table.put(sessionId, userId, end, isOpen(status), live === "1", now);
      sessions.push({ sessionId, cursor });
    }
    return sessions;
  }

  /** Looks up when sessions end whose entries did not say so. */
  async function settle(connection: Connection, partition: Partition): Promise<void> {
    const { unsure } = partOf(partition);
    while (unsure.size) {
      const batch = [...unsure.keys()].slice(0, BATCH);
      const keys = batch.map((sessionId) => partition.keys.session(sessionId));
      for (const { sessionId, cursor } of await found(connection, partition, keys)) {
        // It may be newer than the cursor. What comes of it up to there must not undo it.
        partition.note(sessionId, cursor, partition.cursor as string);
      }
      for (const sessionId of batch) unsure.delete(sessionId);
    }
  }

  /** Looks at some sessions, and once an hour begins to look at all. */
  function forget(part: Part): void {
    const { table, forgetting } = part;
    const now = Date.now();
    if (forgetting) {
      for (let left = Math.max(FORGET_AT_ONCE, table.kept.size / 500); left > 0; left--) {
        const { value, done } = forgetting.next();
        if (done) {
          part.forgetting = undefined;
          return;
        }
        table.forget(value, now);
      }
    } else if (clock() >= part.forgetAt) {
      part.forgetAt = clock() + HOUR_MS;
      const setAt = now - clock();
      // Otherwise that time may be wrong, and what is forgotten is gone.
      if (Math.abs(setAt - part.setAt) < CLOCK_MS) part.forgetting = table.kept.keys();
      part.setAt = setAt;
    }
  }

  return {
    takesRepeats: true,
    longestWait,
    rest: REST_MS,
    knownAt,
    heardAt: (asked) => Math.max(...asked.map((partition) => partOf(partition).heardAt)),
    size: () => parts.reduce((sum, { table }) => sum + table.open, 0),
    growing: () =>
      parts.reduce<number | undefined>(
        (sum, { growing }) => (growing ? (sum ?? 0) + growing.kept.size : sum),
        undefined,
      ),
    isTooOld: (now) => !(performance.now() < isYoungUntil && now < isYoungUntilTime) && lookAtClock(),
    status(sessionId, now, number) {
      const kept = find(sessionId, number);
      return kept === undefined ? "unknown" : isLiveAt(kept, now) ? "live" : "ended";
    },
    userId: (sessionId) => userOf(find(sessionId)),
    end() {
      isOver = true;
      oldAt = isYoungUntil = -Infinity;
    },

    begin(partition) {
      const part = partOf(partition);
      part.growing = new Table(keepEnded);
      part.unsure.clear();
      // Of a server that went away before all was read.
      partition.ahead.clear();
      partition.aheadUntil = START;
    },
    found,
    entry(entry, partition) {
      if (entry.outcome !== "applied") return undefined;
      const { id, user_id, expire_at, status, live } = entry.update().session;
      const part = partOf(partition);
      tableOf(part).put(id, user_id, expire_at, isOpen(status), live, Date.now());
      // It has no end, or OMIT_FIELDS hides it.
      if (expire_at === null) part.unsure.set(id, entry.cursor);
      return undefined;
    },
    isDue: (partition) => clock() - partOf(partition).knownAt > longestWait / 2,
    async reached(connection, partition, askedAt) {
      const part = partOf(partition);
      const { aheadUntil } = partition;
      const isNew = aheadUntil !== part.wasAheadUntil;
      part.wasAheadUntil = aheadUntil;
      // A session was read whose last event the stream does not have. Another server may have taken over, without it:
      // then it is gone when it is read again. If it is still there, the stream was deleted, or the data was moved.
      if (isNew && compareCursors(partition.cursor as string, aheadUntil) < 0) {
        connection.comparePartitionsAgain();
        partition.cursor = null;
        return;
      }
      await settle(connection, partition);
      if (part.growing) {
        part.table = part.growing;
        part.growing = part.forgetting = undefined;
      }
      part.heardAt = clock();
      part.knownAt = askedAt;
      const known = knownAt();
      if (known > -Infinity && !isOver) {
        oldAt = known + maxAge;
        lookAtClock();
        onReady();
      }
      forget(part);
    },
  };
}

/** The ends of sessions by what their messages say, in Unix milliseconds, by key; without those that are gone. */
async function endsOf(connection: Connection, keys: readonly string[]): Promise<Map<string, number | null>> {
  const states = await statesOf((...commands) => connection.ask(...commands), keys);
  return new Map(states.map(([key, state]) => [key, published(state, key).session.expire_at]));
}
