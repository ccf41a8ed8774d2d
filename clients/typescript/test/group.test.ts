// Consumer groups: each update at least once, whoever dies and whatever Redis loses. At a real redis-server.
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import type { Command } from "../src/connection.js";
import { NOTHING } from "../src/cursors.js";
import {
  CursorLostError,
  SessionFeed,
  UnreadableMessageError,
  type ConsumeOptions,
  type SessionUpdate,
} from "../src/index.js";
import { consume } from "../src/group.js";
import { keysOf } from "../src/keys.js";
import { Partition, type Updates } from "../src/stream.js";
import { LIBRARIES, type Library } from "./support/clients.js";
import { EVENTS, calls, consumers, groups, pending, skewClock, watched } from "./support/groups.js";
import { Relay } from "./support/relay.js";
import { connected, feedOf, feeds, relay, server, useClient, useRelay } from "./support/relayed.js";
import { Collector, take } from "./support/updates.js";

/** Its reconnections are no warnings: tests cause them. */
const onReconnect = (): void => undefined;

useRelay();
afterEach(() => void vi.restoreAllMocks());

const consumed = (options: ConsumeOptions & { group?: string; name?: string; feed?: SessionFeed } = {}): Updates => {
  const { group = "group", name = "name", feed = feedOf(), ...others } = options;
  return feed.consume(group, name, { onReconnect, ...others });
};

/** Lets each session begin; resolves to the cursors. */
async function beginSessions(...numbers: number[]): Promise<[string, string, ...string[]]> {
  const cursors: string[] = [];
  for (const number of numbers) cursors.push(await relay.apply({ id: `sess_${number}` }));
  return cursors as [string, string];
}

const numberOf = ({ session }: SessionUpdate): number => Number(session.id.slice("sess_".length));
const numbers = (updates: SessionUpdate[]): number[] => updates.map(numberOf);
const sorted = (updates: SessionUpdate[]): number[] => numbers(updates).sort();
const next = async (updates: Updates): Promise<SessionUpdate> => (await take(updates, 1))[0] as SessionUpdate;
const acknowledged = (): Promise<void> => expect.poll(() => pending(relay.redis)).toBe(0);
const blocked = async (): Promise<number> => {
  const list = (await relay.redis.client("LIST")) as string;
  return list.split("\n").filter((line) => /flags=\w*b/.test(line)).length;
};

describe.each(LIBRARIES)("over $name, a consumer", (library) => {
  useClient(library);

  it("begins with the state of every session, then gets what happens", async () => {
    await beginSessions(1, 2);
    const updates = consumed();
    const held = await take(updates, 2);
    await beginSessions(3);
    const news = await next(updates);
    expect(sorted(held)).toEqual([1, 2]);
    expect([...held, news].map(({ isSnapshot }) => isSnapshot)).toEqual([true, true, false]);
    expect(numberOf(news)).toBe(3);
  });

  it("acknowledges what it has done with its next read", async () => {
    await beginSessions(1, 2, 3);
    const updates = consumed({ after: "0-0" });
    await take(updates, 3);
    expect(await pending(relay.redis)).toBe(3);
    const more = next(updates);
    await acknowledged();
    await beginSessions(4);
    expect(numberOf(await more)).toBe(4);
  });

  it("takes over what a consumer had that died", async () => {
    await beginSessions(1, 2, 3);
    const dead = consumed({ name: "dead", after: "0-0" });
    await take(dead, 2);
    await dead.return();
    expect(numbers(await take(consumed({ name: "alive", claimAfter: 200 }), 2))).toEqual([2, 3]);
  });

  it("is told of what was trimmed before it was done with it", async () => {
    const [, second] = await beginSessions(1, 2, 3);
    const updates = consumed({ after: "0-0" });
    await take(updates, 2);
    await updates.return();
    await relay.trim(1);
    await expect(next(consumed())).rejects.toMatchObject({ name: "CursorLostError", cursor: second });
    expect(sorted(await take(consumed({ resync: true }), 3))).toEqual([1, 2, 3]);
  });

  it("makes a group that Redis lost again, and gets all that is left", async () => {
    vi.spyOn(console, "warn").mockImplementation(() => undefined);
    await beginSessions(1, 2);
    const updates = consumed({ after: "0-0" });
    await take(updates, 2);
    const more = next(updates);
    await acknowledged();
    await relay.redis.xgroup("DESTROY", EVENTS, "group");
    expect([await more, ...(await take(updates, 1))].map(numberOf)).toEqual([1, 2]);
    expect(console.warn).toHaveBeenCalledWith(expect.stringContaining("Redis lost the consumer group group"));
  });

  it("reads all partitions", async () => {
    const parted = new Relay(server.port, 4);
    const users = Array.from({ length: 12 }, (_, number) => `user_${number}`);
    const updates = consumed({ feed: feedOf(connected.client, { partitions: 4 }), after: "0-0" });
    for (const user of users) await parted.apply({ id: `sess_of_${user}`, userId: user });
    const seen = await take(updates, 12);
    expect(seen.map(({ session }) => session.user_id).sort()).toEqual([...users].sort());
    expect(new Set(seen.map(({ partition }) => partition))).toEqual(new Set([0, 1, 2, 3]));
    const more = next(updates);
    for (const number of [0, 1, 2, 3]) {
      await expect.poll(() => pending(relay.redis, "group", `{clerk:${number}}:events`)).toBe(0);
    }
    await parted.apply({ id: "sess_later" });
    expect((await more).session.id).toBe("sess_later");
    parted.close();
  });
});

describe("a group", () => {
  useClient(LIBRARIES[3] as Library);

  it("whose consumer dies in the snapshots leaves them to the next", async () => {
    await beginSessions(1, 2, 3);
    const first = consumed({ name: "first" });
    await next(first);
    await first.return();
    expect(await groups(relay.redis)).toEqual([]);
    expect(sorted(await take(consumed({ name: "second" }), 3))).toEqual([1, 2, 3]);
  });

  it("that is there goes on", async () => {
    await beginSessions(1);
    const updates = consumed();
    await next(updates);
    await beginSessions(2);
    await next(updates);
    await beginSessions(3);
    await next(updates); // acknowledges 2
    await updates.return();
    await beginSessions(4);
    expect(numbers(await take(consumed(), 2))).toEqual([3, 4]);
  });

  it("begins in the stream where it is told to", async () => {
    const [first] = await beginSessions(1, 2, 3);
    expect(numbers(await take(consumed({ group: "a", after: "0-0" }), 3))).toEqual([1, 2, 3]);
    expect(numbers(await take(consumed({ group: "b", after: first }), 2))).toEqual([2, 3]);
    const updates = consumed({ group: "c", after: await feedOf().now() });
    await beginSessions(4);
    expect(numberOf(await next(updates))).toBe(4);
  });

  it("that is to begin behind what was trimmed is an error, each time", async () => {
    const [first] = await beginSessions(1, 2, 3, 4);
    await relay.trim(1);
    for (let time = 0; time < 2; time++) {
      const error = await next(consumed({ after: first })).catch((thrown: unknown) => thrown);
      expect(error).toBeInstanceOf(CursorLostError);
      expect(error).toMatchObject({ cursor: first, partition: 0 });
    }
  });

  it("knows nothing of others", async () => {
    await beginSessions(1, 2);
    for (const group of ["one", "other"]) {
      expect(numbers(await take(consumed({ group, after: "0-0" }), 2))).toEqual([1, 2]);
    }
  });

  it("acknowledges stale events, and leaves them out unless it is told not to", async () => {
    await relay.apply({ id: "sess_1", status: "ended" });
    await relay.apply({ id: "sess_1", outcome: "stale" });
    await beginSessions(3);
    const updates = consumed({ after: "0-0" });
    expect(numbers(await take(updates, 2))).toEqual([1, 3]);
    await updates.return();
    expect(await pending(relay.redis)).toBe(1);
    const withStale = await take(consumed({ group: "with stale", after: "0-0", stale: true }), 3);
    expect(withStale.map(({ outcome }) => outcome)).toEqual(["applied", "stale", "applied"]);
  });

  it.each([
    ["", "name", 1],
    ["group", "", 1],
    ["group", "name", 0],
    ["group", "name", -1],
    ["group", "name", NaN],
    ["group", "name", Infinity],
  ])("can't be %j, with the consumer %j and claimAfter %j", (group, name, claimAfter) => {
    expect(() => feedOf().consume(group, name, { claimAfter })).toThrow(RangeError);
  });
});

describe("what is done", () => {
  useClient(LIBRARIES[3] as Library);

  it("takes few commands to acknowledge, at a thousand updates", async () => {
    await beginSessions(1);
    const [[, fields]] = (await relay.redis.xrange(EVENTS, "-", "+")) as [[string, string[]]];
    for (let number = 1; number < 1000; number++) await relay.redis.xadd(EVENTS, "*", ...fields);
    await relay.redis.config("RESETSTAT");
    const updates = consumed({ after: "0-0" });
    await take(updates, 1000);
    void updates.next();
    await acknowledged();
    const { xack, xreadgroup } = await calls(relay.redis);
    expect(xack).toBeLessThanOrEqual(40);
    expect(xreadgroup).toBeLessThanOrEqual(42);
  });

  it("is acknowledged after a second if the loop is slow", async () => {
    const clock = skewClock();
    await beginSessions(1, 2, 3);
    const updates = consumed({ after: "0-0" });
    await take(updates, 2);
    expect(await pending(relay.redis)).toBe(3);
    clock.ahead = 1100;
    await next(updates);
    expect(await pending(relay.redis)).toBe(1);
  });

  it("does not come again when the loop is left", async () => {
    await beginSessions(1, 2, 3, 4);
    for await (const update of consumed({ after: "0-0" })) if (numberOf(update) === 3) break;
    expect(await pending(relay.redis)).toBe(2);
    expect(numbers(await take(consumed(), 2))).toEqual([3, 4]);
  });

  it("does not come again when the loop fails", async () => {
    await beginSessions(1, 2);
    const loop = async (): Promise<void> => {
      for await (const update of consumed({ after: "0-0" }))
        if (numberOf(update) === 2) throw new Error("the loop's own");
    };
    await expect(loop()).rejects.toThrow("the loop's own");
    await beginSessions(3);
    expect(numbers(await take(consumed(), 2))).toEqual([2, 3]);
  });

  it.each(["the feed is closed", "the signal is aborted"])("does not come again when %s meanwhile", async (how) => {
    await beginSessions(1, 2, 3, 4);
    const feed = feedOf();
    const controller = new AbortController();
    const updates = consumed({ feed, after: "0-0", signal: controller.signal });
    expect(numbers(await take(updates, 3))).toEqual([1, 2, 3]);
    if (how === "the feed is closed") await feed.close();
    else controller.abort();
    expect(await updates.next()).toEqual({ done: true, value: undefined }); // the body is through with 3
    expect(await pending(relay.redis)).toBe(1);
    expect(numberOf(await next(consumed()))).toBe(4);
  });

  it("is acknowledged when the signal is aborted while the consumer waits", async () => {
    await beginSessions(1, 2);
    const controller = new AbortController();
    const collector = new Collector(consumed({ after: "0-0", signal: controller.signal }));
    await collector.has(2);
    await expect.poll(blocked).toBe(1);
    controller.abort();
    expect(await collector.done).toBeUndefined();
    expect(await pending(relay.redis)).toBe(0);
  });

  it("comes again with a warning if Redis is away when the loop is left", async () => {
    const warn = vi.spyOn(console, "warn").mockImplementation(() => undefined);
    await beginSessions(1, 2);
    const updates = consumed({ after: "0-0" });
    await take(updates, 2);
    await server.kill();
    try {
      await updates.return();
      expect(warn).toHaveBeenCalledWith(expect.stringContaining("comes again"));
    } finally {
      await server.start();
    }
    expect(numbers(await take(consumed(), 2))).toEqual([1, 2]);
  });

  it("does not include what is no message: that is an error for whoever gets it", async () => {
    await beginSessions(1);
    const entry = await relay.redis.xadd(EVENTS, "*", "outcome", "applied", "session_id", "sess_1", "message", "{}");
    const first = consumed({ after: "0-0" });
    expect(numberOf(await next(first))).toBe(1);
    for (const updates of [first, consumed()]) {
      const error = await next(updates).catch((thrown: unknown) => thrown);
      expect(error).toBeInstanceOf(UnreadableMessageError);
      expect(String(error)).toContain(`${EVENTS} ${entry}`);
    }
  });
});

describe("several consumers", () => {
  useClient(LIBRARIES[3] as Library);

  it("of a group share the stream", async () => {
    await beginSessions(...Array.from({ length: 20 }, (_, number) => number + 10));
    const [one, other] = [consumed({ name: "one", after: "0-0" }), consumed({ name: "other" })];
    const taken: SessionUpdate[] = [];
    for (let turn = 0; turn < 10; turn++) for (const updates of [one, other]) taken.push(await next(updates));
    expect(sorted(taken)).toEqual(Array.from({ length: 20 }, (_, number) => number + 10));
  });

  it("of which one is slow: it leaves alone what became another's", async () => {
    const clock = skewClock();
    const [, second] = await beginSessions(1, 2, 3);
    const updates = consumed({ name: "slow", after: "0-0" });
    await next(updates);
    await relay.redis.xclaim(EVENTS, "group", "quick", 0, second);
    clock.ahead = 31_000;
    expect(numberOf(await next(updates))).toBe(3);
  });

  it("of which one was cut off: it leaves alone what became another's", async () => {
    const clock = skewClock();
    const [, second] = await beginSessions(1, 2, 3);
    const updates = consumed({ name: "cut off", after: "0-0" });
    await next(updates);
    await relay.redis.xclaim(EVENTS, "group", "quick", 0, second);
    await relay.redis.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes");
    clock.ahead = 1100; // so it acknowledges, and sees that it was cut off
    expect(numberOf(await next(updates))).toBe(3);
  });

  it("of which one is slow: it shows that it lives before others take it for dead", async () => {
    const clock = skewClock();
    await beginSessions(1, 2, 3);
    const updates = consumed({ name: "slow", after: "0-0" });
    await next(updates);
    clock.ahead = 31_000;
    await next(updates);
    const taken = (await relay.redis.xpending(EVENTS, "group", "-", "+", 10)) as [string, string, number, number][];
    expect(taken.map(([, , , times]) => times)).toEqual([2, 2]);
  });
});

describe("what Redis loses", () => {
  useClient(LIBRARIES[3] as Library);
  beforeEach(() => void vi.spyOn(console, "warn").mockImplementation(() => undefined));

  const losses: Record<string, () => Promise<unknown>> = {
    "the group": () => relay.redis.xgroup("DESTROY", EVENTS, "group"),
    "the stream": () => relay.redis.del(EVENTS),
    everything: () => relay.redis.flushall(),
  };
  it.each(
    Object.keys(losses).flatMap((what): [string, string][] => [
      [what, "waits"],
      [what, "is busy"],
    ]),
  )("%s, while the consumer %s: the group is made again, and gets all that is left", async (what, when) => {
    await beginSessions(1, 2);
    const updates = consumed({ after: "0-0", claimAfter: 200 });
    await take(updates, 2);
    const more = when === "waits" ? next(updates) : undefined;
    if (more) {
      await acknowledged();
      await expect.poll(blocked).toBe(1);
    }
    await losses[what]?.();
    await beginSessions(3, 4);
    const seen = more ? [await more] : [];
    const left = what === "the group" ? [1, 2, 3, 4] : [3, 4];
    while (`${numbers(seen.filter(({ isSnapshot }) => !isSnapshot))}` !== `${left}`) seen.push(await next(updates));
    // Where the stream is another one, nobody knows what the group has not got of the old one.
    const held = sorted(seen.filter(({ isSnapshot }) => isSnapshot)).filter((number) => number < 3);
    expect(held).toEqual(what === "the stream" ? [1, 2] : []);
  });

  it("another consumer may have made again: of what was trimmed before, the group had got everything", async () => {
    await beginSessions(1, 2, 3, 4);
    await relay.trim(2);
    const updates = consumed({ after: "0-0" });
    await take(updates, 2);
    await relay.redis.xgroup("DESTROY", EVENTS, "group");
    await relay.redis.xgroup("CREATE", EVENTS, "group", "0");
    await beginSessions(5);
    expect(numbers(await take(updates, 3))).toEqual([3, 4, 5]);
  });

  it("does not include a batch in whose midst it is restarted", async () => {
    await beginSessions(1, 2, 3);
    const updates = consumed({ after: "0-0" });
    expect(numbers(await take(updates, 2))).toEqual([1, 2]);
    await server.restart();
    await beginSessions(4);
    expect(numbers(await take(updates, 2))).toEqual([3, 4]);
    expect(await pending(relay.redis)).toBe(1);
  });

  it("does not include a reply that got lost: Redis has given it to this consumer, which does not know", async () => {
    await beginSessions(1);
    const cursors: unknown[] = [];
    const access = watched(connected.client, (commands, send) => {
      cursors.push(...commands.filter(([name]) => name === "XREADGROUP").map((command) => command.at(-1)));
      return send(commands);
    });
    const updates = consumed({ feed: feedOf(access), after: "0-0" });
    await next(updates);
    const more = take(updates, 2);
    await expect.poll(blocked).toBe(1);
    const before = cursors.length;
    const [[, fields]] = (await relay.redis.xrange(EVENTS, "-", "+")) as [[string, string[]]];
    const done = (await relay.redis
      .multi() // no moment in between for the consumer to ask again
      .call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
      .xadd(EVENTS, "*", ...fields)
      .xadd(EVENTS, "*", ...fields)
      .xreadgroup("GROUP", "group", "name", "COUNT", 1, "STREAMS", EVENTS, ">")
      .exec()) as [unknown, unknown][];
    const [, [, second], [, third]] = done as [unknown, [null, string], [null, string]];
    expect((await more).map(({ cursor }) => cursor)).toEqual([second, third]);
    // It does not wait for others before it asks for what it has.
    expect(cursors[before]).toBe("0");
  });
});

/** A server that counts what a stream ever got; or not, as Redis 6.2. */
describe.each(["a server that counts", "a server as Redis 6.2"])("at %s, a group", (which) => {
  useClient(LIBRARIES[3] as Library);
  const counts = which === "a server that counts";

  /** `sent`: called before each command that a test is interested in. */
  const feed = (sent: (command: Command) => Promise<void> = async () => undefined): SessionFeed =>
    feedOf(
      watched(connected.client, async (commands, send) => {
        for (const command of commands) await sent(command);
        const responses = await send(commands);
        return responses.map((response, index) => {
          if (counts || `${commands[index]?.slice(0, 2)}` !== "XINFO,STREAM") return response;
          const flat = response as string[];
          return flat.filter((_, at) => flat[at - (at % 2)] !== "entries-added");
        });
      }),
    );

  /** A group that had got session 1, when 2 and 3 were trimmed; resolves to how far it was. */
  async function fallBehind(): Promise<string> {
    const [first] = await beginSessions(1);
    await relay.redis.xgroup("CREATE", EVENTS, "group", first);
    await beginSessions(2, 3, 4);
    await relay.trim(1);
    return first;
  }

  it("that fell behind what was trimmed is told so until it begins again", async () => {
    const cursor = await fallBehind();
    for (const name of ["name", "name", "other"]) {
      await expect(next(consumed({ feed: feed(), name }))).rejects.toMatchObject({ name: "CursorLostError", cursor });
    }
    const updates = consumed({ feed: feed(), resync: true });
    const held = await take(updates, 4);
    expect(sorted(held)).toEqual([1, 2, 3, 4]);
    expect(held.every(({ isSnapshot }) => isSnapshot)).toBe(true);
    await beginSessions(5);
    expect(numberOf(await next(updates))).toBe(5);
    await updates.return();
    expect(numberOf(await next(consumed({ feed: feed() })))).toBe(5);
  });

  it("of an empty stream is told what was trimmed while nobody was there", async () => {
    await relay.redis.xgroup("CREATE", EVENTS, "group", NOTHING, "MKSTREAM");
    await beginSessions(1, 2, 3);
    await relay.trim(2);
    for (let time = 0; time < 2; time++) {
      await expect(next(consumed({ feed: feed() }))).rejects.toMatchObject({ cursor: NOTHING });
    }
    expect(sorted(await take(consumed({ feed: feed(), resync: true }), 3))).toEqual([1, 2, 3]);
  });

  it("that is new, of an empty stream, gets what comes at once", async () => {
    let isMade = false;
    const updates = consumed({
      feed: feed(async (command) => {
        // The first command after XGROUP CREATE.
        if (isMade) {
          isMade = false;
          await beginSessions(1);
        } else if (command[1] === "CREATE") isMade = true;
      }),
    });
    const update = await next(updates);
    expect([update.isSnapshot, numberOf(update)]).toEqual([false, 1]);
  });

  it("leaves beginning again to the next consumer if one dies in the midst of it", async () => {
    await fallBehind();
    const updates = consumed({ feed: feed(), resync: true });
    await take(updates, 2);
    await updates.return();
    await expect(next(consumed({ feed: feed() }))).rejects.toBeInstanceOf(CursorLostError);
    expect(sorted(await take(consumed({ feed: feed(), name: "other", resync: true }), 4))).toEqual([1, 2, 3, 4]);
  });

  it("does not miss what is trimmed while it begins again", async () => {
    await fallBehind();
    const updates = consumed({ feed: feed(), resync: true });
    await take(updates, 4);
    for (const number of [1, 2]) await relay.apply({ id: `sess_${number}`, status: "ended" });
    await relay.trim(1);
    const ended = new Set<string>();
    while (ended.size < 2) {
      const { session } = await next(updates);
      if (session.status === "ended") ended.add(session.id);
    }
  });

  it("is told of what is trimmed just before it is read", async () => {
    const [first] = await beginSessions(1, 2, 3, 4);
    for (let time = 0; time < 2; time++) {
      const trims = feed(async ([name]) => void (name === "XREADGROUP" && (await relay.trim(1))));
      await expect(next(consumed({ feed: trims, after: first }))).rejects.toMatchObject({ cursor: first });
    }
  });

  it("is told of it although another consumer moves the group on before this one looks again", async () => {
    const [first] = await beginSessions(1, 2, 3, 4);
    let isBack = false;
    const moves = feed(async ([name, subcommand]) => {
      if (name === "XREADGROUP") await relay.trim(1);
      if (isBack && subcommand === "GROUPS") {
        await relay.redis.xreadgroup("GROUP", "group", "other", "STREAMS", EVENTS, ">");
      }
      isBack ||= subcommand === "SETID";
    });
    await expect(next(consumed({ feed: moves, after: first }))).rejects.toMatchObject({ cursor: first });
    expect(isBack).toBe(true);
  });

  it.each(["the same", "another"])(
    "tells %s consumer of what was trimmed before anybody was done with it",
    async (name) => {
      const [, second] = await beginSessions(1, 2, 3, 4);
      const first = consumed({ feed: feed(), name: "the same", after: "0-0" });
      await take(first, 2);
      await first.return();
      await relay.trim(1);
      for (let time = 0; time < 2; time++) {
        const updates = consumed({ feed: feed(), name, claimAfter: 50 });
        await expect(next(updates)).rejects.toMatchObject({ name: "CursorLostError", cursor: second });
      }
      const updates = consumed({ feed: feed(), name, resync: true, claimAfter: 50 });
      const missing = new Set(["4", "1*", "2*", "3*", "4*"]);
      const seen = (update: SessionUpdate): boolean =>
        missing.delete(`${numberOf(update)}${update.isSnapshot ? "*" : ""}`);
      while (missing.size) seen(await next(updates));
      await beginSessions(5);
      while (numberOf(await next(updates)) !== 5);
      void updates.next();
      await acknowledged();
    },
  );

  it("has what was trimmed given up before it is taken over, as that makes Redis forget it", async () => {
    await beginSessions(1, 2, 3);
    const first = consumed({ feed: feed(), name: "first", after: "0-0" });
    await take(first, 2);
    await first.return();
    await relay.trim(1);
    const sent: string[] = [];
    const noting = feed(async ([name]) => void sent.push(name));
    await expect(next(consumed({ feed: noting, name: "other", claimAfter: 50 }))).rejects.toBeInstanceOf(
      CursorLostError,
    );
    expect(sent).toContain("XPENDING");
    expect(sent).not.toContain("XAUTOCLAIM");
  });

  it("is told of what is trimmed in the moment in which it is taken over", async () => {
    const [, second] = await beginSessions(1, 2, 3);
    const first = consumed({ feed: feed(), name: "first", after: "0-0" });
    await take(first, 2);
    await first.return();
    const trims = feed(async ([name]) => void (name === "XAUTOCLAIM" && (await relay.trim(1))));
    const updates = consumed({ feed: trims, name: "other", claimAfter: 50 });
    await expect(next(updates)).rejects.toMatchObject({ name: "CursorLostError", cursor: second });
  });

  it("stays as far back as another consumer has moved it", async () => {
    const [first] = await beginSessions(1, 2, 3, 4);
    const updates = consumed({ feed: feed(), after: "0-0" });
    await take(updates, 3);
    await updates.return();
    const moves = feed(async ([name]) => {
      if (name !== "XREADGROUP") return;
      await relay.redis.multi().xtrim(EVENTS, "MAXLEN", 1).xgroup("SETID", EVENTS, "group", first).exec();
    });
    await expect(next(consumed({ feed: moves }))).rejects.toMatchObject({ name: "CursorLostError", cursor: first });
  });

  /** A reply gets lost that had the last of two entries; the one in front of it was trimmed before. */
  async function loseReply(): Promise<void> {
    const [[, fields]] = (await relay.redis.xrange(EVENTS, "-", "+")) as [[string, string[]]];
    await relay.redis
      .multi()
      .call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
      .xadd(EVENTS, "*", ...fields)
      .xadd(EVENTS, "*", ...fields)
      .xtrim(EVENTS, "MAXLEN", 1)
      .xreadgroup("GROUP", "group", "name", "COUNT", 1, "STREAMS", EVENTS, ">")
      .exec();
  }

  it("is told of what was trimmed in front of what was in a reply that got lost", async () => {
    const [first] = await beginSessions(1);
    const updates = consumed({ feed: feed(), after: "0-0" });
    await next(updates);
    const more = next(updates);
    await acknowledged();
    await expect.poll(blocked).toBe(1);
    await loseReply();
    await expect(more).rejects.toMatchObject({ name: "CursorLostError", cursor: first });
  });

  it("begins again once after such a reply", async () => {
    await beginSessions(1);
    const updates = consumed({ feed: feed(), after: "0-0", resync: true });
    await next(updates);
    const more = take(updates, 2);
    await acknowledged();
    await expect.poll(blocked).toBe(1);
    await loseReply();
    expect((await more).map(({ isSnapshot }) => isSnapshot)).toEqual([true, false]);
    await beginSessions(2);
    expect(numberOf(await next(updates))).toBe(2);
  });

  it("leaves what was trimmed to the next consumer if one dies over it", async () => {
    await beginSessions(1, 2, 3);
    const first = consumed({ feed: feed(), name: "first", after: "0-0" });
    await take(first, 2);
    await first.return();
    await relay.trim(1);
    const second = consumed({ feed: feed(), name: "second", resync: true, claimAfter: 50 });
    while (!(await next(second)).isSnapshot);
    await second.return();
    const third = consumed({ feed: feed(), name: "third", resync: true, claimAfter: 50 });
    const snapshots = new Set<number>();
    while (snapshots.size < 3) {
      const update = await next(third);
      if (update.isSnapshot) snapshots.add(numberOf(update));
    }
    expect(snapshots).toEqual(new Set([1, 2, 3]));
  });

  it("that got everything before it was trimmed misses nothing", async () => {
    await beginSessions(1, 2, 3);
    const updates = consumed({ feed: feed(), after: "0-0" });
    await take(updates, 3);
    const more = next(updates);
    await acknowledged();
    await relay.trim(1);
    await beginSessions(4);
    expect(numberOf(await more)).toBe(4);
  });

  it("gets snapshots once, although what its consumer had was trimmed", async () => {
    await beginSessions(1, 2, 3);
    const first = consumed({ feed: feed(), after: "0-0" });
    await take(first, 2);
    await first.return();
    await beginSessions(4, 5, 6);
    await relay.trim(1);
    await expect(next(consumed({ feed: feed() }))).rejects.toBeInstanceOf(CursorLostError);
    const updates = consumed({ feed: feed(), resync: true });
    const held = await take(updates, 6);
    const more = next(updates);
    await acknowledged();
    await beginSessions(7);
    expect(sorted(held)).toEqual([1, 2, 3, 4, 5, 6]);
    expect(held.every(({ isSnapshot }) => isSnapshot)).toBe(true);
    const news = await more;
    expect([numberOf(news), news.isSnapshot]).toEqual([7, false]);
  });

  it("tells who waits of what another found trimmed before it died", async () => {
    // The dead one has moved the group back, and nothing but that tells of it.
    const [first] = await beginSessions(1, 2, 3);
    const updates = consumed({ feed: feed(), name: "waits", after: "0-0", claimAfter: 1000 });
    await take(updates, 3);
    const more = next(updates);
    await acknowledged();
    await expect.poll(blocked).toBe(1);
    await relay.redis.multi().xtrim(EVENTS, "MAXLEN", 1).xgroup("SETID", EVENTS, "group", first).exec();
    await expect(more).rejects.toBeInstanceOf(CursorLostError);
    expect(sorted(await take(consumed({ feed: feed(), name: "waits", resync: true }), 3))).toEqual([1, 2, 3]);
  });
});

describe("consumers that nobody uses", () => {
  useClient(LIBRARIES[3] as Library);

  /** A consumer for which others count as unused after 100 ms, and which looks for them as often. */
  function staying(claimAfter: number, sent: (command: Command) => Promise<void> = async () => undefined): Updates {
    const access = watched(connected.client, async (commands, send) => {
      for (const command of commands) await sent(command);
      return send(commands);
    });
    const connection = access.follower(EVENTS, { onReconnect });
    const partition = new Partition(0, keysOf("{clerk}"));
    const group = { name: "group", consumer: "stays", claimAfter, unusedAfter: 100, lookEvery: 100 };
    const updates = consume(connection, [partition], group, { stale: false, resync: false });
    feeds.push(connection);
    return updates;
  }

  /** Goes on with an iterator that a test has nothing more to take from. */
  const goOn = (updates: Updates): void => void updates.next().catch(() => undefined);

  const idle = async (name: string): Promise<number> => {
    const found = (await relay.redis.xinfo("CONSUMERS", EVENTS, "group")) as unknown[][];
    const fields = found.find(([, each]) => each === name) as unknown[];
    return fields[fields.indexOf("idle") + 1] as number;
  };

  it("leave the group", async () => {
    const [first] = await beginSessions(1);
    await relay.redis.xgroup("CREATE", EVENTS, "group", first);
    for (const name of ["one", "other"]) await relay.redis.xgroup("CREATECONSUMER", EVENTS, "group", name);
    goOn(staying(10));
    await expect.poll(() => consumers(relay.redis)).toEqual(["stays"]);
  });

  it("leave once their work is done", async () => {
    await beginSessions(1, 2);
    const gone = consumed({ name: "gone", after: "0-0" });
    await next(gone);
    await gone.return();
    const updates = staying(10);
    expect(numbers(await take(updates, 2))).toEqual([1, 2]);
    const more = next(updates);
    await expect.poll(() => consumers(relay.redis)).toEqual(["stays"]);
    await beginSessions(3);
    expect(numberOf(await more)).toBe(3);
  });

  it("stay if they were silent for less than ten times claimAfter", async () => {
    await beginSessions(1);
    await relay.redis.xgroup("CREATE", EVENTS, "group", "0");
    await relay.redis.xgroup("CREATECONSUMER", EVENTS, "group", "silent");
    await expect.poll(() => idle("silent")).toBeGreaterThan(100);
    let looks = 0;
    const updates = staying(60_000, async (command) => void (looks += Number(command[1] === "CONSUMERS")));
    await next(updates);
    goOn(updates);
    await expect.poll(() => looks).toBe(1);
    await expect.poll(blocked).toBe(1);
    expect(await consumers(relay.redis)).toEqual(["silent", "stays"]);
  });

  it("do not include one that only waits, as it reads what it has, which shows that it lives", async () => {
    await beginSessions(1);
    await relay.redis.xgroup("CREATE", EVENTS, "group", "0");
    const sent: Command[] = [];
    const updates = staying(60_000, async (command) => void sent.push(command));
    await next(updates);
    goOn(updates);
    const looksAt = (): number => sent.findIndex((command) => command[1] === "CONSUMERS");
    await expect.poll(looksAt).toBeGreaterThan(0);
    const reads = (): Command[] => sent.slice(looksAt()).filter(([name]) => name === "XREADGROUP");
    await expect.poll(() => reads().length).toBeGreaterThanOrEqual(2);
    expect(
      reads()
        .map((command) => command.at(-1))
        .slice(0, 2),
    ).toEqual(["0", ">"]);
  });

  it("lose nothing if they wake in the moment of their removal", async () => {
    const [first] = await beginSessions(1);
    await relay.redis.xgroup("CREATE", EVENTS, "group", first);
    await relay.redis.xgroup("CREATECONSUMER", EVENTS, "group", "silent");
    await expect.poll(() => idle("silent")).toBeGreaterThan(1000);
    let woken = false;
    // It gets entries between the look and the removal, which drops them, and dies before it is done with them.
    const wake = async (command: Command): Promise<void> => {
      if (command[1] !== "DELCONSUMER" || woken) return;
      woken = true;
      await beginSessions(2, 3);
      await relay.redis.xreadgroup("GROUP", "group", "silent", "STREAMS", EVENTS, ">");
    };
    expect(numbers(await take(staying(100, wake), 2))).toEqual([2, 3]);
    expect(woken).toBe(true);
    expect(await consumers(relay.redis)).toEqual(["stays"]);
  });

  it("stay where the user of Redis may not remove them, and who may not consumes all the same", async () => {
    await beginSessions(1);
    const rights = ["on", ">secret", "~*", "&*", "+@all", "-xgroup", "+xgroup|create", "-xinfo", "+xinfo|stream"];
    await relay.redis.call("ACL", "SETUSER", "reader", "reset", ...rights, "+xinfo|groups");
    const other = await (LIBRARIES[3] as Library).server(server.port, { username: "reader", password: "secret" });
    const sent: unknown[] = [];
    const count = (what: string): number => sent.filter((each) => each === what).length;
    const access = watched(other.client, (commands, send) => {
      sent.push(...commands.flatMap(([name, subcommand]) => [name, subcommand]));
      return send(commands);
    });
    const updates = consumed({ feed: feedOf(access), after: "0-0", claimAfter: 20 });
    await next(updates);
    const more = next(updates);
    await expect.poll(() => count("CONSUMERS")).toBe(1);
    const reads = count("XREADGROUP");
    await expect.poll(() => count("XREADGROUP")).toBeGreaterThan(reads + 4);
    expect(count("CONSUMERS")).toBe(1);
    await beginSessions(2);
    expect(numberOf(await more)).toBe(2);
    await other.close();
  });
});

describe("where XREADGROUP does not wait, a consumer", () => {
  useClient(LIBRARIES[3] as Library);

  it("waits with XREAD", async () => {
    const sent: string[] = [];
    const access = watched(connected.client, (commands, send) => {
      sent.push(...commands.map(([name]) => name));
      const waitsNot = (command: Command): Command => {
        const at = command.indexOf("BLOCK");
        return command[0] === "XREADGROUP" ? (command.toSpliced(at, 2) as unknown as Command) : command;
      };
      return send(commands.map(waitsNot));
    });
    const more = next(consumed({ feed: feedOf(access), after: "0-0" }));
    await expect.poll(blocked).toBe(1);
    const asked = sent.filter((name) => name === "XREADGROUP").length;
    await beginSessions(1);
    expect(numberOf(await more)).toBe(1);
    expect(sent.filter((name) => name === "XREADGROUP").length - asked).toBeLessThanOrEqual(4);
  });
});
