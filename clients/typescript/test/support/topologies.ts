// Several Redis servers: a primary that a sentinel watches, and a cluster.
import { Redis } from "ioredis6";
import { expect, vi } from "vitest";
import { RedisServer } from "./redis.js";

/** Waits until something is as expected: `expect.poll`, which only works in a test. */
const eventually = (check: () => Promise<unknown>, is: (value: unknown) => void): Promise<void> =>
  vi.waitFor(async () => is(await check()), { timeout: 30_000, interval: 20 });

/** Waits until a text has a part. */
const contains = (ask: () => Promise<string>, part: string): Promise<void> =>
  eventually(ask, (text) => expect(text).toContain(part));

const connect = (port: number): Redis => {
  const redis = new Redis({ host: "127.0.0.1", port, maxRetriesPerRequest: null });
  redis.on("error", () => undefined);
  return redis;
};

/** A primary, a replica, and a sentinel that calls the primary `main`. */
export class Watched {
  private constructor(
    readonly primary: RedisServer,
    readonly replica: RedisServer,
    readonly sentinel: RedisServer,
  ) {}

  static async start(): Promise<Watched> {
    const primary = await RedisServer.start();
    const replica = await RedisServer.start(
      "--replicaof",
      "127.0.0.1",
      `${primary.port}`,
      "--repl-diskless-sync-delay",
      "0",
    );
    const monitor = `sentinel monitor main 127.0.0.1 ${primary.port} 1\n`;
    const limits = "sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 3000\n";
    const sentinel = await RedisServer.startSentinel(monitor + limits);
    const asked = connect(sentinel.port);
    const replicas = (): Promise<unknown> => asked.call("SENTINEL", "replicas", "main");
    await eventually(replicas, (found) => expect(found).toHaveLength(1));
    const copied = connect(replica.port);
    await contains(() => copied.info("replication") as Promise<string>, "master_link_status:up");
    asked.disconnect();
    copied.disconnect();
    return new Watched(primary, replica, sentinel);
  }

  /** Kills the primary, and waits until the sentinel has made the replica the primary. */
  async failOver(): Promise<void> {
    await this.primary.kill();
    const asked = connect(this.replica.port);
    await contains(() => asked.info("replication") as Promise<string>, "role:master");
    asked.disconnect();
  }

  async stop(): Promise<void> {
    for (const server of [this.sentinel, this.primary, this.replica]) await server.stop();
  }
}

/** A cluster of three primaries, and one replica of the node that holds the key. */
export class ClusterServers {
  private constructor(
    readonly nodes: readonly RedisServer[],
    readonly owner: RedisServer,
    readonly replica: RedisServer,
  ) {}

  get ports(): number[] {
    return this.nodes.map(({ port }) => port);
  }

  static async start(key: string): Promise<ClusterServers> {
    const options = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--repl-diskless-sync-delay", "0"];
    const nodes = await Promise.all(Array.from({ length: 4 }, () => RedisServer.start(...options)));
    const clients = nodes.map(({ port }) => connect(port));
    const [first, , , last] = clients as [Redis, Redis, Redis, Redis];
    const bounds = [0, 5461, 10923, 16384];
    for (const [index, client] of clients.entries()) {
      // Not ADDSLOTSRANGE, which Redis 6.2 does not have.
      const [from = 0, to = from] = bounds.slice(index, index + 2);
      const slots = Array.from({ length: to - from }, (_, number) => from + number);
      if (slots.length) await client.call("CLUSTER", "ADDSLOTS", ...slots);
      await client.call("CLUSTER", "SET-CONFIG-EPOCH", index + 1);
      if (index) await client.call("CLUSTER", "MEET", "127.0.0.1", nodes[0]?.port as number);
    }
    for (const client of clients)
      await contains(() => client.cluster("INFO") as Promise<string>, "cluster_known_nodes:4");
    const slot = await first.cluster("KEYSLOT", key);
    const owner = bounds.findIndex((bound) => slot < bound) - 1;
    await last.call("CLUSTER", "REPLICATE", await (clients[owner] as Redis).cluster("MYID"));
    for (const client of clients) await contains(() => client.cluster("INFO") as Promise<string>, "cluster_state:ok");
    await contains(() => last.info("replication") as Promise<string>, "master_link_status:up");
    for (const client of clients) {
      const slots = async (): Promise<unknown[][]> => (await client.cluster("SLOTS")) as unknown[][];
      const sizes = async (): Promise<number[]> => (await slots()).map((range) => range.length).sort();
      await eventually(sizes, (found) => expect(found).toEqual([3, 3, 4]));
      client.disconnect();
    }
    return new ClusterServers(nodes, nodes[owner] as RedisServer, nodes[3] as RedisServer);
  }

  /** Kills the node that holds the key, and waits until its replica has taken over. */
  async failOver(): Promise<void> {
    await this.owner.kill();
    const asked = connect(this.replica.port);
    await contains(() => asked.info("replication") as Promise<string>, "role:master");
    await contains(() => asked.cluster("INFO") as Promise<string>, "cluster_state:ok");
    asked.disconnect();
  }

  async stop(): Promise<void> {
    for (const node of this.nodes) await node.stop();
  }
}
