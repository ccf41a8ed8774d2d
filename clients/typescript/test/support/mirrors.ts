// What tests of mirrors share: a feed whose followers a test watches and holds up, and clocks that it sets.
import { expect, vi } from "vitest";
import { driverOf } from "../../src/clients/index.js";
import type { Driver } from "../../src/clients/link.js";
import type { Access, Command, Connection } from "../../src/connection.js";
import { MirrorTooOldError, type AskingMirror, type Mirror, type RedisClient } from "../../src/index.js";
import { accessTo } from "../../src/redis_connection.js";

/** Waits until a check throws no more. */
export const eventually = (check: () => unknown): Promise<void> =>
  vi.waitFor(async () => void (await check()), { timeout: 30_000, interval: 10 });

/** Waits until the mirror knows all that has happened by now. */
export async function catchUp(mirror: AskingMirror): Promise<void> {
  const now = performance.now();
  await eventually(() => {
    const past = performance.now() - now; // before `age` is read: held up in between, an older one would do
    expect(mirror.age).toBeLessThan(past);
  });
}

/** What it says of a session; `too old` if it says nothing. */
export function told(mirror: Mirror, sessionId: string): string {
  try {
    return mirror.status(sessionId);
  } catch (error) {
    if (error instanceof MirrorTooOldError) return "too old";
    throw error;
  }
}

/** What it throws. */
export function refusal(ask: () => unknown): MirrorTooOldError {
  try {
    ask();
  } catch (error) {
    expect(error).toBeInstanceOf(MirrorTooOldError);
    return error as MirrorTooOldError;
  }
  throw new Error("it answers");
}

/** Lets a test set by how many milliseconds the time of day is ahead. `vi.restoreAllMocks` ends it. */
export function skewTime(): { ahead: number } {
  const time = { ahead: 0 };
  const now = Date.now.bind(Date);
  vi.spyOn(Date, "now").mockImplementation(() => now() + time.ahead);
  return time;
}

/** Something that waits until it may go on. */
export class Gate {
  /** Resolves when something has come. */
  readonly reached: Promise<void>;
  open!: () => void;
  #come!: () => void;
  readonly #opened: Promise<void>;

  constructor() {
    this.reached = new Promise((resolve) => (this.#come = resolve));
    this.#opened = new Promise((resolve) => (this.open = resolve));
  }

  pass(): Promise<void> {
    this.#come();
    return this.#opened;
  }
}

/** What a SessionFeed takes in place of a client. `after`: is called with what its followers have sent, before they go on. */
export class Wire {
  /** What followers have sent. */
  readonly sent: Command[] = [];
  /** What was sent for short reads, those together that make a round trip. */
  readonly asked: Command[][] = [];
  before: (commands: readonly Command[]) => unknown = () => undefined;
  after: (commands: readonly Command[]) => unknown = () => undefined;
  /** To whom new connections lead. */
  driver: Driver;

  constructor(
    client: RedisClient,
    readonly partitions = 1,
  ) {
    this.driver = driverOf(client);
  }

  /** `slots`: how many connections serve the partitions. */
  access(timeout = 2000, slots = 1): Access {
    const { partitions } = this;
    const driver: Driver = {
      slot: (key) => Number(/\d+/.exec(key) ?? 0) % slots,
      share: undefined,
      open: (key, opening) => this.driver.open(key, opening),
    };
    const access = accessTo(driver, { prefix: "{clerk}", partitions, timeout });
    const follower: Access["follower"] = (key, options) => {
      const connection = access.follower(key, options);
      const execute: Connection["execute"] = connection.execute.bind(connection);
      connection.execute = async (...commands) => {
        this.sent.push(...commands);
        await this.before(commands);
        const responses = await execute(...commands);
        await this.after(commands);
        return responses;
      };
      return connection;
    };
    const reader: Access["reader"] = (key) => {
      const connection = access.reader(key);
      const askTwice: Connection["askTwice"] = connection.askTwice.bind(connection);
      connection.askTwice = (...commands) => {
        this.asked.push(commands);
        return askTwice(...commands);
      };
      return connection;
    };
    return { ...access, follower, reader };
  }

  /** Holds up the next response to a look at the hashes of sessions. */
  holdSnapshots(): Gate {
    const gate = new Gate();
    this.after = ([first]) => (first?.[0] === "HMGET" ? gate.pass() : undefined);
    return gate;
  }
}
