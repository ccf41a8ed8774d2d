// How a mirror reads what Redis has, and what it knows of its own age.
//
// Snapshots are read field by field: to parse the messages of a million sessions takes a while.
import { clock } from "./clock.js";
import type { Command, Connection } from "./connection.js";
import { START, compareCursors } from "./cursors.js";
import { UnreadableMessageError } from "./errors.js";
import { HOUR_MS, Table, isLiveAt } from "./mirror_table.js";
import type { Entry, Found, Partition, Reading } from "./stream.js";
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

/** Keeps a table of each partition, which the mirror looks into. Times are milliseconds. */
export class MirrorReading implements Reading<never> {
  readonly takesRepeats = true;
  readonly rest = REST_MS;
  /** When nothing was missing in any table, by `clock`; -Infinity before they are complete. */
  knownAt = -Infinity;
  /** When the tables are too old to answer from, by `clock`; -Infinity also after the end. */
  #oldAt = -Infinity;
  /** Before both of these, they are not too old. Each is quick to look at; a clock that was set, or sleep, parts them. */
  #isYoungUntil = -Infinity;
  #isYoungUntilTime = -Infinity;
  /** When Redis was heard last, by `clock`, of each partition. */
  readonly heardAt: number[];
  /** What answers. A table is complete when it gets in here. While the snapshots are read, it grows elsewhere. */
  readonly #tables: Table[];
  readonly #growing = new Map<number, Table>();
  readonly #knownAt: number[];
  /** Sessions of which an entry did not say when they end. */
  readonly #unsure: Set<string>[];
  readonly #forgetting: Iterator<string>[];
  readonly #forgetAt: number[];
  /** Differs later if somebody sets the time of day. */
  #setAt = Date.now() - clock();
  #isOver = false;

  /** `onReady`: called again and again. */
  constructor(
    partitions: number,
    readonly maxAge: number,
    readonly keepEnded: number,
    readonly longestWait: number,
    readonly onReady: () => void,
  ) {
    const each = <T>(make: () => T): T[] => Array.from({ length: partitions }, make);
    this.heardAt = each(() => -Infinity);
    this.#knownAt = each(() => -Infinity);
    this.#tables = each(() => new Table(keepEnded));
    this.#unsure = each(() => new Set());
    this.#forgetting = each(() => new Set<string>().values());
    this.#forgetAt = each(() => clock() + HOUR_MS);
  }

  /** Number of open sessions. */
  get open(): number {
    return this.#tables.reduce((sum, { open }) => sum + open, 0);
  }

  /** Number of sessions that were read so far, while snapshots are read. */
  get growing(): number | undefined {
    const growing = [...this.#growing.values()];
    return growing.length ? growing.reduce((sum, { kept }) => sum + kept.size, 0) : undefined;
  }

  get isTooOld(): boolean {
    if (performance.now() < this.#isYoungUntil && Date.now() < this.#isYoungUntilTime) return false;
    return !this.#lookAtClocks();
  }

  /** `number`: of the partition that the session would be in, if that is known. */
  status(sessionId: string, number?: number): LiveStatus {
    for (const table of number === undefined ? this.#tables : [this.#tables[number] as Table]) {
      const kept = table.kept.get(sessionId);
      if (kept !== undefined) return isLiveAt(kept, Date.now()) ? "live" : "ended";
    }
    return "unknown";
  }

  /** Whose session it is, if it is open. */
  userId(sessionId: string): string | null {
    for (const table of this.#tables) {
      const found = table.userId(sessionId);
      if (found !== null) return found;
    }
    return null;
  }

  /** Lets nothing be answered any more. */
  end(): void {
    this.#isOver = true;
    this.#oldAt = this.#isYoungUntil = -Infinity;
  }

  // What `follow` asks

  begin(partition: Partition): void {
    this.#growing.set(partition.number, new Table(this.keepEnded));
    this.#unsure[partition.number]?.clear();
    // Of a server that went away before all was read.
    partition.ahead.clear();
    partition.aheadUntil = START;
  }

  async found(connection: Connection, partition: Partition, keys: readonly string[]): Promise<Found<never>[]> {
    const table = this.#tableOf(partition);
    const before = partition.keys.session("").length;
    const read = await connection.ask(...keys.map((key): Command => ["HMGET", key, ...FIELDS]));
    this.heardAt[partition.number] = clock();
    const stored = (read as (string | null)[][]).flatMap((fields, index) =>
      fields[0] == null ? [] : [{ key: keys[index] as string, fields }],
    );
    const elsewhere = stored.flatMap(({ key, fields }) => (fields[4] == null ? [key] : []));
    const ends = elsewhere.length ? await endsOf(connection, elsewhere) : undefined;
    const now = Date.now();
    const found: Found<never>[] = [];
    for (const { key, fields } of stored) {
      const [live, status = null, userId, cursor, expireAt] = fields;
      if (userId == null || cursor == null) throw new UnreadableMessageError(`${key}: fields of its hash are missing`);
      const end = expireAt == null ? ends?.get(key) : expireAt === "" ? null : Number(expireAt);
      if (end === undefined) continue; // the key expired between the two reads
      const sessionId = key.slice(before);
      table.put(sessionId, userId, end, isOpen(status), live === "1", now);
      found.push({ sessionId, cursor });
    }
    return found;
  }

  entry(entry: Entry, partition: Partition): undefined {
    if (entry.outcome !== "applied") return;
    const { id, user_id, expire_at, status, live } = entry.update().session;
    this.#tableOf(partition).put(id, user_id, expire_at, isOpen(status), live, Date.now());
    // It has no end, or OMIT_FIELDS hides it.
    if (expire_at === null) this.#unsure[partition.number]?.add(id);
  }

  isDue({ number }: Partition): boolean {
    return clock() - (this.#knownAt[number] as number) > this.longestWait / 2;
  }

  async reached(connection: Connection, partition: Partition, askedAt: number): Promise<void> {
    const { number } = partition;
    if (compareCursors(partition.cursor as string, partition.aheadUntil) < 0) {
      // A session was read that the end of the stream does not reach: another server has taken over, without it.
      connection.comparePartitionsAgain();
      partition.cursor = null;
      return;
    }
    await this.#settle(connection, partition);
    const table = this.#growing.get(number);
    if (table) {
      this.#growing.delete(number);
      this.#tables[number] = table;
      this.#forgetting[number] = new Set<string>().values();
    }
    this.heardAt[number] = clock();
    this.#knownAt[number] = askedAt;
    this.knownAt = Math.min(...this.#knownAt);
    if (this.knownAt > -Infinity && !this.#isOver) {
      this.#oldAt = this.knownAt + this.maxAge;
      this.#lookAtClocks();
      this.onReady();
    }
    this.#forget(number);
  }

  /** Looks up when sessions end whose entries did not say so. */
  async #settle(connection: Connection, partition: Partition): Promise<void> {
    const unsure = this.#unsure[partition.number] as Set<string>;
    while (unsure.size) {
      const batch = [...unsure].slice(0, FORGET_AT_ONCE);
      const keys = batch.map((sessionId) => partition.keys.session(sessionId));
      for (const { sessionId, cursor } of await this.found(connection, partition, keys)) {
        // It may be newer than the cursor. What comes of it up to there must not undo it.
        partition.note(sessionId, cursor, partition.cursor as string);
      }
      for (const sessionId of batch) unsure.delete(sessionId);
    }
  }

  /** Looks at some sessions, and once an hour begins to look at all. */
  #forget(number: number): void {
    const table = this.#tables[number] as Table;
    const ids = this.#forgetting[number] as Iterator<string>;
    const now = Date.now();
    for (let left = Math.max(FORGET_AT_ONCE, table.kept.size / 500); left > 0; left--) {
      const { value, done } = ids.next();
      if (!done) {
        table.forget(value, now);
        continue;
      }
      const time = clock();
      if (time < (this.#forgetAt[number] as number)) return;
      this.#forgetAt[number] = time + HOUR_MS;
      const setAt = now - time;
      // Otherwise that time may be wrong, and what is forgotten is gone.
      if (Math.abs(setAt - this.#setAt) < CLOCK_MS) this.#forgetting[number] = table.kept.keys();
      this.#setAt = setAt;
      return;
    }
  }

  #tableOf({ number }: Partition): Table {
    return this.#growing.get(number) ?? (this.#tables[number] as Table);
  }

  /** Whether the tables are not too old yet. */
  #lookAtClocks(): boolean {
    const left = this.#oldAt - clock();
    this.#isYoungUntil = performance.now() + left;
    this.#isYoungUntilTime = Date.now() + left;
    return left > 0;
  }
}

/** The ends of sessions by what their messages say, in Unix milliseconds, by key; without those that are gone. */
async function endsOf(connection: Connection, keys: readonly string[]): Promise<Map<string, number | null>> {
  const states = await connection.ask(...keys.map((key): Command => ["HMGET", key, "state"]));
  const ends = new Map<string, number | null>();
  for (const [index, key] of keys.entries()) {
    const [state] = states[index] as [string | null];
    if (state !== null) ends.set(key, published(state, key).session.expire_at);
  }
  return ends;
}
