// A feed over each client library, at a real redis-server.
import { describe, expect, it } from "vitest";
import { CursorLostError, FeedClosedError, PartitionsError, SessionFeed } from "../src/index.js";
import type { Reply } from "../src/connection.js";
import { LIBRARIES } from "./support/clients.js";
import { watched } from "./support/groups.js";
import { Relay } from "./support/relay.js";
import { connected, feedOf, feeds, relay, server, useClient, useRelay } from "./support/relayed.js";
import { Collector, briefly, take } from "./support/updates.js";

useRelay();

describe.each(LIBRARIES)("$name", (library) => {
  useClient(library);

  describe("short reads", () => {
    it("tell whether a session is live, over or not known", async () => {
      await relay.apply({ id: "sess_live" });
      await relay.apply({ id: "sess_over", status: "ended" });
      await relay.apply({ id: "sess_past", expireAt: Date.now() - 1 });
      const feed = feedOf();
      const asked = ["sess_live", "sess_over", "sess_past", "sess_none", "no id: { }"];
      expect(await Promise.all(asked.map((id) => feed.status(id)))).toEqual([
        "live",
        "ended",
        "ended",
        "unknown",
        "unknown",
      ]);
      expect(await feed.isLive("sess_live", "user_1")).toBe(true);
    });

    it("return a state, a user's live sessions, and the history of one", async () => {
      await relay.apply({ id: "sess_1" });
      const cursor = await relay.apply({ id: "sess_1", status: "ended" });
      await relay.apply({ id: "sess_2" });
      const feed = feedOf();
      const update = await feed.get("sess_1");
      expect(update).toMatchObject({
        cursor,
        revision: 2,
        previousStatus: "active",
        outcome: "applied",
        isLive: false,
      });
      expect(await feed.get("sess_3")).toBeNull();
      expect(briefly(await feed.liveSessions("user_1"))).toEqual(["sess_2 active 1"]);
      expect(briefly(await feed.history("sess_1"))).toEqual(["sess_1 active 1", "sess_1 ended 2"]);
      expect(await feed.now()).toEqual({ 0: (await feed.get("sess_2"))?.cursor });
    });

    it("are asked again when the client's connection was dead", async () => {
      await relay.apply({ id: "sess_1" });
      const feed = feedOf();
      expect(await feed.isLive("sess_1")).toBe(true);
      await relay.redis.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes");
      expect(await feed.isLive("sess_1")).toBe(true);
    });

    it("fail after `timeout` while Redis does not respond", async () => {
      const feed = feedOf(connected.client, { timeout: 200 });
      await feed.status("sess_1");
      process.kill(server.pid, "SIGSTOP");
      try {
        await expect(feed.status("sess_1")).rejects.toThrow("Redis did not respond within 200 ms");
      } finally {
        process.kill(server.pid, "SIGCONT");
      }
    });

    it("fail once the feed is closed, and the client stays open", async () => {
      const feed = feedOf();
      await feed.close();
      await expect(feed.status("sess_1")).rejects.toBeInstanceOf(FeedClosedError);
      expect(await feedOf().status("sess_1")).toBe("unknown");
    });

    it("pass an error of Redis on", async () => {
      await relay.redis.set("{clerk}:session:sess_1", "no hash");
      await expect(feedOf().status("sess_1")).rejects.toThrow("WRONGTYPE");
    });
  });

  describe("follow", () => {
    it("yields every state, then every change in the order of the stream", async () => {
      await relay.apply({ id: "sess_1" });
      await relay.apply({ id: "sess_1", status: "ended" });
      const updates = feedOf().follow();
      expect(briefly(await take(updates, 1))).toEqual(["sess_1 ended 2*"]);
      await relay.apply({ id: "sess_2" });
      await relay.apply({ id: "sess_2", outcome: "stale" });
      await relay.apply({ id: "sess_2", status: "revoked" });
      expect(briefly(await take(updates, 2))).toEqual(["sess_2 active 1", "sess_2 revoked 2"]);
      await updates.return();
    });

    it("begins behind a cursor, and yields stale events if it is told to", async () => {
      const first = await relay.apply({ id: "sess_1" });
      const second = await relay.apply({ id: "sess_1", outcome: "stale" });
      const third = await relay.apply({ id: "sess_1", status: "ended" });
      const updates = await take(feedOf().follow({ after: first, stale: true }), 2);
      expect(updates.map(({ cursor, outcome, revision, position }) => [cursor, outcome, revision, position])).toEqual([
        [second, "stale", null, second],
        [third, "applied", 2, third],
      ]);
      expect(JSON.parse(updates[1]?.json ?? "")).toMatchObject({ cursor: third });
    });

    it("reads a thousand sessions and events without a gap", async () => {
      for (let number = 0; number < 1000; number++) await relay.apply({ id: `sess_${number}` });
      const collector = new Collector(feedOf().follow());
      await collector.has(1000);
      for (let number = 0; number < 1000; number++) await relay.apply({ id: `sess_${number}`, status: "ended" });
      await collector.has(2000);
      expect(new Set(briefly(collector.updates)).size).toBe(2000);
    });

    it("survives restarts of Redis, and sees each revision once and in order", async () => {
      const reconnects: string[] = [];
      const collector = new Collector(feedOf().follow({ onReconnect: ({ message }) => reconnects.push(message) }));
      for (let number = 1; number <= 10; number++) {
        await relay.apply({ id: "sess_1" });
        if (number % 2) await server.restart();
        await collector.has(number);
      }
      expect(briefly(collector.updates)).toEqual([
        "sess_1 active 1*",
        ...Array.from({ length: 9 }, (_, n) => `sess_1 active ${n + 2}`),
      ]);
      expect(reconnects.length).toBeGreaterThan(0);
    });

    it("throws a CursorLostError when the stream was trimmed past it", async () => {
      const lost = await relay.apply({ id: "sess_1" });
      await relay.apply({ id: "sess_2" });
      await relay.apply({ id: "sess_3" });
      await relay.trim(1);
      const error = await new Collector(feedOf().follow({ after: lost })).done;
      expect(error).toBeInstanceOf(CursorLostError);
      expect(error).toMatchObject({ cursor: lost, partition: 0 });
    });

    it.each(["as this server", "as Redis 6.2"])("%s, is told that a stream was emptied behind it", async (as) => {
      const first = await relay.apply({ id: "sess_1" });
      await relay.trim(0);
      const access = watched(connected.client, async (commands, send) => {
        const responses = await send(commands);
        if (as === "as this server") return responses;
        return responses.map((response, index) => {
          if (commands[index]?.[1] !== "STREAM") return response;
          const flat = response as Reply[];
          return flat.filter((_, at) => flat[at - (at % 2)] !== "entries-added"); // that version does not count
        });
      });
      const feed = new SessionFeed(access);
      feeds.push(feed);
      const collector = new Collector(feed.follow({ after: String(Number(first.split("-")[0]) - 1) }));
      await Promise.race([collector.done, waitsForNews()]);
      await relay.apply({ id: "sess_2" });
      expect(await collector.done).toBeInstanceOf(CursorLostError);
    });

    it("begins again with the snapshots if it is told to", async () => {
      const lost = await relay.apply({ id: "sess_1" });
      await relay.apply({ id: "sess_2" });
      await relay.apply({ id: "sess_2", status: "ended" });
      await relay.trim(1);
      const updates = await take(feedOf().follow({ after: lost, resync: true }), 2);
      expect(briefly(updates).sort()).toEqual(["sess_1 active 1*", "sess_2 ended 2*"]);
    });

    it("ends quietly when its signal is aborted while it waits", async () => {
      const controller = new AbortController();
      const collector = new Collector(feedOf().follow({ signal: controller.signal }));
      await waitsForNews();
      controller.abort();
      expect(await collector.done).toBeUndefined();
      await expect.poll(blocked).toBe(0);
    });

    it("ends quietly when the feed is closed, and closes its connection when it is left", async () => {
      const feed = feedOf();
      const collector = new Collector(feed.follow());
      await waitsForNews();
      await feed.close();
      expect(await collector.done).toBeUndefined();
      expect(() => feed.follow()).toThrow(FeedClosedError);
      await relay.apply({ id: "sess_1" });
      for await (const _ of feedOf().follow()) break;
      await expect.poll(async () => (await connections()).length).toBeLessThanOrEqual(2);
    });

    it("waits for a server that accepts connections, but does not respond", async () => {
      const reconnects: string[] = [];
      process.kill(server.pid, "SIGSTOP");
      const updates = feedOf(connected.client, { timeout: 300 }).follow({
        onReconnect: ({ message }) => reconnects.push(message),
      });
      const next = updates.next();
      try {
        await expect.poll(() => reconnects.length, { timeout: 20_000 }).toBeGreaterThan(0);
      } finally {
        process.kill(server.pid, "SIGCONT");
      }
      await relay.apply({ id: "sess_1" });
      expect((await next).value).toMatchObject({ session: { id: "sess_1" } });
      await updates.return();
    });

    it("ends at once while it connects, and leaves no connection behind", async () => {
      await feedOf().status("sess_1"); // the client itself is connected
      const before = (await connections()).length;
      process.kill(server.pid, "SIGSTOP");
      const collectors = Array.from({ length: 3 }, () => new Collector(feedOf().follow()));
      await new Promise((resolve) => setImmediate(resolve));
      for (const feed of feeds) await feed.close();
      try {
        for (const { done } of collectors) expect(await done).toBeUndefined();
      } finally {
        process.kill(server.pid, "SIGCONT");
      }
      await expect.poll(async () => (await connections()).length).toBe(before);
    });

    it("throws what another attempt can't help", async () => {
      await relay.redis.set("{clerk}:events", "no stream");
      const error = await new Collector(feedOf().follow()).done;
      expect(String(error)).toContain("WRONGTYPE");
    });

    it("waits while Redis has too many clients", async () => {
      await relay.apply({ id: "sess_1" });
      const feed = feedOf();
      await feed.status("sess_1");
      await relay.redis.config("SET", "maxclients", "1");
      const reconnects: string[] = [];
      try {
        const collector = new Collector(feed.follow({ onReconnect: ({ message }) => reconnects.push(message) }));
        await expect.poll(() => reconnects.length).toBeGreaterThan(0);
        await relay.redis.config("SET", "maxclients", "1000");
        await collector.has(1);
      } finally {
        await relay.redis.config("SET", "maxclients", "1000");
      }
      expect(reconnects.join()).toContain("max number of clients reached");
    });

    it("needs no rights but to read, and throws when one is missing", async () => {
      await relay.apply({ id: "sess_1" });
      const rights = ["~{clerk}:*", "+@read", "+xinfo", "+scan", "-@dangerous", "on", ">secret"];
      await relay.redis.call("ACL", "SETUSER", "reader", "reset", ...rights);
      await relay.redis.call("ACL", "SETUSER", "nobody", "reset", ...rights, "-xinfo");
      const secret = (username: string): object => ({ username, password: "secret", enableReadyCheck: false });
      for (const username of ["reader", "nobody"]) {
        const other = await library.server(server.port, secret(username));
        const collector = new Collector(feedOf(other.client).follow());
        if (username === "reader") expect(briefly(await collector.has(1))).toEqual(["sess_1 active 1*"]);
        else expect(String(await collector.done)).toContain("NOPERM");
        await feeds.pop()?.close();
        await other.close();
      }
    });

    it("throws when the password is wrong", async () => {
      await relay.redis.call("ACL", "SETUSER", "locked", "reset", "on", ">secret", "~*", "+@all");
      const other = await library.server(server.port, { username: "locked", password: "secret" });
      await relay.redis.call("ACL", "SETUSER", "locked", "resetpass", ">another");
      const error = await new Collector(feedOf(other.client).follow()).done;
      expect(String(error)).toContain("WRONGPASS");
      await other.close();
    });
  });

  describe("subscribe", () => {
    it("yields what is published, for all users or for one", async () => {
      const all = new Collector(feedOf().subscribe());
      const one = new Collector(feedOf().subscribe({ userId: "user_2" }));
      await expect.poll(subscribed).toEqual({ "clerk:sessions": 1, "clerk:sessions:user:user_2": 1 });
      await relay.apply({ id: "sess_1" });
      await relay.apply({ id: "sess_2", userId: "user_2" });
      expect(briefly(await all.has(2))).toEqual(["sess_1 active 1", "sess_2 active 1"]);
      expect(briefly(await one.has(1))).toEqual(["sess_2 active 1"]);
    });

    it("subscribes again after a cut, and ends with its signal", async () => {
      const controller = new AbortController();
      const reconnects: Error[] = [];
      const { signal } = controller;
      const all = new Collector(feedOf().subscribe({ signal, onReconnect: (error) => reconnects.push(error) }));
      await expect.poll(subscribed).toMatchObject({ "clerk:sessions": 1 });
      await relay.redis.call("CLIENT", "KILL", "TYPE", "pubsub");
      await expect.poll(() => reconnects.length).toBe(1);
      await expect.poll(subscribed).toMatchObject({ "clerk:sessions": 1 });
      await relay.apply({ id: "sess_1" });
      await all.has(1);
      controller.abort();
      expect(await all.done).toBeUndefined();
    });
  });

  describe("partitions", () => {
    it("are followed together, each with its cursor", async () => {
      const parted = new Relay(server.port, 4);
      const ids = Array.from({ length: 8 }, (_, number) => `sess_${number}`);
      for (const id of ids) await parted.apply({ id, userId: `user_${id}` });
      const feed = feedOf(connected.client, { partitions: 4 });
      expect((await take(feed.follow(), 8)).map(({ session }) => session.id).sort()).toEqual(ids);
      const after = await feed.now();
      for (const id of ids) await parted.apply({ id, userId: `user_${id}`, status: "ended" });
      const updates = await take(feed.follow({ after }), 8);
      expect(updates.map(({ session }) => session.id).sort()).toEqual(ids);
      expect(new Set(updates.map(({ partition }) => partition)).size).toBeGreaterThan(1);
      expect(await feed.status("sess_1")).toBe("ended");
      expect(await feed.status("sess_1", "user_sess_1")).toBe("ended");
      parted.close();
    });

    it("of another number are an error that says what to do", async () => {
      await relay.mark("8");
      await expect(feedOf().status("sess_1")).rejects.toThrow("set partitions: 8");
      expect(await new Collector(feedOf(connected.client, { partitions: 4 }).follow()).done).toBeInstanceOf(
        PartitionsError,
      );
    });

    it("that are being moved are waited for", async () => {
      await relay.mark("1>8@1795422761000");
      const reconnects: string[] = [];
      const updates = feedOf(connected.client, { partitions: 8 }).follow({
        onReconnect: ({ message }) => reconnects.push(message),
      });
      const next = updates.next();
      await expect.poll(() => reconnects.join()).toContain("moved from 1 partitions to 8");
      await relay.mark("8");
      const parted = new Relay(server.port, 8);
      await parted.apply({ id: "sess_1" });
      expect((await next).value).toMatchObject({ session: { id: "sess_1" } });
      parted.close();
      await updates.return();
    });
  });

  async function connections(): Promise<string[]> {
    const list = (await relay.redis.client("LIST")) as string;
    return list.trim().split("\n");
  }

  async function blocked(): Promise<number> {
    return (await connections()).filter((line) => /flags=\w*b/.test(line)).length;
  }

  async function waitsForNews(): Promise<void> {
    await expect.poll(blocked).toBe(1);
  }

  async function subscribed(): Promise<Record<string, number>> {
    const names = (await relay.redis.pubsub("CHANNELS", "*")) as string[];
    const counts = (await relay.redis.pubsub("NUMSUB", ...names)) as (string | number)[];
    return Object.fromEntries(names.map((name, index) => [name, counts[2 * index + 1] as number]));
  }
});
