// A Connection over Links: each is used until something goes wrong with it, then the next one is opened.
// A long module, since each command needs all of it: the Link, its time, the pauses, the number of partitions.
import { asError, within, type Driver, type Link } from "./clients/link.js";
import { BLOCK_MS, type Access, type Command, type Connection, type OnReconnect, type Reply } from "./connection.js";
import { FeedClosedError, NoResponseError } from "./errors.js";
import { keysOf, type Keys } from "./keys.js";
import { FIELD, refuseOtherNumber } from "./layout.js";
import { isRefusal, mayPass } from "./refusals.js";

/** Milliseconds before the first new attempt; each pause is twice the one before. */
const FIRST_PAUSE = 100;
/** Milliseconds between two attempts at most, while Redis is away. */
const LONGEST_PAUSE = 2000;
/** Milliseconds between two attempts at most, while Redis refuses: each may count against the limit that it met. */
const LONGEST_REFUSED_PAUSE = 10_000;
/** Milliseconds that sentinels or nodes have to say where the server is, besides the time to connect to it. */
const LOCATE_MS = 2500;
/** Milliseconds after which the number of partitions is compared again: where nothing comes, nothing else tells. */
const PARTITIONS_MS = 600_000;
/** Milliseconds after which it is compared again if the node of a cluster that could have told was away. */
const AWAY_MS = 10_000;

/** The settings of a feed that its connections need. */
export interface AccessOptions {
  readonly prefix: string;
  readonly partitions: number;
  readonly timeout: number;
}

export function accessTo(driver: Driver, options: AccessOptions): Access {
  const shared = driver.share && new RedisConnection(driver, "", options, true);
  return {
    slot: (key) => driver.slot(key),
    reader: (key) => shared ?? new RedisConnection(driver, key, options, false),
    follower: (key, { onReconnect }) => new RedisConnection(driver, key, options, false, onReconnect),
  };
}

interface Subscription {
  readonly link: Link;
  wake(error?: Error): void;
}

/** `key`: decides which server of a cluster it leads to. `isShared`: for short reads, over the user's client. */
class RedisConnection implements Connection {
  connections = 0;
  readonly #whole: Keys;
  /** Whether the mark of the partitions is on another server of a cluster. */
  readonly #isWholeElsewhere: boolean;
  /** What fails at once when this is closed. */
  readonly #waiting = new Set<(error: Error) => void>();
  #isClosed = false;
  #link: Promise<Link> | undefined;
  #subscription: Subscription | undefined;
  /** Messages that have come and were not taken yet, over Links that were lost, too. */
  readonly #received: string[] = [];
  /** The connection, by its number, on which the number of partitions was compared; when to do it again. */
  #comparedOn = 0;
  #compareAt = 0;
  #comparing: Promise<void> | undefined;

  constructor(
    readonly driver: Driver,
    readonly key: string,
    readonly options: AccessOptions,
    readonly isShared: boolean,
    readonly onReconnect: OnReconnect = () => undefined,
  ) {
    this.#whole = keysOf(options.prefix);
    this.#isWholeElsewhere = !isShared && driver.slot(key) !== driver.slot(this.#whole.layout);
  }

  get isClosed(): boolean {
    return this.#isClosed;
  }

  async close(): Promise<void> {
    this.#isClosed = true;
    for (const fail of this.#waiting) fail(new FeedClosedError());
    this.#lose(this.#link);
  }

  async execute(...commands: Command[]): Promise<Reply[]> {
    const link = await this.#connected();
    const isNew = this.connections !== this.#comparedOn && !this.#isWholeElsewhere;
    if (isNew || performance.now() >= this.#compareAt) {
      this.#comparing ??= this.#comparePartitions(link).finally(() => (this.#comparing = undefined));
      await this.#comparing;
    }
    return this.#send(link, commands);
  }

  comparePartitionsAgain(): void {
    this.#compareAt = 0;
  }

  ask(...commands: Command[]): Promise<Reply[]> {
    return this.persist(() => this.execute(...commands));
  }

  async persist<T>(attempt: () => Promise<T>): Promise<T> {
    for (let pause = FIRST_PAUSE; ;) {
      let longest: number;
      try {
        return await attempt();
      } catch (error) {
        if (!mayPass(error)) throw error;
        this.#lose(this.#link);
        this.onReconnect(asError(error));
        longest = isRefusal(error) ? LONGEST_REFUSED_PAUSE : LONGEST_PAUSE;
      }
      await this.pause(pause);
      pause = Math.min(2 * pause, longest);
    }
  }

  async askTwice(...commands: Command[]): Promise<Reply[]> {
    const link = this.#link;
    try {
      return await this.execute(...commands);
    } catch (error) {
      // Who has waited once does not wait twice.
      if (error instanceof NoResponseError || !mayPass(error)) throw error;
    }
    this.#lose(link);
    return this.execute(...commands);
  }

  executeApart(...commands: Command[]): Promise<Reply[]> {
    return this.#executeApart(this.key, commands);
  }

  async #executeApart(key: string, commands: Command[]): Promise<Reply[]> {
    const timeout = this.options.timeout + LOCATE_MS;
    return within({ timeout, signal: NEVER, onEnd: () => undefined }, timeout, async (opening) => {
      const link = await this.driver.open(key, opening);
      try {
        return settled(await link.send(commands));
      } finally {
        link.close();
      }
    });
  }

  receive(channel: string): Promise<string | null> {
    return this.persist(() => this.#receive(channel));
  }

  async #receive(channel: string): Promise<string | null> {
    const { timeout } = this.options;
    const link = await this.#connected();
    if (this.#subscription?.link !== link) {
      this.#subscription = { link, wake: () => undefined };
      const onMessage = (message: string): void => {
        this.#received.push(message);
        this.#subscription?.wake();
      };
      await this.#limited(() => link.subscribe(channel, onMessage), timeout);
    }
    const subscription = this.#subscription;
    if (!this.#received.length) {
      const news = new Promise<boolean>((resolve, reject) => {
        subscription.wake = (error) => (error ? reject(error) : resolve(true));
      });
      // The response to a PING tells a channel on which nothing happens from a dead connection.
      if (!(await this.#limited(() => news, BLOCK_MS, false))) await this.#limited(() => link.ping(), timeout);
    }
    return this.#received.shift() ?? null;
  }

  async pause(milliseconds: number): Promise<void> {
    await this.#limited(() => new Promise(() => undefined), milliseconds, null).catch(() => undefined);
  }

  #connected(): Promise<Link> {
    if (!this.#link) {
      const controller = new AbortController();
      const onEnd = (error: Error): void => this.#lose(opened, error);
      const opening = { timeout: this.options.timeout, signal: controller.signal, onEnd };
      const { open, share } = this.driver;
      const opened = this.#limited(async () => {
        // Who shares the client only reads.
        const link = share && this.isShared ? (share(opening) as Link) : await open(this.key, opening);
        if (controller.signal.aborted) link.close(); // nobody waits for it any more
        return link;
      }, this.options.timeout + LOCATE_MS);
      this.#link = opened;
      opened.then(
        () => this.connections++,
        () => {
          controller.abort();
          this.#lose(opened);
        },
      );
    }
    return this.#link;
  }

  /** Gives up a Link: the next command opens another, which may lead to another server. */
  #lose(lost: Promise<Link> | undefined, error?: Error): void {
    if (!lost || lost !== this.#link) return;
    this.#link = undefined;
    lost.then(
      (link) => link.close(),
      () => undefined,
    );
    this.#subscription?.wake(error ?? new Error("The connection was lost."));
    this.#subscription = undefined;
  }

  async #send(link: Link, commands: Command[]): Promise<Reply[]> {
    // What a command says that it waits for news.
    const waits = commands.map((command) => Number(command[command.lastIndexOf("BLOCK") + 1]) || 0);
    const opened = this.#link;
    try {
      return settled(await this.#limited(() => link.send(commands), this.options.timeout + Math.max(0, ...waits)));
    } catch (error) {
      if (error instanceof NoResponseError) this.#lose(opened);
      throw error;
    }
  }

  async #comparePartitions(link: Link): Promise<void> {
    const { partitions } = this.options;
    const { layout, events } = this.#whole;
    const commands: Command[] = [["HMGET", layout, FIELD]];
    // Data of one partition has no mark, unless it was moved.
    if (partitions > 1) commands.push(["XREVRANGE", events, "+", "-", "COUNT", 1]);
    let found: Reply[] = [];
    let after = PARTITIONS_MS;
    const { connections } = this;
    try {
      found = await (this.#isWholeElsewhere
        ? this.#limited(() => this.#executeApart(layout, commands), this.options.timeout + LOCATE_MS)
        : this.#send(link, commands));
    } catch (error) {
      // What can't pass is a right that earlier versions did not need.
      const isAway = mayPass(error);
      if (error instanceof FeedClosedError || (isAway && !this.#isWholeElsewhere)) throw error;
      if (isAway) after = AWAY_MS; // a node that the commands don't need
    }
    const [marks, entries] = found as [(string | null)[]?, Reply[]?];
    refuseOtherNumber(partitions, marks?.[0] ?? (entries?.length ? "1" : null));
    this.#comparedOn = connections;
    this.#compareAt = performance.now() + after;
  }

  /** What `work` resolves to, or `otherwise` if it takes too long; without one, it fails then. */
  #limited<T>(work: () => Promise<T>, milliseconds: number, otherwise?: T): Promise<T> {
    return new Promise((resolve, reject) => {
      if (this.#isClosed) return reject(new FeedClosedError());
      const end = (): void => {
        clearTimeout(timer);
        this.#waiting.delete(fail);
      };
      const fail = (error: Error): void => {
        end();
        reject(error);
      };
      const timer = setTimeout(() => {
        // A busy program gets its timers before what Redis has sent meanwhile.
        setImmediate(() => {
          if (otherwise === undefined)
            return fail(new NoResponseError(`Redis did not respond within ${milliseconds} ms.`));
          end();
          resolve(otherwise);
        });
      }, milliseconds);
      this.#waiting.add(fail);
      work().then((result) => {
        end();
        resolve(result);
      }, fail);
    });
  }
}

/** A signal that nobody aborts. */
const NEVER = new AbortController().signal;

/** The responses; throws the first error among them. */
function settled(results: readonly PromiseSettledResult<Reply>[]): Reply[] {
  return results.map((result) => {
    if (result.status === "rejected") throw result.reason;
    return result.value;
  });
}
