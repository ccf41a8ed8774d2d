// The feed in memory, as a test of somebody's own consumer uses it.
import { readFileSync } from "node:fs";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { CursorLostError, SessionFeed, type SessionUpdate } from "../src/index.js";
import { MemoryRedis } from "../src/memory.js";
import { memoryAccess } from "../src/memory_connection.js";
import { memoryFeed, type MemoryFeed } from "../src/testing.js";
import { Collector, briefly, take } from "./support/updates.js";

let memory: MemoryFeed;
let signedIn: SessionUpdate;
const onReconnect = (): void => undefined;

beforeEach(() => {
  memory = memoryFeed();
});
afterEach(async () => {
  vi.useRealTimers();
  vi.restoreAllMocks();
  await memory.feed.close();
});

describe("what happens to a session", () => {
  beforeEach(() => {
    signedIn = memory.signIn("user_1", { id: "sess_1" });
  });

  it.each([
    ["end", "ended"],
    ["remove", "removed"],
    ["revoke", "revoked"],
    ["expire", "expired"],
  ] as const)("is told by status and get: %s", async (what, status) => {
    expect(await memory.feed.status("sess_1")).toBe("live");
    const update = memory[what]("sess_1");
    expect(update.event.type).toBe(`session.${status}`);
    expect(update).toMatchObject({
      revision: 2,
      previousStatus: "active",
      isLive: false,
      session: { status, live: false },
    });
    expect(await memory.feed.status("sess_1")).toBe("ended");
    expect(await memory.feed.get("sess_1")).toEqual(update);
  });

  it("comes as the returned updates from the stream, and its state as a snapshot", async () => {
    const ended = memory.end("sess_1");
    expect(await take(memory.feed.follow({ after: "0-0" }), 2)).toEqual([signedIn, ended]);
    const [snapshot] = await take(memory.feed.follow(), 1);
    expect(snapshot).toEqual({ ...ended, isSnapshot: true });
    expect(snapshot?.position).toBeNull();
    expect(await take(memory.feed.follow({ after: snapshot?.position ?? null }), 1)).toEqual([snapshot]);
    expect(await memory.feed.history("sess_1")).toEqual([signedIn, ended]);
    expect(await memory.feed.now()).toEqual({ 0: ended.cursor });
  });

  it("wakes iterators that wait", async () => {
    const all = new Collector(memory.feed.subscribe());
    const one = new Collector(memory.feed.subscribe({ userId: "user_2" }));
    const followed = new Collector(memory.feed.follow());
    await memory.idle();
    const other = memory.signIn("user_2");
    const ended = memory.end("sess_1");
    await memory.idle();
    expect(all.updates).toEqual([other, ended]);
    expect(one.updates).toEqual([other]);
    expect(followed.updates.slice(1)).toEqual([other, ended]);
  });

  it("may come too late", async () => {
    const ended = memory.end("sess_1");
    const late = memory.late("sess_1");
    expect(late).toMatchObject({ outcome: "stale", revision: null, previousStatus: null });
    expect(await memory.feed.status("sess_1")).toBe("ended");
    expect(await take(memory.feed.follow({ after: signedIn.cursor, stale: true }), 2)).toEqual([ended, late]);
  });

  it("changes which sessions of a user are live, the first to expire first", async () => {
    memory.signIn("user_1", { id: "sess_2", expire_at: Date.now() + 60_000 });
    memory.signIn("user_1", { id: "sess_3", expire_at: null });
    memory.signIn("user_2", { id: "sess_4" });
    const live = async (): Promise<string[]> =>
      (await memory.feed.liveSessions("user_1")).map(({ session }) => session.id);
    expect(await live()).toEqual(["sess_2", "sess_1", "sess_3"]);
    memory.end("sess_1");
    expect(await live()).toEqual(["sess_2", "sess_3"]);
  });

  it("may be that a pending one becomes active", async () => {
    const pending = memory.signIn("user_1", { status: "pending", tasks: [{ key: "choose-organization" }] });
    const { id } = pending.session;
    expect(pending.event.type).toBe("session.pending");
    expect(await memory.feed.status(id)).toBe("ended");
    const update = memory.update(id, { status: "active", tasks: [] });
    expect(update).toMatchObject({ previousStatus: "pending", event: { source: "clerk-api" }, session: { tasks: [] } });
    expect(await memory.feed.status(id)).toBe("live");
  });

  it("may be that its end comes, without any event", async () => {
    vi.useFakeTimers();
    const { session } = memory.signIn("user_1", { expire_at: Date.now() + 1000 });
    expect(await memory.feed.status(session.id)).toBe("live");
    vi.advanceTimersByTime(1000);
    expect(await memory.feed.status(session.id)).toBe("ended");
    expect(memory.expire(session.id).session.expire_at).toBe(session.expire_at);
  });

  it("can't be after its end, but that an expired one is extended, or ends", () => {
    memory.expire("sess_1");
    expect(() => memory.expire("sess_1")).toThrow("sess_1 is over: expired");
    expect(memory.update("sess_1", { status: "active", expire_at: null }).isLive).toBe(true);
    memory.end("sess_1");
    expect(() => memory.revoke("sess_1")).toThrow("sess_1 is over: ended");
  });

  it("needs a session that is there, and a new one needs a new id that is one", async () => {
    expect(() => memory.end("sess_2")).toThrow("no session sess_2");
    expect(() => memory.signIn("user_1", { id: "sess_1" })).toThrow("session sess_1 already");
    expect(() => memory.signIn("no id: {}")).toThrow("session.user_id");
    expect(await memory.feed.now()).toEqual({ 0: signedIn.cursor });
  });
});

it("makes messages with the fields of the schema, in its order", () => {
  const file = new URL("../../../docs/schema/session-message.schema.json", import.meta.url);
  const { required, $defs } = JSON.parse(readFileSync(file, "utf8"));
  const { session } = memory.signIn("user_1");
  for (const update of [memory.end(session.id), memory.late(session.id)]) {
    const message = JSON.parse(update.json);
    expect(Object.keys(message)).toEqual(required);
    expect(Object.keys(message.event)).toEqual($defs.Event.required);
    expect(Object.keys(message.session)).toEqual($defs.Session.required);
  }
});

it("gives each session and event an id as long as Clerk's", () => {
  const [one, other] = [memory.signIn("user_1"), memory.signIn("user_1")];
  for (const { session, event } of [one, other]) {
    expect(session.id).toMatch(/^sess_\w{27}$/);
    expect(event.id).toMatch(/^msg_\w{27}$/);
  }
  expect(one.session.id).not.toBe(other.session.id);
});

it("gives entries ascending ids, also while the clock stands, or goes back, or all is lost", () => {
  vi.useFakeTimers();
  const cursors = [memory.signIn("user_1"), memory.signIn("user_1")].map(({ cursor }) => cursor);
  vi.setSystemTime(Date.now() - 1000);
  memory.flush();
  cursors.push(memory.signIn("user_1").cursor);
  const [ms] = (cursors[0] as string).split("-");
  expect(cursors).toEqual([`${ms}-0`, `${ms}-1`, `${ms}-2`]);
});

describe("what Redis loses", () => {
  it("is a lost cursor for an iterator that was behind what was trimmed, and a new beginning with resync", async () => {
    const first = memory.signIn("user_1", { id: "sess_1" });
    memory.end("sess_1");
    memory.signIn("user_1", { id: "sess_2" });
    memory.trim(1);
    const updates = memory.feed.follow({ after: first.cursor });
    const error = await updates.next().catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(CursorLostError);
    expect(error).toMatchObject({ cursor: first.cursor, partition: 0 });
    const again = await take(memory.feed.follow({ after: first.cursor, resync: true }), 2);
    expect(briefly(again)).toEqual(["sess_1 ended 2*", "sess_2 active 1*"]);
  });

  it("is everything", async () => {
    memory.signIn("user_1", { id: "sess_1" });
    const collector = new Collector(memory.feed.follow({ resync: true }));
    await memory.idle();
    memory.flush();
    expect(await memory.feed.status("sess_1")).toBe("unknown");
    expect(await memory.feed.liveSessions("user_1")).toEqual([]);
    memory.signIn("user_1", { id: "sess_1" });
    await memory.idle();
    expect(briefly(collector.updates)).toEqual(["sess_1 active 1*", "sess_1 active 1*"]);
  });

  it("is a group, too, which is made again", async () => {
    vi.spyOn(console, "warn").mockImplementation(() => undefined);
    const collector = new Collector(memory.feed.consume("group", "name", { after: "0-0" }));
    memory.signIn("user_1", { id: "sess_1" });
    await memory.idle();
    memory.flush();
    memory.signIn("user_1", { id: "sess_2" });
    await memory.idle();
    expect(briefly(collector.updates).at(-1)).toBe("sess_2 active 1");
    expect(memory.pending("group")).toBe(0);
  });
});

describe("a group", () => {
  it("acknowledges what is done, and gives what is not to the next", async () => {
    for (const id of ["sess_1", "sess_2", "sess_3"]) memory.signIn("user_1", { id });
    for await (const { session } of memory.feed.consume("group", "name", { after: "0-0" })) {
      if (session.id === "sess_2") break;
    }
    expect(memory.pending("group")).toBe(2);
    const collector = new Collector(memory.feed.consume("group", "name"));
    await memory.idle();
    expect(briefly(collector.updates)).toEqual(["sess_2 active 1", "sess_3 active 1"]);
    expect(memory.pending("group")).toBe(0);
  });

  it("is shared by its consumers", async () => {
    const collectors = ["one", "other"].map(
      (name) => new Collector(memory.feed.consume("group", name, { after: "0-0" })),
    );
    await memory.idle();
    for (let number = 0; number < 4; number++) {
      memory.signIn("user_1");
      await memory.idle();
    }
    expect(collectors.map(({ updates }) => updates.length)).toEqual([2, 2]);
  });

  it("gives what a consumer has that died to another after claimAfter", async () => {
    vi.useFakeTimers();
    memory.signIn("user_1", { id: "sess_1" });
    const dead = memory.feed.consume("group", "dead", { after: "0-0" });
    await dead.next();
    await dead.return();
    const collector = new Collector(memory.feed.consume("group", "alive", { claimAfter: 60_000 }));
    await vi.advanceTimersByTimeAsync(50_000);
    expect(collector.updates).toEqual([]);
    await vi.advanceTimersByTimeAsync(50_000);
    expect(briefly(collector.updates)).toEqual(["sess_1 active 1"]);
  });

  it("whose work was trimmed is told so", async () => {
    for (const id of ["sess_1", "sess_2"]) memory.signIn("user_1", { id });
    const first = memory.feed.consume("group", "name", { after: "0-0" });
    await first.next();
    await first.return();
    memory.trim(1);
    await expect(memory.feed.consume("group", "name").next()).rejects.toBeInstanceOf(CursorLostError);
    const again = await take(memory.feed.consume("group", "name", { resync: true }), 2);
    expect(briefly(again)).toEqual(["sess_1 active 1*", "sess_2 active 1*"]);
  });

  it("loses consumers that nobody uses for a day", async () => {
    vi.useFakeTimers();
    const redis = new MemoryRedis();
    const feeds = ["gone", "stays"].map((name) => ({ name, feed: new SessionFeed(memoryAccess(redis) as never) }));
    for (const { name, feed } of feeds) void feed.consume("group", name, { after: "0-0" }).next();
    await redis.idle();
    const names = (): string[] => [
      ...(redis.streams.get("{clerk}:events")?.groups.get("group")?.consumers.keys() ?? []),
    ];
    expect(names()).toEqual(["gone", "stays"]);
    await feeds[0]?.feed.close();
    const hour = 3_600_000;
    await vi.advanceTimersByTimeAsync(23 * hour);
    expect(names()).toEqual(["gone", "stays"]);
    await vi.advanceTimersByTimeAsync(2.5 * hour);
    expect(names()).toEqual(["stays"]);
    await feeds[1]?.feed.close();
  });
});

describe("while Redis is away", () => {
  it("short reads throw, and iterators tell so, wait and go on", async () => {
    memory.signIn("user_1", { id: "sess_1" });
    const told: string[] = [];
    const tell = { onReconnect: ({ message }: Error): unknown => told.push(message) };
    const collectors = [
      new Collector(memory.feed.follow(tell)),
      new Collector(memory.feed.consume("group", "name", tell)),
      new Collector(memory.feed.subscribe(tell)),
    ];
    await memory.idle();
    memory.fail(new Error("Redis is on holiday"));
    await expect(memory.feed.status("sess_1")).rejects.toThrow("Redis is on holiday");
    memory.end("sess_1");
    await memory.idle();
    expect(told).toEqual(Array(3).fill("Redis is on holiday"));
    expect(collectors.map(({ updates }) => updates.length)).toEqual([1, 1, 0]);
    memory.restore();
    await memory.idle();
    memory.signIn("user_1");
    await memory.idle();
    // What is published during a cut is lost.
    expect(collectors.map(({ updates }) => updates.length)).toEqual([3, 3, 1]);
    expect(await memory.feed.status("sess_1")).toBe("ended");
  });

  it("iterators throw what another attempt can't help", async () => {
    const collector = new Collector(memory.feed.follow({ onReconnect }));
    await memory.idle();
    memory.fail(new Error("NOPERM User worker has no permissions to run the 'xread' command"));
    expect(String(await collector.done)).toContain("NOPERM");
  });

  it("an iterator ends when it is closed", async () => {
    memory.fail();
    const collector = new Collector(memory.feed.follow({ onReconnect }));
    await memory.idle();
    await memory.feed.close();
    expect(await collector.done).toBeUndefined();
  });
});

it("ends iterators when the feed is closed, or a signal is aborted", async () => {
  const controller = new AbortController();
  const aborted = new Collector(memory.feed.follow({ signal: controller.signal }));
  const closed = new Collector(memory.feed.subscribe());
  await memory.idle();
  controller.abort();
  expect(await aborted.done).toBeUndefined();
  await memory.feed.close();
  expect(await closed.done).toBeUndefined();
});

it.each(["follow", "subscribe"] as const)("ends an iterator that begins after the feed was closed: %s", async (how) => {
  memory.signIn("user_1");
  const updates = memory.feed[how]();
  await memory.feed.close();
  expect(await updates.next()).toEqual({ done: true, value: undefined });
});

it("divides its sessions into partitions, as the relay does", async () => {
  memory = memoryFeed({ partitions: 4, prefix: "{other}" });
  const users = Array.from({ length: 8 }, (_, number) => `user_${number}`);
  const collector = new Collector(memory.feed.follow());
  await memory.idle();
  const updates = users.map((userId) => memory.signIn(userId));
  await memory.idle();
  expect(new Set(collector.updates)).toEqual(new Set(updates));
  expect(new Set(updates.map(({ partition }) => partition))).toEqual(new Set([0, 1, 2, 3]));
  const [{ session }] = updates as [SessionUpdate];
  expect(await memory.feed.status(session.id)).toBe("live");
  expect(await memory.feed.status(session.id, session.user_id)).toBe("live");
  expect(await memory.feed.liveSessions(session.user_id)).toHaveLength(1);
});

it("refuses what a SessionFeed refuses", () => {
  expect(() => memoryFeed({ partitions: 0 })).toThrow(RangeError);
});

describe("idle", () => {
  it("waits for the body of a loop", async () => {
    let finish = (): void => undefined;
    let isDone = false;
    const loop = (async () => {
      for await (const _ of memory.feed.follow()) {
        await new Promise<void>((resolve) => (finish = resolve));
        isDone = true;
      }
    })();
    memory.signIn("user_1");
    const isIdle = vi.fn();
    const idle = memory.idle().then(isIdle);
    await new Promise(setImmediate);
    expect(isIdle).not.toHaveBeenCalled();
    finish();
    await idle;
    expect(isDone).toBe(true);
    await memory.feed.close();
    await loop;
  });

  it("resolves where nothing runs", async () => {
    memory.signIn("user_1");
    await memory.idle();
  });
});

it("works with faked timers", async () => {
  vi.useFakeTimers();
  const collector = new Collector(memory.feed.consume("group", "name", { after: "0-0" }));
  await memory.idle();
  const update = memory.signIn("user_1");
  await memory.idle();
  expect(collector.updates).toEqual([update]);
});

it("lets a mirror look around at a stream without entries, whatever its maxAge is", async () => {
  vi.useFakeTimers();
  const mirror = memory.feed.mirror({ maxAge: Infinity });
  await mirror.ready();
  await vi.advanceTimersByTimeAsync(100_000);
  expect(mirror.age).toBeLessThan(30_000);
});
