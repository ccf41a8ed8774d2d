// How a connection uses its Links, with Links that a test drives.
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import type { Driver, Link, Opening } from "../src/clients/link.js";
import { BLOCK_MS, type Command, type Connection, type Reply } from "../src/connection.js";
import { FeedClosedError, NoResponseError } from "../src/errors.js";
import { accessTo } from "../src/redis_connection.js";

type Answer = (command: Command) => Reply | Error | Promise<Reply>;

/** A driver whose Links answer as they are told to. */
class FakeDriver implements Driver {
  readonly opened: Link[] = [];
  readonly closed: Link[] = [];
  readonly sent: Command[][] = [];
  opening: Opening | undefined;
  publish = (_message: string): void => undefined;
  /** Rejects with these, before a Link is opened. */
  readonly failures: Error[] = [];
  readonly share = undefined;

  constructor(
    private readonly answer: Answer = () => "OK",
    private readonly slots: (key: string) => number = () => 0,
  ) {}

  slot = (key: string): number => this.slots(key);

  open = async (_key: string, opening: Opening): Promise<Link> => {
    this.opening = opening;
    const failure = this.failures.shift();
    if (failure) throw failure;
    const link: Link = {
      send: (commands) => {
        this.sent.push([...commands]);
        return Promise.allSettled(
          commands.map(async (command) => {
            const answered = await (command[0] === "HMGET" && command[1] === "{clerk}:partitions"
              ? [null]
              : this.answer(command));
            if (answered instanceof Error) throw answered;
            return answered;
          }),
        );
      },
      subscribe: async (_channel, onMessage) => (this.publish = onMessage),
      ping: () => Promise.resolve(this.answer(["PING"])),
      close: () => void this.closed.push(link),
    };
    this.opened.push(link);
    opening.signal.addEventListener("abort", () => link.close());
    return link;
  };

  connection(timeout = 1000, onReconnect: (error: Error) => void = () => undefined): Connection {
    return accessTo(this, { prefix: "{clerk}", partitions: 1, timeout }).follower("{clerk}:events", { onReconnect });
  }
}

/** Milliseconds since then, in hundreds: the fake clock goes on by one with each `setImmediate`. */
const hundreds = (begun: number): number => Math.round((Date.now() - begun) / 100) * 100;

const never = (): Promise<Reply> => new Promise(() => undefined);

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

describe("a command", () => {
  it("that is not answered is given up after `timeout`, and its connection with it", async () => {
    const driver = new FakeDriver(never);
    const asked = driver.connection().execute(["PING"]);
    const failed = expect(asked).rejects.toBeInstanceOf(NoResponseError);
    await vi.advanceTimersByTimeAsync(1001);
    await failed;
    expect(driver.closed).toEqual(driver.opened);
  });

  it("that waits for news has the time that it waits, and `timeout`", async () => {
    const driver = new FakeDriver(never);
    const read: Command = ["XREADGROUP", "GROUP", "BLOCK", "BLOCK", "COUNT", 1, "BLOCK", BLOCK_MS, "STREAMS", "s", ">"];
    let error: unknown;
    void driver
      .connection()
      .execute(read)
      .catch((reason: unknown) => (error = reason));
    await vi.advanceTimersByTimeAsync(BLOCK_MS + 999);
    expect(error).toBeUndefined();
    await vi.advanceTimersByTimeAsync(2);
    expect(error).toBeInstanceOf(NoResponseError);
  });

  it("fails at once when the connection is closed", async () => {
    const connection = new FakeDriver(never).connection();
    const failed = expect(connection.ask(["PING"])).rejects.toBeInstanceOf(FeedClosedError);
    await vi.advanceTimersByTimeAsync(1);
    await connection.close();
    await failed;
    await expect(connection.ask(["PING"])).rejects.toBeInstanceOf(FeedClosedError);
  });

  it("is sent together with others, and the first error counts", async () => {
    const driver = new FakeDriver(([name]) => (name === "PING" ? "PONG" : new Error(`WRONGTYPE ${name}`)));
    const connection = driver.connection();
    await expect(connection.execute(["PING"], ["GET", "a"], ["TYPE", "a"])).rejects.toThrow("WRONGTYPE GET");
    expect(driver.sent.at(-1)).toHaveLength(3);
    expect(driver.closed).toEqual([]);
  });
});

describe("a connection", () => {
  it("is opened again, with longer and longer pauses, and tells why", async () => {
    const driver = new FakeDriver();
    driver.failures.push(...Array.from({ length: 8 }, (_, n) => new Error(`connect ECONNREFUSED ${n}`)));
    const told: [number, string][] = [];
    const begun = Date.now();
    const asked = driver.connection(1000, ({ message }) => told.push([hundreds(begun), message])).ask(["PING"]);
    await vi.runAllTimersAsync();
    expect(await asked).toEqual(["OK"]);
    expect(told.map(([at]) => at)).toEqual([0, 100, 300, 700, 1500, 3100, 5100, 7100]);
    expect(told[7]?.[1]).toBe("connect ECONNREFUSED 7");
  });

  it("to a server that refuses is opened more rarely", async () => {
    const driver = new FakeDriver();
    driver.failures.push(...Array.from({ length: 9 }, () => new Error("ERR max requests limit exceeded")));
    const told: number[] = [];
    const begun = Date.now();
    const asked = driver.connection(1000, () => told.push(hundreds(begun))).ask(["PING"]);
    await vi.runAllTimersAsync();
    await asked;
    expect((told[8] ?? 0) - (told[7] ?? 0)).toBe(10_000);
  });

  it("counts how often it was made", async () => {
    const driver = new FakeDriver();
    const connection = driver.connection();
    expect(connection.connections).toBe(0);
    await connection.ask(["PING"]);
    driver.opening?.onEnd(new Error("it was cut"));
    await connection.ask(["PING"]);
    expect(connection.connections).toBe(2);
    expect(driver.closed).toEqual(driver.opened.slice(0, 1));
  });

  it("that opens when nobody waits for it any more is closed", async () => {
    const driver = new FakeDriver();
    let open = (): void => undefined;
    const opened = driver.open;
    driver.open = async (key, opening) => {
      await new Promise<void>((resolve) => (open = resolve));
      return opened(key, opening);
    };
    const connection = driver.connection();
    const failed = expect(connection.execute(["PING"])).rejects.toBeInstanceOf(FeedClosedError);
    await connection.close();
    await failed;
    open();
    await vi.advanceTimersByTimeAsync(1);
    expect(driver.closed).toEqual(driver.opened);
    expect(driver.opened).toHaveLength(1);
  });

  it("is asked twice for a short read, but not after it did not respond", async () => {
    let attempts = 0;
    const dead = new FakeDriver(() => (attempts++ ? "OK" : new Error("Connection is closed.")));
    expect(await dead.connection().askTwice(["PING"])).toEqual(["OK"]);
    const silent = new FakeDriver(never);
    const failed = expect(silent.connection().askTwice(["PING"])).rejects.toBeInstanceOf(NoResponseError);
    await vi.advanceTimersByTimeAsync(1001);
    await failed;
    expect(silent.opened).toHaveLength(1);
  });

  it("pauses no longer than until it is closed", async () => {
    const connection = new FakeDriver().connection();
    const paused = connection.pause(10_000);
    await connection.close();
    await paused;
  });

  it("sends apart on a connection of its own, also when it is closed", async () => {
    const driver = new FakeDriver();
    const connection = driver.connection();
    await connection.close();
    expect(await connection.executeApart(["XACK", "s", "g", "1-1"])).toEqual(["OK"]);
    expect(driver.closed).toEqual(driver.opened);
  });
});

describe("a connection of its own", () => {
  it("is closed when the server does not respond", async () => {
    const driver = new FakeDriver(never);
    const failed = expect(driver.connection().executeApart(["XACK", "s", "g", "1-1"])).rejects.toThrow(NoResponseError);
    await vi.advanceTimersByTimeAsync(10_000);
    await failed;
    expect(driver.opened).toHaveLength(1);
    expect(driver.closed).toEqual(driver.opened);
  });
});

describe("the number of partitions", () => {
  const marks = (driver: FakeDriver): number => driver.sent.filter(([first]) => first?.[0] === "HMGET").length;

  it("is compared on each connection, after ten minutes, and when it is asked for", async () => {
    const driver = new FakeDriver();
    const connection = driver.connection();
    await connection.ask(["PING"]);
    await connection.ask(["PING"]);
    expect(marks(driver)).toBe(1);
    driver.opening?.onEnd(new Error("it was cut"));
    await connection.ask(["PING"]);
    expect(marks(driver)).toBe(2);
    await vi.advanceTimersByTimeAsync(600_000);
    await connection.ask(["PING"]);
    expect(marks(driver)).toBe(3);
    connection.comparePartitionsAgain();
    await connection.ask(["PING"]);
    expect(marks(driver)).toBe(4);
  });

  it("is compared where the mark is, on a connection of its own", async () => {
    const driver = new FakeDriver(undefined, (key) => (key === "{clerk}:partitions" ? 1 : 2));
    await driver.connection().ask(["PING"]);
    expect(driver.opened).toHaveLength(2);
    expect(driver.closed).toHaveLength(1);
  });

  it("is asked for again after ten seconds, if the node that tells was away", async () => {
    const driver = new FakeDriver(undefined, (key) => (key === "{clerk}:partitions" ? 1 : 2));
    const opened = driver.open;
    let asked = 0;
    driver.open = (key, opening) => {
      if (key !== "{clerk}:partitions") return opened(key, opening);
      return asked++ ? opened(key, opening) : Promise.reject(new Error("connect ECONNREFUSED"));
    };
    const connection = driver.connection();
    for (const expected of [1, 1, 2, 2]) {
      await connection.ask(["PING"]);
      expect(asked).toBe(expected);
      await vi.advanceTimersByTimeAsync(6000);
    }
  });

  it("is not waited for when the connection is closed", async () => {
    const driver = new FakeDriver(undefined, (key) => (key === "{clerk}:partitions" ? 1 : 2));
    const opened = driver.open;
    driver.open = (key, opening) =>
      key === "{clerk}:partitions" ? new Promise(() => undefined) : opened(key, opening);
    const connection = driver.connection();
    const failed = expect(connection.ask(["PING"])).rejects.toBeInstanceOf(FeedClosedError);
    await vi.advanceTimersByTimeAsync(1);
    await connection.close();
    await failed;
  });
});

describe("a subscription", () => {
  it("on which nothing happens is found alive by a PING", async () => {
    const driver = new FakeDriver(() => "PONG");
    const connection = driver.connection();
    const received = connection.receive("clerk:sessions");
    await vi.advanceTimersByTimeAsync(BLOCK_MS + 1);
    expect(await received).toBeNull();
    driver.publish("a message");
    expect(await connection.receive("clerk:sessions")).toBe("a message");
    expect(driver.opened).toHaveLength(1);
  });

  it("that does not respond to PING is made anew", async () => {
    let isDead = true;
    const driver = new FakeDriver(() => (isDead ? never() : "PONG"));
    const told: Error[] = [];
    const received = driver.connection(1000, (error) => told.push(error)).receive("clerk:sessions");
    await vi.advanceTimersByTimeAsync(BLOCK_MS + 1002);
    isDead = false;
    await vi.advanceTimersByTimeAsync(200);
    driver.publish("a message");
    expect(await received).toBe("a message");
    expect(told).toHaveLength(1);
  });

  it("that is cut while it waits is made anew at once", async () => {
    const driver = new FakeDriver(() => "PONG");
    const told: Error[] = [];
    const received = driver.connection(1000, (error) => told.push(error)).receive("clerk:sessions");
    await vi.advanceTimersByTimeAsync(1);
    driver.opening?.onEnd(new Error("it was cut"));
    await vi.advanceTimersByTimeAsync(200);
    driver.publish("a message");
    expect(await received).toBe("a message");
    expect(told.map(({ message }) => message)).toEqual(["it was cut"]);
  });

  it("that is cut loses nothing of what had come, whoever is slow to take it", async () => {
    const driver = new FakeDriver(() => "PONG");
    const connection = driver.connection();
    const first = connection.receive("clerk:sessions");
    await vi.advanceTimersByTimeAsync(1);
    for (const message of ["1", "2", "3"]) driver.publish(message);
    expect(await first).toBe("1");
    driver.opening?.onEnd(new Error("it was cut"));
    const second = connection.receive("clerk:sessions");
    await vi.advanceTimersByTimeAsync(200);
    driver.publish("4");
    const others = [
      await second,
      await connection.receive("clerk:sessions"),
      await connection.receive("clerk:sessions"),
    ];
    expect(others).toEqual(["2", "3", "4"]);
    expect(driver.opened).toHaveLength(2);
  });
});
