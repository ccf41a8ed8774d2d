// What a consumer of a group has to do with one stream: gaps, and the work of consumers that died.
// A long module, since all of it moves the group, and shares what is known of where it is.
//
// Some providers bill each command. So gaps are looked for where one can have come about: at the beginning, on each new
// connection, and in front of new entries.
import { messageOf, type Command, type Connection, type Reply } from "./connection.js";
import { NOTHING, START, compareCursors, later } from "./cursors.js";
import { CursorLostError } from "./errors.js";
import { asObject, isMissing, isTrimmedPast, newest, type Info, type Partition, type RawEntry } from "./stream.js";
import { UnusedConsumers, deliveredIn } from "./unused.js";

/** Entries of consumers that died that another takes over at once. */
const CLAIM = 50;

/** A consumer group, and the name of one of its consumers. Times are milliseconds. */
export interface Group {
  readonly name: string;
  readonly consumer: string;
  /** After which what a consumer has not acknowledged goes to another. */
  readonly claimAfter: number;
  /** After which a consumer that has nothing to do, and was not heard of, leaves the group. */
  readonly unusedAfter: number;
  /** Between two looks for such consumers. */
  readonly lookEvery: number;
}

/** What has to be made up for before a consumer takes entries. */
export interface Gap {
  /** The cursor behind which the group gets entries from now on. */
  readonly begin: string;
  /** The snapshots come first. */
  readonly hasSnapshots: boolean;
  /** The group exists. */
  readonly hasGroup: boolean;
}

/** Whether Redis says that there is no such group, or no stream. */
export const isGroupLost = (error: unknown): boolean =>
  isMissing(error) || /^NOGROUP|requires the key to exist/.test(messageOf(error));

export class Share {
  readonly events: string;
  /** A cursor up to which the group got entries; others may have got more. */
  delivered = START;
  /** Entries may be this consumer's already: from an earlier life, claimed, or in a response that got lost. */
  hasPending = true;
  /** Cursors of the entries that are handled and not acknowledged yet. */
  done: string[] = [];
  /** The connection, by its number, on which the group was found to lack nothing. */
  #checkedOn: number | undefined;
  /** The connection on which the group was made, where the stream had just ended. */
  #begunOn: number | undefined;
  /** Behind this cursor entries were missed, as this consumer knows, wherever others move the group meanwhile. */
  #missedBehind: string | undefined;
  /** Where the group was when this consumer asked for new entries, and does not know yet what it missed before them. */
  #readBehind: string | undefined;
  #hasJoined = false;
  /** The entry that this consumer handled last. */
  #last: string | undefined;
  /** Up to where the snapshots of the last gap know everything. */
  #snapshotsAt = START;
  /** When to look for the work of dead consumers. */
  #looksAt = 0;
  readonly #unused: UnusedConsumers;

  constructor(
    readonly connection: Connection,
    readonly partition: Partition,
    readonly group: Group,
    readonly resync: boolean,
  ) {
    this.events = partition.keys.events;
    this.#unused = new UnusedConsumers(connection, this.events, group);
  }

  /** Whether the group was found to lack nothing, on the connection that there is now. */
  get isChecked(): boolean {
    return this.#checkedOn === this.connection.connections;
  }

  /** Looks for a gap again. */
  recheck(): void {
    this.#checkedOn = undefined;
  }

  /** Notes that an entry is handled. */
  finish(cursor: string): void {
    this.done.push(cursor);
    this.#last = cursor;
  }

  /** The cursor to read from: 0 for what is this consumer's already. */
  cursor(): string {
    if (!this.isChecked || this.hasPending) return "0";
    this.#readBehind ??= this.delivered;
    return ">";
  }

  /** What the group lacks: itself, or entries that were trimmed before it got them. */
  async findGap(): Promise<Gap | undefined> {
    if (this.isChecked) return undefined;
    this.hasPending = true;
    let stream: Info = {};
    let groups: Reply = [];
    try {
      // In this order: the group may get more between the two.
      stream = await this.#stream();
      groups = await this.#groups();
    } catch (error) {
      if (!isMissing(error)) throw error;
      stream = {};
    }
    const delivered = deliveredIn(groups, this.group.name);
    if (delivered === undefined) return this.#withoutGroup();
    this.#hasJoined = true;
    this.delivered = delivered;
    // Redis 6.2 can't tell what a stream that was empty got, and lost again, while nobody was there.
    const isUnknown = delivered !== NOTHING || this.#begunOn !== this.connection.connections;
    if (this.#missedBehind === undefined && !isTrimmedPast(delivered, stream, isUnknown)) {
      this.#checkedOn = this.connection.connections;
      return undefined;
    }
    if (!this.resync) throw new CursorLostError(this.#missedBehind ?? delivered, this.partition.number);
    this.connection.comparePartitionsAgain();
    // From before the snapshots: more may be trimmed while they are read.
    return { begin: await this.#newest(), hasSnapshots: true, hasGroup: true };
  }

  async #withoutGroup(): Promise<Gap> {
    const hasGroup = false;
    if (this.#hasJoined) {
      console.warn(`clerk-session-feed: Redis lost the consumer group ${this.group.name}: it is made again`);
      this.connection.comparePartitionsAgain();
      return { begin: START, hasSnapshots: !(await this.#isLastThere()), hasGroup };
    }
    const { cursor } = this.partition;
    if (cursor !== null) return { begin: cursor, hasSnapshots: false, hasGroup };
    // The group is made after the snapshots: if this consumer dies on the way, the next begins with them.
    return { begin: await this.#newest(), hasSnapshots: true, hasGroup };
  }

  async #isLastThere(): Promise<boolean> {
    const last = this.#last;
    return last !== undefined && (await this.#ask<Reply[]>("XRANGE", this.events, last, last)).length > 0;
  }

  /** Makes the group, or moves it behind what it can't get any more. The snapshots are handled by now. */
  async closeGap({ begin, hasSnapshots, hasGroup }: Gap): Promise<void> {
    this.#missedBehind = this.#readBehind = undefined;
    if (hasSnapshots) this.#snapshotsAt = begin;
    if (hasGroup) return this.#setDelivered(begin);
    try {
      await this.#ask("XGROUP", "CREATE", this.events, this.group.name, begin, "MKSTREAM");
    } catch (error) {
      if (!messageOf(error).startsWith("BUSYGROUP")) throw error; // else another consumer was faster
    }
    if (hasSnapshots) this.#begunOn = this.connection.connections;
  }

  /** Moves the group back, unless somebody has moved it back further. */
  async #goBack(cursor: string): Promise<void> {
    const delivered = deliveredIn(await this.#groups(), this.group.name);
    if (delivered !== undefined && compareCursors(delivered, cursor) > 0) await this.#setDelivered(cursor);
  }

  /** The entries of a response if this consumer may handle them; otherwise none, and it asks again. */
  async accept(entries: RawEntry[], isNew: boolean): Promise<RawEntry[]> {
    // Of what is this consumer's already, a response that got lost may have had some: those are not looked at yet.
    const isUnsure = ([id]: RawEntry): boolean => isNew || compareCursors(id, this.#readBehind ?? id) > 0;
    const unsure = entries.find(isUnsure);
    if (!entries.length) {
      this.hasPending &&= isNew;
    } else if (!isNew) {
      const trimmed = entries.filter(([, fields]) => !fields?.length).map(([id]) => id);
      if (trimmed.length) {
        await this.#giveUp(trimmed);
        return [];
      }
    }
    if (unsure) {
      const stream = await this.#stream();
      const known = isNew ? this.delivered : (this.#readBehind as string);
      if (this.isChecked && (await this.#wasMissedBefore(unsure[0], known, stream))) return [];
    }
    // On another connection they may have become others': those that are still this consumer's come first there.
    if (!this.isChecked) return [];
    if (unsure || !entries.length) this.#readBehind = undefined; // else more of its own come
    if (isNew) this.delivered = entries.at(-1)?.[0] ?? this.delivered;
    return entries;
  }

  /**
   * Whether entries in front of the first new one were trimmed before the group got them.
   *
   * If the stream still has an entry in front of it, the group had got that one. If not, the group goes back to where
   * the next consumer finds what was trimmed, should this one die.
   */
  async #wasMissedBefore(first: string, known: string, stream: Info): Promise<boolean> {
    const kept = stream["first-entry"] as RawEntry | null | undefined;
    if (!kept || compareCursors(kept[0], first) < 0) return false;
    if (compareCursors(known, first) >= 0) {
      // Someone moved the group back, nobody knows how far.
      const before = BigInt(first.split("-")[0] as string) - 1n;
      known = `${before < 0n ? 0n : before}-2`;
    }
    if (!isTrimmedPast(known, stream, known !== NOTHING)) return false;
    this.recheck();
    this.#missedBehind = known;
    await this.#setDelivered(known);
    return true;
  }

  /** Whether it is time for `lookAfterGroup`. This consumer's own entries come first. */
  get mustLook(): boolean {
    return !this.hasPending && performance.now() >= this.#looksAt;
  }

  /** Takes over the work of dead consumers; now and then, removes those that nobody uses. */
  async lookAfterGroup(): Promise<void> {
    const { name, claimAfter } = this.group;
    const idleMs = Math.ceil(claimAfter);
    const idle = await this.#ask<[string][]>("XPENDING", this.events, name, "IDLE", idleMs, "-", "+", CLAIM);
    if (idle.length) {
      const ids = idle.map(([id]) => id);
      return this.#claim(ids, idleMs);
    }
    this.#looksAt = performance.now() + claimAfter / 2;
    if (this.#unused.isTime) {
      // Read what it has: until Redis 7.2, a consumer that waits in vain gives no sign of life.
      this.hasPending = true;
      const delivered = await this.#unused.remove();
      if (delivered !== undefined) {
        this.recheck();
        await this.#goBack(delivered);
      }
    }
  }

  async #claim(idle: string[], idleMs: number): Promise<void> {
    const first = (await this.#stream())["first-entry"] as RawEntry | null;
    // Before they are claimed, since that makes Redis (from 7.0 on) forget what was trimmed.
    const trimmed = idle.filter((id) => !first || compareCursors(id, first[0]) < 0);
    if (trimmed.length) return this.#giveUp(trimmed);
    const { name, consumer } = this.group;
    const claim: Command = [
      "XAUTOCLAIM",
      this.events,
      name,
      consumer,
      idleMs,
      idle[0] as string,
      "COUNT",
      CLAIM,
      "JUSTID",
    ];
    const [, claimed, deleted] = await this.#ask<[string, string[], string[]?]>(...claim);
    this.hasPending ||= claimed.length > 0;
    if (deleted?.length) await this.#giveUp(deleted); // trimmed since XPENDING
  }

  /**
   * Acknowledges entries that were trimmed before anybody was done with them.
   *
   * Unless this consumer had snapshots since, the group goes back behind them, where `findGap` finds them. They are
   * acknowledged last: if this consumer dies on the way, the next one finds them too.
   */
  async #giveUp(trimmed: string[]): Promise<void> {
    this.hasPending = true;
    const lost = trimmed.filter((id) => compareCursors(id, this.#snapshotsAt) > 0);
    if (lost.length) {
      this.recheck();
      await this.#goBack(lost.reduce((a, b) => (later(a, b) === a ? b : a)));
    }
    await this.#ask("XACK", this.events, this.group.name, ...trimmed);
  }

  async #ask<T>(...command: Command): Promise<T> {
    const [response] = await this.connection.ask(command);
    return response as T;
  }

  #stream = async (): Promise<Info> => asObject(await this.#ask<Reply>("XINFO", "STREAM", this.events));
  #groups = (): Promise<Reply> => this.#ask("XINFO", "GROUPS", this.events);
  #newest = (): Promise<string> => newest((...commands) => this.connection.ask(...commands), this.events);
  #setDelivered = (cursor: string): Promise<void> => this.#ask("XGROUP", "SETID", this.events, this.group.name, cursor);
}
