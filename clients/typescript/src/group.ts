// A consumer group's share of the stream: each update at least once, whichever consumer dies.
//
// An update is acknowledged after the loop's body, together with others: one by one, each would cost Redis a write to
// its disk (`appendfsync always`), and a round trip.
import { BLOCK_MS, messageOf, type Command, type Connection, type Reply } from "./connection.js";
import { FeedClosedError } from "./errors.js";
import { Share, isGroupLost, type Group } from "./shares.js";
import { sleep, snapshots, type Entry, type Partition, type RawEntry, type Updates } from "./stream.js";

/** Entries that a consumer takes at once at first, and that a slow one takes. */
const SMALLEST_BATCH = 10;
/** Entries that a consumer takes at once at most. */
const BATCH = 500;
/** Milliseconds that the loop may be busy with what is taken at once: each entry waits for those before it. */
const BATCH_MS = 500;
/** Milliseconds after which what is done is acknowledged, if the rest takes longer: that much comes again after a crash. */
const ACKNOWLEDGE_MS = 1000;
/** Milliseconds after which a consumer that has nothing to do, and was not heard of, leaves the group. */
const UNUSED_MS = 86_400_000;
/** Milliseconds between two looks for such consumers. */
const LOOK_EVERY_MS = 3_600_000;

/** Throws a RangeError if a name is empty, or `claimAfter` is no time. */
export function groupOf(name: string, consumer: string, claimAfter: number): Group {
  if (!name || !consumer) throw new RangeError("A group and its consumers need names.");
  if (!(claimAfter > 0 && claimAfter < Infinity)) {
    throw new RangeError(`claimAfter: ${claimAfter} is no number of milliseconds`);
  }
  return { name, consumer, claimAfter, unusedAfter: UNUSED_MS, lookEvery: LOOK_EVERY_MS };
}

/**
 * Yields what falls to this consumer, and acknowledges it some time after its next is asked for; never ends.
 *
 * The cursor of a partition says where a group begins that does not exist; null: with the snapshots.
 *
 * Throws a CursorLostError, unless `resync` is set: then the snapshots come again.
 */
export async function* consume(
  connection: Connection,
  partitions: readonly Partition[],
  group: Group,
  { stale, resync }: { stale: boolean; resync: boolean },
): Updates {
  const shares = partitions.map((partition) => new Share(connection, partition, group, resync));
  const consumer = new Consumer(connection, shares, group);
  try {
    for (;;) {
      try {
        for (const share of shares) {
          for (let gap; (gap = await share.findGap());) {
            await consumer.acknowledge();
            if (gap.hasSnapshots) yield* snapshots(connection, share.partition);
            await share.closeGap(gap);
          }
          await consumer.lookAfter(share);
        }
        for (const [share, entry] of await consumer.take()) {
          if (!consumer.mayGoOn()) break;
          let closed: unknown;
          try {
            if (stale || entry.outcome === "applied") yield entry.update();
          } catch (error) {
            // Thrown by `untilClosed`, after the body; where the loop is left in the body, nothing is.
            if (!(error instanceof FeedClosedError)) throw error;
            closed = error;
          }
          consumer.finish(share, entry);
          if (closed) throw closed;
          await consumer.acknowledge(ACKNOWLEDGE_MS);
        }
      } catch (error) {
        if (!isGroupLost(error)) throw error;
        for (const share of shares) share.recheck(); // it is made again
      }
    }
  } finally {
    await consumer.leave();
  }
}

/** Takes entries of the streams of one slot, in batches, and acknowledges them. */
class Consumer {
  #count = SMALLEST_BATCH;
  /** Entries of the last batch that are handled. */
  #done = 0;
  #takenAt = 0;
  #acknowledgedAt = 0;

  constructor(
    readonly connection: Connection,
    readonly shares: readonly Share[],
    readonly group: Group,
  ) {}

  /**
   * Entries for this consumer: first those that are its own already. Waits if there are none.
   *
   * None does not mean that there are none: look for gaps, and ask again.
   */
  async take(): Promise<[Share, Entry][]> {
    this.#fitBatch();
    const blockMs = Math.trunc(Math.min(BLOCK_MS, Math.max(1, this.group.claimAfter / 2)));
    const begunAt = performance.now();
    const [response, cursors] = await this.connection.persist(() => this.#read(blockMs));
    this.#takenAt = performance.now();
    const got = new Map(response);
    if (!got.size && this.#takenAt - begunAt < blockMs / 2) await this.#sleep();
    const taken: [Share, Entry][] = [];
    for (const [index, share] of this.shares.entries()) {
      const entries = await share.accept(got.get(share.events) ?? [], cursors[index] === ">");
      taken.push(...entries.map((entry): [Share, Entry] => [share, share.partition.entry(entry)]));
    }
    return taken;
  }

  /** Acknowledges what is done, and reads; resolves to the response, and the cursors that were read from. */
  async #read(blockMs: number): Promise<[[string, RawEntry[]][] | null, string[]]> {
    const { shares, group } = this;
    const cursors = shares.map((share) => share.cursor());
    const streams = shares.map(({ events }) => events);
    const limits = ["COUNT", this.#count, "BLOCK", blockMs] as const;
    const read: Command = [
      "XREADGROUP",
      "GROUP",
      group.name,
      group.consumer,
      ...limits,
      "STREAMS",
      ...streams,
      ...cursors,
    ];
    try {
      return [(await this.#acknowledge(read)) as [string, RawEntry[]][] | null, cursors];
    } catch (error) {
      for (const share of shares) share.hasPending = true; // there may have been a response that got lost
      throw error;
    }
  }

  /** Takes as many next as the loop deals with in BATCH_MS. */
  #fitBatch(): void {
    if (!this.#done) return;
    const speed = this.#done / Math.max(performance.now() - this.#takenAt, 1);
    this.#count = Math.trunc(Math.min(BATCH, Math.max(SMALLEST_BATCH, speed * BATCH_MS)));
    this.#done = 0;
  }

  /** Waits where XREADGROUP does not, as at some stand-ins for Redis. */
  async #sleep(): Promise<void> {
    for (const share of this.shares) {
      share.recheck();
      await share.findGap(); // how far the group got; a gap is found again
    }
    const partitions = this.shares.map(({ partition }) => partition);
    const delivered = this.shares.map((share) => share.delivered);
    await sleep(this.connection, partitions, delivered);
  }

  /** Does what a group needs from time to time. What this consumer is done with is no longer pending then. */
  async lookAfter(share: Share): Promise<void> {
    if (!share.mustLook) return;
    await this.acknowledge();
    await share.lookAfterGroup();
  }

  /** Notes that an entry is done with. */
  finish(share: Share, { cursor }: Entry): void {
    share.finish(cursor);
    this.#done++;
  }

  /**
   * Whether what was taken is still this consumer's: others take it over after `claimAfter`.
   *
   * If not, what is still its own comes next.
   */
  mayGoOn(): boolean {
    const isInTime = performance.now() <= this.#takenAt + this.group.claimAfter / 2;
    if (isInTime && this.shares.every(({ isChecked }) => isChecked)) return true;
    for (const share of this.shares) share.hasPending = true;
    return false;
  }

  #acknowledgements(): Command[] {
    return this.shares.flatMap(({ events, done }): Command[] =>
      done.length ? [["XACK", events, this.group.name, ...done]] : [],
    );
  }

  /** Acknowledges what is done; `after`: only if that was not done for so many milliseconds. */
  async acknowledge(after = 0): Promise<void> {
    if (performance.now() < this.#acknowledgedAt + after || !this.#acknowledgements().length) return;
    await this.connection.persist(() => this.#acknowledge());
  }

  /**
   * Acknowledges what is done, in one round trip with a further command; resolves to the last response.
   *
   * What this consumer had less of than it acknowledges was taken by others, or the group was made anew: look again.
   */
  async #acknowledge(...further: Command[]): Promise<Reply> {
    const shares = this.shares.filter(({ done }) => done.length);
    this.#acknowledgedAt = performance.now();
    const responses = await this.connection.execute(...this.#acknowledgements(), ...further);
    for (const [index, share] of shares.entries()) {
      if ((responses[index] as number) < share.done.length) share.recheck();
      share.done = []; // not before: until then it may have got lost
    }
    return responses.at(-1) as Reply;
  }

  /** Acknowledges what is done, if Redis is there; otherwise it comes again. */
  async leave(): Promise<void> {
    const acknowledgements = this.#acknowledgements();
    if (!acknowledgements.length) return;
    try {
      await this.connection.executeApart(...acknowledgements);
    } catch (error) {
      console.warn(`clerk-session-feed: What was done last is not acknowledged, and comes again: ${messageOf(error)}`);
    }
  }
}
