// A mirror answers from memory what the feed would, knows how old it is, and answers nothing once it is too old. At a
// real redis-server. A long module, since all of it shares how mirrors are made, and what is done to Redis.
import { getEventListeners } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import type { Access } from "../src/connection.js";
import {
  FeedClosedError,
  MirrorTooOldError,
  PartitionsError,
  SessionFeed,
  UnreadableMessageError,
  type AskingMirror,
  type Mirror,
  type MirrorOptions,
} from "../src/index.js";
import { LIBRARIES, type Connected, type Library } from "./support/clients.js";
import { skewClock } from "./support/groups.js";
import { message } from "./support/messages.js";
import { Gate, Wire, catchUp, eventually, refusal, skewTime, told } from "./support/mirrors.js";
import { RedisServer, freePort } from "./support/redis.js";
import { Relay } from "./support/relay.js";
import { connected, feedOf, feeds, relay, server, useClient, useRelay } from "./support/relayed.js";

const IOREDIS = LIBRARIES.find(({ name }) => name === "ioredis 6") as Library;
const EVENTS = "{clerk}:events";
const DAY = 86_400_000;
const IDS = Array.from({ length: 12 }, (_, number) => `sess_${number}`);

let reconnects: string[];
let warnings: unknown[];

useRelay();
useClient(IOREDIS);
beforeEach(() => {
  reconnects = [];
  warnings = [];
  vi.spyOn(console, "warn").mockImplementation((text) => warnings.push(text));
});
afterEach(() => void vi.restoreAllMocks());

type Answering = MirrorOptions & { pastMaxAge?: "raise" | "allow" };

/** A mirror that tells nobody what goes wrong. */
function mirrorOf(feed?: SessionFeed, options?: Answering): Mirror;
function mirrorOf(feed?: SessionFeed, options?: MirrorOptions): AskingMirror;
function mirrorOf(feed = feedOf(), options: MirrorOptions = {}): AskingMirror {
  return feed.mirror({ onReconnect: ({ message }) => reconnects.push(message), ...options });
}

/** One that is ready. */
async function mirrored(feed?: SessionFeed, options?: Answering): Promise<Mirror>;
async function mirrored(feed?: SessionFeed, options?: MirrorOptions): Promise<AskingMirror>;
async function mirrored(feed?: SessionFeed, options?: MirrorOptions): Promise<AskingMirror> {
  const mirror = mirrorOf(feed, options);
  await mirror.ready();
  return mirror;
}

const applyAll = async (ids: readonly string[]): Promise<void> => {
  for (const id of ids) await relay.apply({ id });
};

describe.each(LIBRARIES)("with $name", (library) => {
  it("knows what was, what happens, and what happens while Redis is away", async () => {
    const client = await library.server(server.port);
    const feed = feedOf(client.client);
    try {
      await applyAll(["sess_1", "sess_2"]);
      await relay.apply({ id: "sess_over", status: "ended" });
      const mirror = await mirrored(feed, { maxAge: 1000 });
      const said = (): string[] => ["sess_1", "sess_2", "sess_over", "sess_none"].map((id) => told(mirror, id));
      expect(said()).toEqual(["live", "live", "ended", "unknown"]);
      expect([mirror.size, mirror.userId("sess_1"), mirror.userId("sess_over")]).toEqual([2, "user_1", null]);
      await relay.apply({ id: "sess_1", status: "revoked" });
      await eventually(() => expect(said()).toEqual(["ended", "live", "ended", "unknown"]));
      await server.kill();
      await eventually(() => expect(new Set(said())).toEqual(new Set(["too old"])));
      expect(refusal(() => mirror.status("sess_2")).reason).toMatch(/^Redis has been away for \d+\.\d s: /);
      await server.start();
      await relay.apply({ id: "sess_2", status: "ended" });
      await eventually(() => expect(said()).toEqual(["ended", "ended", "ended", "unknown"]));
      expect(reconnects.length).toBeGreaterThan(0);
      expect(warnings).toEqual([]);
    } finally {
      await feed.close();
      await client.close();
    }
  });
});

describe("its answer", () => {
  const PAST = Date.now() - 1000;
  const FUTURE = Date.now() + DAY;

  describe.each(["before", "after"])("of a session that came %s the mirror", (when) => {
    it.each([
      ["active", FUTURE, "live"],
      ["active", null, "live"],
      ["active", PAST, "ended"],
      ["pending", FUTURE, "ended"],
      ["pending", null, "ended"],
      ["ended", FUTURE, "ended"],
      ["revoked", null, "ended"],
      ["of_tomorrow", FUTURE, "ended"],
    ] as const)("is the feed's: %s until %d", async (status, expireAt, expected) => {
      const feed = feedOf();
      if (when === "before") await relay.apply({ id: "sess_1", status, expireAt });
      const mirror = await mirrored(feed);
      if (when === "after") await relay.apply({ id: "sess_1", status, expireAt });
      await catchUp(mirror);
      expect([mirror.status("sess_1"), await feed.status("sess_1")]).toEqual([expected, expected]);
      expect(mirror.isLive("sess_1")).toBe(expected === "live");
    });

    it("counts an end that the relay leaves out of its messages", async () => {
      const time = skewTime();
      const hidden = async (): Promise<unknown> => {
        await relay.apply({ id: "sess_1", expireAt: null });
        return relay.redis.hset("{clerk}:session:sess_1", "_expire_at", FUTURE);
      };
      if (when === "before") await hidden();
      const wire = new Wire(connected.client);
      const mirror = await mirrored(feedOf(wire.access()));
      // The relay does both at once.
      if (when === "after") wire.before = ([first]) => (first?.[0] === "HMGET" ? hidden() : undefined);
      if (when === "after") await hidden();
      await eventually(() => expect(told(mirror, "sess_1")).toBe("live"));
      await catchUp(mirror);
      time.ahead = 2 * DAY;
      await eventually(() => expect(told(mirror, "sess_1")).toBe("ended"));
    });
  });

  it("is unknown of what is not stored, whatever it is", async () => {
    await relay.apply({ id: "sess_1" });
    const feed = feedOf();
    const mirror = await mirrored(feed);
    for (const id of ["sess_2", "", "sess_1\n", 1, null, undefined, ["sess_1"], {}] as string[]) {
      expect([mirror.status(id), await feed.status(id)]).toEqual(["unknown", "unknown"]);
    }
  });

  it("changes as soon as an end passes, and again with an extension", async () => {
    const expireAt = Date.now() + 600_000;
    await relay.apply({ id: "sess_1", expireAt });
    const mirror = await mirrored();
    const time = skewTime();
    const leap = expireAt - Date.now();
    time.ahead = leap - 60_000;
    expect(mirror.status("sess_1")).toBe("live");
    time.ahead = leap;
    expect(mirror.status("sess_1")).toBe("ended");
    await relay.apply({ id: "sess_1", expireAt: expireAt + DAY });
    await eventually(() => expect(mirror.status("sess_1")).toBe("live"));
  });

  it("depends on the time of day like the feed's, and its age does not", async () => {
    await relay.apply({ id: "sess_1", expireAt: Date.now() + 60_000 });
    const mirror = await mirrored();
    const time = skewTime();
    for (const [ahead, status] of [
      [3_600_000, "ended"],
      [-3_600_000, "live"],
    ] as const) {
      time.ahead = ahead;
      expect(mirror.status("sess_1")).toBe(status);
      expect(mirror.age).toBeLessThan(60_000);
    }
  });

  it("is live as soon as a pending session is active; both have a user, and are counted", async () => {
    await relay.apply({ id: "sess_1", status: "pending", userId: "user_2" });
    const mirror = await mirrored();
    expect([mirror.status("sess_1"), mirror.userId("sess_1"), mirror.size]).toEqual(["ended", "user_2", 1]);
    await relay.apply({ id: "sess_1", userId: "user_2" });
    await eventually(() => expect(mirror.status("sess_1")).toBe("live"));
    await relay.apply({ id: "sess_1", userId: "user_2", status: "removed" });
    await eventually(() => expect(mirror.size).toBe(0));
    expect(mirror.userId("sess_1")).toBeNull();
  });

  it("is not changed by an event that came too late", async () => {
    const mirror = await mirrored();
    await relay.apply({ id: "sess_1", status: "ended" });
    await relay.apply({ id: "sess_1", outcome: "stale", expireAt: FUTURE });
    await catchUp(mirror);
    expect(mirror.status("sess_1")).toBe("ended");
  });

  it("reads sessions twice, and no more, whose events are not in the stream: it was deleted", async () => {
    await applyAll(["sess_1", "sess_2"]);
    await relay.redis.del(EVENTS);
    const wire = new Wire(connected.client);
    const mirror = await mirrored(feedOf(wire.access()));
    expect(mirror.status("sess_1")).toBe("live");
    expect(wire.sent.filter(([name]) => name === "SCAN").length).toBe(2);
    await relay.apply({ id: "sess_1", status: "ended" });
    await eventually(() => expect(mirror.status("sess_1")).toBe("ended"));
    expect(mirror.status("sess_2")).toBe("live");
  });

  it("is right in the order of the stream: of those that end, none comes back", async () => {
    const ids = Array.from({ length: 100 }, (_, number) => `sess_${number}`);
    await applyAll(ids);
    const mirror = await mirrored();
    let isOver = false;
    const ending = (async () => {
      for (const id of ids) await relay.apply({ id, status: "ended" });
    })().finally(() => (isOver = true));
    for (let ended = 0; !isOver || ended < ids.length; await sleep(1)) {
      const found = ids.map((id) => mirror.status(id));
      const now = found.lastIndexOf("ended") + 1;
      expect(now).toBeGreaterThanOrEqual(ended);
      expect(new Set(found.slice(0, now))).toEqual(new Set(now ? ["ended"] : []));
      ended = now;
    }
    await ending;
  });

  it("has the end of a message where this version does not find it in the hash", async () => {
    const expireAt = Date.now() + DAY;
    await relay.apply({ id: "sess_1", expireAt });
    await relay.apply({ id: "sess_2" });
    for (const id of ["sess_1", "sess_2"]) await relay.redis.hdel(`{clerk}:session:${id}`, "_expire_at");
    const mirror = await mirrored();
    expect(["sess_1", "sess_2"].map((id) => mirror.status(id))).toEqual(["live", "live"]);
    skewTime().ahead = 2 * DAY;
    expect(["sess_1", "sess_2"].map((id) => mirror.status(id))).toEqual(["ended", "live"]);
  });

  it("of a session that was looked up is not undone by what had come before", async () => {
    const wire = new Wire(connected.client);
    const mirror = await mirrored(feedOf(wire.access()));
    const looked: string[] = [];
    // While the end of the first event is looked up, the session ends, more than one response behind.
    wire.before = async ([first]) => {
      if (first?.[0] !== "HMGET" || looked.push("hash") > 1) return;
      await relay.apply({ id: "sess_1" });
      const others = relay.redis.pipeline();
      for (let number = 0; number < 1000; number++) others.xadd(EVENTS, "*", "outcome", "stale");
      await others.exec();
      await relay.apply({ id: "sess_1", status: "ended" });
    };
    wire.after = ([first]) => {
      if (first?.[0] === "XRANGE" && looked.length) looked.push(mirror.status("sess_1"));
    };
    await relay.apply({ id: "sess_1" });
    await eventually(() => expect(looked.length).toBeGreaterThan(3));
    await catchUp(mirror);
    expect([new Set(looked), mirror.status("sess_1")]).toEqual([new Set(["hash", "ended"]), "ended"]);
  });

  it.each([1, 3])("is the feed's, whatever happens, with %d partitions", async (partitions) => {
    const other = new Relay(server.port, partitions);
    const feed = feedOf(connected.client, { partitions });
    const statuses = ["active", "active", "pending", "ended", "revoked", "abandoned"];
    const ends = [PAST, FUTURE, null];
    let seed = partitions;
    const pick = (count: number): number => (seed = (seed * 48_271) % 2_147_483_647) % count;
    const first = await mirrored(feed);
    for (let turn = 0; turn < 4; turn++) {
      const later = mirrorOf(feed); // events come while it reads
      for (let number = 0; number < 25; number++) {
        const session = pick(12);
        const [status = "", expireAt = null] = [statuses[pick(6)], ends[pick(3)]];
        await other.apply({ id: `sess_${session}`, userId: `user_${session % 5}`, status, expireAt });
      }
      await later.ready();
      for (const mirror of [first, later]) {
        await catchUp(mirror);
        for (const id of IDS) expect([id, mirror.status(id)]).toEqual([id, await feed.status(id)]);
      }
      await later.close();
    }
    other.close();
  });
});

describe("with partitions", () => {
  it("a user may be given", async () => {
    const other = new Relay(server.port, 3);
    const users = Array.from({ length: 10 }, (_, number) => `user_${number}`);
    for (const [number, userId] of users.entries()) await other.apply({ id: `sess_${number}`, userId });
    const mirror = await mirrored(feedOf(connected.client, { partitions: 3 }));
    for (const [number, userId] of users.entries()) {
      const id = `sess_${number}`;
      expect([mirror.status(id), mirror.status(id, userId), mirror.userId(id)]).toEqual(["live", "live", userId]);
    }
    expect(mirror.size).toBe(10);
    expect(users.map((userId) => mirror.status("sess_1", userId))).toContain("unknown");
    other.close();
  });

  it.each(["raise", "ask", "allow"] as const)("of another number it says so: %s", async (pastMaxAge) => {
    await relay.mark("3");
    const mirror = mirrorOf(feedOf(connected.client, { partitions: 2 }), { pastMaxAge });
    await expect(mirror.ready()).rejects.toBeInstanceOf(PartitionsError);
    const asked = async (): Promise<unknown> => mirror.status("sess_1");
    const error = await asked().catch((thrown: Error) => thrown);
    expect(error).toHaveProperty("message", expect.stringContaining("the data has 3"));
    expect(pastMaxAge === "ask" ? error : (error as Error).cause).toBeInstanceOf(PartitionsError);
  });

  it("it is as old as the oldest, each on a connection of its own", async () => {
    const wire = new Wire(connected.client, 3);
    const other = new Relay(server.port, 3);
    await other.apply({ id: "sess_1" });
    const mirror = await mirrored(feedOf(wire.access(2000, 3), { partitions: 3 }), { maxAge: 500 });
    await catchUp(mirror);
    const gate = new Gate();
    wire.after = ([first]) => (first?.includes("{clerk:2}:events") ? gate.pass() : undefined);
    await gate.reached;
    await eventually(() => expect(told(mirror, "sess_1")).toBe("too old"));
    gate.open();
    await eventually(() => expect(told(mirror, "sess_1")).toBe("live"));
    other.close();
  });

  it("one without news keeps young beside a busy one", async () => {
    const other = new Relay(server.port, 3);
    const mirror = await mirrored(feedOf(connected.client, { partitions: 3 }), { maxAge: 1000 });
    let isOver = false;
    const flood = (async () => {
      while (!isOver) await other.apply({ id: "sess_1" });
    })();
    for (let turn = 0; turn < 3; turn++) await catchUp(mirror);
    isOver = true;
    await flood;
    other.close();
  });

  it("that are made another number end it", async () => {
    await relay.apply({ id: "sess_1" });
    const mirror = await mirrored(feedOf(), { pastMaxAge: "allow" });
    await relay.mark("3");
    await relay.redis.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes");
    await eventually(() => expect(told(mirror, "sess_1")).toBe("too old"));
    expect(refusal(() => mirror.status("sess_1")).cause).toBeInstanceOf(PartitionsError);
  });

  it("that are made another number while it reads end it, since what it read is not in the stream", async () => {
    await relay.apply({ id: "sess_1" });
    await relay.redis.del(EVENTS);
    const wire = new Wire(connected.client);
    const gate = wire.holdSnapshots();
    const mirror = mirrorOf(feedOf(wire.access()));
    await gate.reached;
    await relay.mark("3");
    gate.open();
    await expect(mirror.ready()).rejects.toBeInstanceOf(PartitionsError);
  });
});

describe("its age", () => {
  it("is looked after twice in maxAge while nothing happens, by two commands", async () => {
    await relay.apply({ id: "sess_1" });
    const wire = new Wire(connected.client);
    const mirror = await mirrored(feedOf(wire.access()), { maxAge: 500 });
    await catchUp(mirror);
    wire.sent.length = 0;
    await catchUp(mirror);
    await catchUp(mirror);
    expect(new Set(wire.sent.map(([name]) => name))).toEqual(new Set(["XREAD", "XRANGE"]));
    const waits = wire.sent.filter(([name]) => name === "XREAD").map((command) => command[4]);
    expect(new Set(waits)).toEqual(new Set([250]));
  });

  it.each([1, 3])("is that of the last look at empty streams, too: %d", async (partitions) => {
    const mirror = await mirrored(feedOf(connected.client, { partitions }), { maxAge: 400 });
    for (let turn = 0; turn < 3; turn++) await catchUp(mirror);
  });

  it("keeps small while each look finds something", async () => {
    const wire = new Wire(connected.client);
    const mirror = await mirrored(feedOf(wire.access()), { maxAge: 600_000 });
    const news = (): Promise<string> => relay.apply({ id: "sess_1", expireAt: Date.now() + DAY });
    wire.before = wire.after = ([first]) => (first?.[0] === "XRANGE" ? news() : undefined);
    await news();
    for (let turn = 0; turn < 5; turn++) await catchUp(mirror);
  });

  it("counts from when Redis was asked, not from when it answered", async () => {
    const wire = new Wire(connected.client);
    const mirror = await mirrored(feedOf(wire.access()), { maxAge: 400 });
    await catchUp(mirror);
    const gate = new Gate();
    wire.after = ([first]) => (first?.[0] === "XRANGE" ? gate.pass() : undefined);
    await gate.reached;
    const clock = skewClock();
    clock.ahead = 60_000;
    wire.after = ([first]) => (first?.[0] === "XREAD" ? new Promise(() => undefined) : undefined);
    gate.open();
    await eventually(() => expect(wire.sent.at(-1)?.[0]).toBe("XREAD"));
    expect(mirror.age).toBeGreaterThanOrEqual(60_000);
  });

  it("makes it throw past maxAge, and say why", async () => {
    await relay.apply({ id: "sess_1" });
    const mirror = await mirrored();
    skewClock().ahead = 5000;
    for (const ask of [mirror.status, mirror.isLive, mirror.userId]) {
      const error = refusal(() => ask("sess_1"));
      expect(error.message).toMatch(/^The mirror is \d+\.\d s old, and maxAge is 5 s: .+ had no time to look\.$/);
      expect([error.age >= 5000, error.maxAge]).toEqual([true, 5000]);
    }
  });

  it("does not count if any is allowed", async () => {
    await relay.apply({ id: "sess_1", expireAt: Date.now() + DAY });
    const mirror = await mirrored(feedOf(), { pastMaxAge: "allow" });
    skewClock().ahead = 1e9;
    expect([mirror.status("sess_1"), mirror.userId("sess_1")]).toEqual(["live", "user_1"]);
    expect(mirror.age).toBeGreaterThan(1e8);
    skewTime().ahead = 2 * DAY;
    expect(mirror.status("sess_1")).toBe("ended");
  });

  it("makes it ask Redis, in one round trip, if it may", async () => {
    await relay.apply({ id: "sess_1" });
    await relay.apply({ id: "sess_2", status: "ended" });
    const wire = new Wire(connected.client);
    const mirror = await mirrored(feedOf(wire.access()), { pastMaxAge: "ask" });
    expect([mirror.status("sess_1"), wire.asked]).toEqual(["live", []]);
    skewClock().ahead = 5000;
    const asked = ["sess_1", "sess_2", "sess_3"].map((id) => mirror.status(id));
    expect(asked.map((status) => typeof status)).toEqual(["object", "object", "object"]);
    expect(await Promise.all(asked)).toEqual(["live", "ended", "unknown"]);
    const trips = wire.asked.map((commands) => commands.map(([name, key]) => `${name} ${key}`));
    expect(trips).toEqual(["sess_1", "sess_2", "sess_3"].map((id) => [`HMGET {clerk}:session:${id}`]));
  });

  it("lets it ask for users, too", async () => {
    await relay.apply({ id: "sess_1" });
    await relay.apply({ id: "sess_2", status: "ended" });
    const mirror = await mirrored(feedOf(), { pastMaxAge: "ask" });
    skewClock().ahead = 5000;
    const users = ["sess_1", "sess_2", "sess_3"].map((id) => mirror.userId(id));
    const isLive = mirror.isLive("sess_1");
    expect(isLive).toBeInstanceOf(Promise);
    expect([await isLive, ...(await Promise.all(users))]).toEqual([true, "user_1", null, null]);
  });
});

describe("before it is ready", () => {
  it("says nothing, even if any age is allowed", async () => {
    await applyAll(IDS);
    const wire = new Wire(connected.client);
    const gate = wire.holdSnapshots();
    const mirror = mirrorOf(feedOf(wire.access()), { pastMaxAge: "allow" });
    await gate.reached;
    expect([mirror.isReady, mirror.age, mirror.size]).toEqual([false, Infinity, 0]);
    const error = refusal(() => mirror.status("sess_1"));
    expect(error.message).toBe("The mirror is not ready: the sessions are still being read, 0 so far.");
    expect([error.age, error.maxAge]).toEqual([Infinity, 5000]);
    gate.open();
    await mirror.ready();
    expect([mirror.isReady, mirror.size]).toEqual([true, 12]);
    expect(new Set(IDS.map((id) => mirror.status(id)))).toEqual(new Set(["live"]));
  });

  it("asks if it may", async () => {
    await relay.apply({ id: "sess_1" });
    const mirror = mirrorOf(feedOf(), { pastMaxAge: "ask" });
    expect(await mirror.status("sess_1")).toBe("live");
  });

  it("is not waited for longer than a signal says, which tells why", async () => {
    const client = await IOREDIS.server(await freePort());
    const mirror = mirrorOf(feedOf(client.client));
    const controller = new AbortController();
    const waiting = mirror.ready({ signal: controller.signal });
    await eventually(() => expect(reconnects.length).toBeGreaterThan(0));
    controller.abort();
    const error = (await waiting.catch((thrown: unknown) => thrown)) as MirrorTooOldError;
    expect(error).toBeInstanceOf(MirrorTooOldError);
    expect(error.message).toMatch(/^The mirror is not ready: Redis has been away for \d+\.\d s: .*ECONNREFUSED/);
    expect(error.cause).toBe(controller.signal.reason);
    await mirror.close();
    await client.close();
  });

  it("loses nothing of what happens meanwhile", async () => {
    await applyAll(IDS);
    const wire = new Wire(connected.client);
    const gate = wire.holdSnapshots();
    const mirror = mirrorOf(feedOf(wire.access()));
    await gate.reached;
    for (const id of IDS.slice(6)) await relay.apply({ id, status: "ended" });
    gate.open();
    await mirror.ready();
    expect(IDS.map((id) => mirror.status(id))).toEqual([...Array(6).fill("live"), ...Array(6).fill("ended")]);
  });
});

describe("after the stream has lost its place", () => {
  it.each([
    ["trimmed", () => relay.trim(), "live"],
    ["deleted", () => relay.redis.del(EVENTS), "live"],
    ["flushed", () => relay.redis.flushall(), "unknown"],
  ] as const)("it reads all again, and answers from what it had until then: %s", async (_, lose, status) => {
    await applyAll(IDS);
    await relay.apply({ id: "sess_0", status: "ended" });
    const wire = new Wire(connected.client);
    const mirror = await mirrored(feedOf(wire.access()), { maxAge: 60_000 });
    const gate = wire.holdSnapshots();
    const removed = "{clerk}:session:sess_1"; // of whose end no event tells
    await relay.redis.multi().del(removed).exec();
    await lose();
    await relay.apply({ id: "sess_later", expireAt: Date.now() + DAY });
    await gate.reached;
    expect(["sess_0", "sess_1", "sess_2"].map((id) => mirror.status(id))).toEqual(["ended", "live", "live"]);
    const clock = skewClock();
    clock.ahead = 60_001;
    const { reason } = refusal(() => mirror.status("sess_1"));
    expect(reason).toBe("the sessions are again, since the stream has lost its place, being read, 0 so far");
    clock.ahead = 0;
    gate.open();
    await eventually(() => expect(mirror.status("sess_later")).toBe("live"));
    const ended = status === "live" ? "ended" : "unknown";
    expect(["sess_0", "sess_1", "sess_2"].map((id) => mirror.status(id))).toEqual([ended, "unknown", status]);
  });

  describe("since another server took over", () => {
    let primary: RedisServer;
    let replica: RedisServer;
    let first: Relay;
    let second: Relay;
    let clients: Connected[];
    let wire: Wire;

    beforeEach(async () => {
      primary = await RedisServer.start();
      const options = ["--replicaof", "127.0.0.1", `${primary.port}`, "--repl-diskless-sync-delay", "0"];
      replica = await RedisServer.start(...options);
      [first, second] = [new Relay(primary.port), new Relay(replica.port)];
      clients = [await IOREDIS.server(primary.port), await IOREDIS.server(replica.port)];
      wire = new Wire((clients[0] as Connected).client);
      await eventually(async () => expect(await second.redis.info("replication")).toContain("master_link_status:up"));
    });
    afterEach(async () => {
      for (const feed of feeds) await feed.close();
      for (const each of [...clients, first, second]) await each.close();
      for (const each of [primary, replica]) await each.stop();
    });

    /** From now on, the replica gets nothing. */
    const part = async (): Promise<void> => {
      const length = await first.redis.xlen(EVENTS);
      await eventually(async () => expect(await second.redis.xlen(EVENTS)).toBe(length));
      await second.redis.replicaof("NO", "ONE");
    };
    const takeOver = async (): Promise<void> => {
      wire.driver = new Wire((clients[1] as Connected).client).driver;
      await first.redis.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes");
    };

    it("what that did not get counts no more", async () => {
      for (const id of ["sess_1", "sess_2"]) await first.apply({ id });
      const mirror = await mirrored(feedOf(wire.access()));
      await part();
      await first.apply({ id: "sess_1", status: "ended" });
      await first.apply({ id: "sess_3" });
      const said = (): string[] => ["sess_1", "sess_2", "sess_3"].map((id) => told(mirror, id));
      await eventually(() => expect(said()).toEqual(["ended", "live", "live"]));
      await takeOver();
      await eventually(() => expect(said()).toEqual(["live", "live", "unknown"]));
    });

    it("what only the former primary had when it was read counts no more", async () => {
      // The cursor with which it begins is on both servers. The snapshots are of the first, the stream of the second.
      for (const id of IDS) await first.apply({ id });
      await part();
      const steps = ["SCAN", "XRANGE"];
      wire.before = async ([command]) => {
        if (command?.[0] !== steps[0]) return;
        if (steps.shift() === "XRANGE") return takeOver();
        for (const id of IDS) await first.apply({ id, status: "ended" });
      };
      const mirror = await mirrored(feedOf(wire.access()));
      expect(steps).toEqual([]);
      expect(new Set(IDS.map((id) => mirror.status(id)))).toEqual(new Set(["live"]));
      expect(reconnects.length).toBeGreaterThan(0);
    });

    /** So many that they come in several responses. `cursor`: which they are said to have. */
    const fill = async (cursor: string): Promise<void> => {
      const hashes = first.redis.pipeline();
      const fields = { live: "1", status: "active", user_id: "user_1", cursor, _expire_at: "" };
      for (let number = 0; number < 1200; number++) hashes.hset(`{clerk}:session:sess_${number}`, fields);
      await hashes.exec();
    };

    it("snapshots of the one that went away do not count", async () => {
      await part();
      await fill("1-1");
      for (const id of IDS.slice(0, 3)) await second.apply({ id });
      let scans = 0;
      wire.before = async ([command]) => {
        if (command?.[0] === "SCAN" && ++scans === 2) await takeOver();
      };
      const mirror = await mirrored(feedOf(wire.access()));
      expect(scans).toBeGreaterThan(2);
      expect([mirror.size, mirror.status("sess_0"), mirror.status("sess_1199")]).toEqual([3, "live", "unknown"]);
    });

    it("events of the other count, though the one that went away had later ones", async () => {
      const now = Number((await first.apply({ id: "sess_0" })).split("-")[0]);
      await part();
      await fill(`${now + 1_000_000}-0`);
      const steps = ["SCAN", "SCAN", "XRANGE"];
      wire.before = async ([command]) => {
        if (command?.[0] !== steps[0]) return;
        steps.shift();
        if (steps.length === 1) await takeOver();
        if (steps.length) return;
        await second.apply({ id: "sess_0", status: "ended" });
        await second.redis.xadd(EVENTS, `${now + 2_000_000}-0`, "outcome", "stale");
      };
      const mirror = await mirrored(feedOf(wire.access()));
      expect([mirror.status("sess_0"), steps]).toEqual(["ended", []]);
    });
  });
});

describe("while Redis hangs", () => {
  it("grows old, says why, and recovers", async () => {
    await relay.apply({ id: "sess_1" });
    const mirror = await mirrored(feedOf(connected.client, { timeout: 300 }), { maxAge: 1000 });
    process.kill(server.pid, "SIGSTOP");
    try {
      await eventually(() => expect(told(mirror, "sess_1")).toBe("too old"));
      await eventually(() =>
        expect(refusal(() => mirror.status("sess_1")).reason).toMatch(/^Redis has been away for \d/),
      );
    } finally {
      process.kill(server.pid, "SIGCONT");
    }
    await eventually(() => expect(told(mirror, "sess_1")).toBe("live"));
    await relay.apply({ id: "sess_1", status: "ended" });
    await eventually(() => expect(told(mirror, "sess_1")).toBe("ended"));
    skewClock().ahead = 5000;
    expect(refusal(() => mirror.status("sess_1")).reason).toContain("had no time to look");
  });
});

describe("its end", () => {
  const connections = async (): Promise<number> =>
    String(await relay.redis.call("CLIENT", "LIST"))
      .split("\n")
      .filter((line) => line.includes("cmd=x")).length;

  it.each(["raise", "ask", "allow"] as const)("is said, and nobody is asked any more: %s", async (pastMaxAge) => {
    await relay.apply({ id: "sess_1" });
    const feed = feedOf();
    const mirror = await mirrored(feed, { pastMaxAge });
    await mirror.close();
    expect(mirror.isReady).toBe(false);
    for (const ask of [mirror.status, mirror.isLive, mirror.userId]) {
      expect(() => ask("sess_1")).toThrow(new FeedClosedError("mirror"));
    }
    await expect(mirror.ready()).rejects.toThrow("The mirror is closed.");
    expect(await feed.status("sess_1")).toBe("live");
  });

  it.each([
    ["close", (mirror: Mirror) => mirror.close()],
    ["await using", (mirror: Mirror) => mirror[Symbol.asyncDispose]()],
    ["the feed's close", (_: Mirror, feed: SessionFeed) => feed.close()],
    ["the signal", (_: Mirror, __: SessionFeed, controller: AbortController) => controller.abort()],
  ])("comes with %s, and leaves no connection", async (_, end) => {
    const controller = new AbortController();
    const feed = feedOf();
    const mirror = mirrorOf(feed, { signal: controller.signal });
    await mirror.ready({ signal: controller.signal });
    await eventually(async () => expect(await connections()).toBe(1));
    await end(mirror, feed, controller);
    expect(() => mirror.status("sess_1")).toThrow(FeedClosedError);
    await eventually(async () => expect(await connections()).toBe(0));
    expect(getEventListeners(controller.signal, "abort")).toEqual([]);
  });

  it("leaves nothing of it with its feed", async () => {
    const access = new Wire(connected.client).access();
    let closings = 0;
    const follower: Access["follower"] = (key, options) => {
      const connection = access.follower(key, options);
      const close = connection.close.bind(connection);
      connection.close = async () => {
        closings++;
        await close();
      };
      return connection;
    };
    const feed = feedOf({ ...access, follower });
    const mirror = await mirrored(feed);
    await mirror.close();
    const before = closings;
    await feed.close();
    expect([before > 0, closings]).toEqual([true, before]);
  });

  it("is at once if the signal is aborted already, and told to who waits", async () => {
    const mirror = mirrorOf(feedOf(), { signal: AbortSignal.abort() });
    await expect(mirror.ready()).rejects.toBeInstanceOf(FeedClosedError);
    const other = mirrorOf();
    const waiting = expect(other.ready()).rejects.toBeInstanceOf(FeedClosedError);
    await other.close();
    await waiting;
  });

  it("is an error of who makes one of a closed feed", async () => {
    const feed = feedOf();
    await feed.close();
    expect(() => feed.mirror()).toThrow(FeedClosedError);
  });

  it("has what caused it for a cause, and is a warning", async () => {
    await relay.apply({ id: "sess_1" });
    const mirror = await mirrored(feedOf(), { pastMaxAge: "allow" });
    const later = message({ id: "sess_1" }).replace('"schema_version":1', '"schema_version":2');
    await relay.redis.xadd(EVENTS, "*", "outcome", "applied", "session_id", "sess_1", "message", later);
    await eventually(() => expect(mirror.isReady).toBe(false));
    const error = refusal(() => mirror.status("sess_1"));
    expect(error.message).toMatch(/old, and maxAge is 5 s: it has ended, since \{clerk\}:events .*schema_version/);
    expect(error.cause).toBeInstanceOf(UnreadableMessageError);
    await expect(mirror.ready()).rejects.toBe(error.cause);
    expect(warnings).toEqual([expect.stringMatching(/^clerk-session-feed: the mirror has ended: .*schema_version/)]);
  });

  it("does not keep it from asking", async () => {
    await relay.apply({ id: "sess_1" });
    const mirror = await mirrored(feedOf(), { pastMaxAge: "ask" });
    await relay.redis.xadd(EVENTS, "*", "outcome", "applied", "session_id", "sess_1", "message", "no JSON");
    await eventually(() => expect(mirror.isReady).toBe(false));
    expect(await mirror.status("sess_1")).toBe("live");
  });

  it("comes with a hash that is no session", async () => {
    await relay.redis.hset("{clerk}:session:sess_1", "live", "1");
    await expect(mirrorOf().ready()).rejects.toThrow("{clerk}:session:sess_1: fields of its hash are missing");
  });

  it("comes with what `onReconnect` throws", async () => {
    const client = await IOREDIS.server(await freePort());
    const mistake = new TypeError("a mistake");
    const mirror = mirrorOf(feedOf(client.client), {
      onReconnect: () => {
        throw mistake;
      },
    });
    await expect(mirror.ready()).rejects.toBe(mistake);
    await client.close();
  });
});

it.each([
  { maxAge: 0 },
  { maxAge: -1 },
  { maxAge: Number.NaN },
  { keepEnded: -1 },
  { keepEnded: Infinity },
  { keepEnded: Number.NaN },
  { pastMaxAge: "throw" as "raise" },
])("options that can't be used are an error at once: %o", (options) => {
  expect(() => feedOf().mirror(options)).toThrow(RangeError);
});

it("without `onReconnect`, it warns on the console", async () => {
  const client = await IOREDIS.server(await freePort());
  const mirror = feedOf(client.client).mirror();
  await eventually(() => expect(warnings[0]).toMatch(/^clerk-session-feed: Redis: .*; trying again$/));
  await mirror.close();
  await client.close();
});
