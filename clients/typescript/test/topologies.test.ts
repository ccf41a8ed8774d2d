// Sentinel and Cluster, with a failover, over each client library at the same time.
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { SessionFeed, type Mirror } from "../src/index.js";
import { LIBRARIES, type Connected } from "./support/clients.js";
import { told } from "./support/mirrors.js";
import { Relay } from "./support/relay.js";
import { ClusterServers, Watched } from "./support/topologies.js";
import { Collector, briefly } from "./support/updates.js";

interface Seen {
  readonly client: Connected;
  readonly feed: SessionFeed;
  readonly follower: Collector;
  readonly subscriber: Collector;
  readonly mirror: Mirror;
  readonly reconnects: string[];
  statusAfter?: string;
}

const begin = (client: Connected): Seen => {
  const feed = new SessionFeed(client.client);
  const reconnects: string[] = [];
  const onReconnect = ({ message }: Error): number => reconnects.push(message);
  const follower = new Collector(feed.follow({ onReconnect }));
  const subscriber = new Collector(feed.subscribe({ onReconnect: () => undefined }));
  const mirror = feed.mirror({ onReconnect: () => undefined });
  return { client, feed, follower, subscriber, reconnects, mirror };
};

const WHAT_FOLLOWERS_SEE = ["sess_1 active 1*", "sess_1 active 2", "sess_1 ended 3"];

describe.each([
  {
    topology: "a primary that a sentinel watches",
    async start() {
      const servers = await Watched.start();
      return { servers, ports: [servers.sentinel.port], before: servers.primary.port, after: servers.replica.port };
    },
    open: (library: (typeof LIBRARIES)[number], ports: number[]) => library.sentinel(ports, "main"),
  },
  {
    topology: "a cluster",
    async start() {
      const servers = await ClusterServers.start("{clerk}:events");
      return { servers, ports: servers.ports, before: servers.owner.port, after: servers.replica.port };
    },
    open: (library: (typeof LIBRARIES)[number], ports: number[]) => library.cluster(ports),
  },
])("$topology", ({ start, open }) => {
  const seen = new Map<string, Seen>();
  let stop: (() => Promise<void>) | undefined;

  beforeAll(async () => {
    const { servers, ports, before, after } = await start();
    stop = () => servers.stop();
    const relay = new Relay(before);
    await relay.apply({ id: "sess_1" });
    for (const library of LIBRARIES) seen.set(library.name, begin(await open(library, ports)));
    for (const { follower, mirror } of seen.values()) {
      await follower.has(1);
      await mirror.ready();
      expect(mirror.status("sess_1")).toBe("live");
    }
    await relay.apply({ id: "sess_1" });
    for (const { follower } of seen.values()) await follower.has(2);
    expect(await relay.redis.wait(1, 10_000)).toBe(1);
    relay.close();
    await servers.failOver();
    const other = new Relay(after);
    other.revisions.set("sess_1", 2);
    await other.apply({ id: "sess_1", status: "ended" });
    for (const [name, each] of seen) {
      await each.follower.has(3);
      const ask = async (): Promise<string> => (each.statusAfter = await each.feed.status("sess_1").catch(String));
      await vi.waitFor(async () => expect(`${name} ${await ask()}`).toBe(`${name} ended`), { timeout: 30_000 });
      await vi.waitFor(() => expect(`${name} ${told(each.mirror, "sess_1")}`).toBe(`${name} ended`), {
        timeout: 30_000,
      });
    }
    // A subscriber may connect after the first message.
    for (let number = 1; [...seen.values()].some(({ subscriber }) => !ofTheNew(subscriber)); number++) {
      await other.apply({ id: `sess_new_${number}` });
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    other.close();
  }, 120_000);

  afterAll(async () => {
    for (const { feed, client } of seen.values()) {
      await feed.close();
      await client.close();
    }
    await stop?.();
  });

  const ofTheNew = ({ updates }: Collector): boolean =>
    updates.some(({ session }) => session.id.startsWith("sess_new"));

  describe.each(LIBRARIES)("with $name", ({ name }) => {
    it("is followed through a failover without a gap", () => {
      const { follower, reconnects } = seen.get(name) as Seen;
      expect(briefly(follower.updates).slice(0, 3)).toEqual(WHAT_FOLLOWERS_SEE);
      expect(follower.error).toBeUndefined();
      expect(reconnects.length).toBeGreaterThan(0);
    });

    it("is mirrored through it", () => {
      expect(told((seen.get(name) as Seen).mirror, "sess_1")).toBe("ended");
    });

    it("is asked where the data is now", () => {
      expect((seen.get(name) as Seen).statusAfter).toBe("ended");
    });

    it("is subscribed to again", () => {
      expect(ofTheNew((seen.get(name) as Seen).subscriber)).toBe(true);
    });
  });
});
