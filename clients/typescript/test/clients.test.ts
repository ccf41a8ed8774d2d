// Clients as their users set them up: what is good for them may not be for a feed.
import { createClientPool as createClientPool5 } from "redis5";
import { createClientPool as createClientPool6, createClient } from "redis6";
import { Redis } from "ioredis6";
import { describe, expect, it } from "vitest";
import { driverOf } from "../src/clients/index.js";
import type { Reply } from "../src/connection.js";
import { FeedError, SessionFeed, type RedisClient } from "../src/index.js";
import { LIBRARIES } from "./support/clients.js";
import { relay, server, useRelay } from "./support/relayed.js";
import { Collector, briefly } from "./support/updates.js";

useRelay();

/** Options by which a client's own commands fail early, change their keys, or have other types. */
const IOREDIS = {
  keyPrefix: "app:",
  commandTimeout: 100,
  socketTimeout: 300,
  blockingTimeout: 100,
  maxRetriesPerRequest: 0,
  enableOfflineQueue: false,
  enableAutoPipelining: true,
  stringNumbers: true,
  readOnly: true,
  lazyConnect: true,
  autoResubscribe: true,
  reconnectOnError: () => 2,
  connectionName: "app",
  protocol: 3,
  replyMapping: "resp3",
};
const NODE_REDIS = {
  RESP: 3,
  commandOptions: { typeMapping: { 36: Buffer, 43: Buffer, 58: String, 37: Map }, timeout: 100 },
  commandsQueueMaxLength: 10,
  disableOfflineQueue: true,
  pingInterval: 50,
  name: "app",
  keyPrefix: "app:",
  clientSideCache: { ttl: 0, maxEntries: 10, evictPolicy: "LRU" },
};

describe.each(LIBRARIES)("$name", (library) => {
  it("with settings of its user's own is followed and asked all the same", async () => {
    const options = library.isNodeRedis ? NODE_REDIS : IOREDIS;
    const socket = library.isNodeRedis ? { socket: { port: server.port, socketTimeout: 300 }, url: undefined } : {};
    const connected = await library.server(server.port, { ...options, ...socket });
    await relay.apply({ id: "sess_1" });
    const reconnects: Error[] = [];
    const feed = new SessionFeed(connected.client);
    const follower = new Collector(feed.follow({ onReconnect: (error) => reconnects.push(error) }));
    const subscriber = new Collector(feed.subscribe());
    await follower.has(1);
    await expect.poll(() => relay.redis.pubsub("CHANNELS")).toContain("clerk:sessions");
    // Longer than each of the limits above.
    await expect.poll(waitsForSeconds).toBeGreaterThanOrEqual(1);
    await relay.apply({ id: "sess_1", status: "ended" });
    expect(briefly(await follower.has(2))).toEqual(["sess_1 active 1*", "sess_1 ended 2"]);
    expect(briefly(await subscriber.has(1))).toEqual(["sess_1 ended 2"]);
    expect(await feed.status("sess_1")).toBe("ended");
    expect((await feed.get("sess_1"))?.json).toContain('"sess_1"');
    expect(reconnects).toEqual([]);
    await feed.close();
    await connected.close();
  });

  it("is left as it was: no listener, no connection of the feed's stays", async () => {
    const connected = await library.server(server.port);
    const { client } = connected as unknown as { client: { listenerCount(event: string): number } };
    const feed = new SessionFeed(connected.client);
    await feed.status("sess_1");
    const before = (await relay.redis.client("LIST")) as string;
    const follower = new Collector(feed.follow());
    await expect.poll(() => relay.redis.client("LIST")).toMatch(/flags=\w*b/);
    await feed.close();
    await follower.done;
    await expect.poll(() => relay.redis.client("LIST")).not.toMatch(/flags=\w*b/);
    expect(before.trim().split("\n")).toHaveLength(2);
    expect(client.listenerCount("ready")).toBe(0);
    await connected.close();
  });

  it("opens a connection that is closed when nobody wants it any more", async () => {
    const connected = await library.server(server.port);
    const controller = new AbortController();
    const opening = { timeout: 1000, signal: controller.signal, onEnd: () => undefined };
    const link = await driverOf(connected.client).open("key", opening);
    const [response] = await link.send([["CLIENT", "ID"]]);
    const line = new RegExp(`^id=${(response as PromiseFulfilledResult<Reply>).value} `, "m");
    expect(await relay.redis.client("LIST")).toMatch(line);
    controller.abort();
    await expect.poll(() => relay.redis.client("LIST")).not.toMatch(line);
    await connected.close();
  });

  it("that its user has closed is an error of its own, and the feed's iterators go on", async () => {
    const connected = await library.server(server.port);
    const feed = new SessionFeed(connected.client);
    const follower = new Collector(feed.follow());
    await expect.poll(() => relay.redis.client("LIST")).toMatch(/flags=\w*b/);
    await connected.close();
    await expect(feed.status("sess_1")).rejects.toThrow(library.isNodeRedis ? "not connected" : "Connection is closed");
    await relay.apply({ id: "sess_1" });
    await follower.has(1);
    await feed.close();
  });
});

describe.each([
  ["node-redis 5", createClientPool5 as unknown as typeof createClientPool6],
  ["node-redis 6", createClientPool6],
] as const)("a pool of %s", (_name, createClientPool) => {
  it("is followed and asked", async () => {
    const pool = await createClientPool({ socket: { port: server.port } } as object).connect();
    await relay.apply({ id: "sess_1" });
    const feed = new SessionFeed(pool as unknown as RedisClient);
    const follower = new Collector(feed.follow());
    expect(briefly(await follower.has(1))).toEqual(["sess_1 active 1*"]);
    expect(await feed.status("sess_1")).toBe("live");
    await feed.close();
    await pool?.close();
  });
});

describe("a client of node-redis that is not connected", () => {
  it("is an error that says what to do; iterators connect by themselves", async () => {
    const client = createClient({ socket: { port: server.port } });
    await relay.apply({ id: "sess_1" });
    const feed = new SessionFeed(client);
    const error = await feed.status("sess_1").catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(FeedError);
    expect(String(error)).toContain("await client.connect()");
    await new Collector(feed.follow()).has(1);
    await feed.close();
  });
});

describe("a lazy client of ioredis", () => {
  it("connects with the first read", async () => {
    const client = new Redis({ port: server.port, lazyConnect: true });
    await relay.apply({ id: "sess_1" });
    expect(await new SessionFeed(client).status("sess_1")).toBe("live");
    client.disconnect();
  });
});

describe("the arguments of a feed", () => {
  it.each([{}, { duplicate: () => ({}) }, { isOpen: true }, { get: () => null }, new Map()])(
    "are no client: %j",
    (client) => {
      expect(() => new SessionFeed(client as RedisClient)).toThrow("no client of redis (node-redis 5 or 6), ioredis");
    },
  );

  it.each([
    [{ partitions: 0 }, "partitions"],
    [{ partitions: 1.5 }, "partitions"],
    [{ partitions: 2, prefix: "clerk" }, "prefix"],
    [{ timeout: 0 }, "timeout"],
    [{ timeout: NaN }, "timeout"],
    [{ timeout: 60_001 }, "timeout"],
  ])("that can't be used are named: %j", (options, name) => {
    const client = new Redis({ lazyConnect: true });
    expect(() => new SessionFeed(client, options)).toThrow(new RegExp(`^${name}: `));
  });

  it.each([["now"], ["1-2-3"], [{ 1: "0-0" }], [{ 0: "x" }]])("have no such cursor: %j", (after) => {
    const feed = new SessionFeed(new Redis({ lazyConnect: true }));
    expect(() => feed.follow({ after })).toThrow(RangeError);
  });

  it("have a cursor for each partition", () => {
    const feed = new SessionFeed(new Redis({ lazyConnect: true }), { partitions: 2 });
    expect(() => feed.follow({ after: "1-1" })).toThrow("{ [number]: cursor }");
    expect(() => feed.follow({ after: "0-0" })).not.toThrow();
    expect(() => feed.follow({ after: "1795422761000" })).not.toThrow();
  });
});

/** Seconds since the command began that waits for news. */
async function waitsForSeconds(): Promise<number> {
  const list = (await relay.redis.client("LIST")) as string;
  const waiting = list.split("\n").find((line) => /flags=\w*b/.test(line));
  return Number(/ idle=(\d+)/.exec(waiting ?? "")?.[1] ?? 0);
}
