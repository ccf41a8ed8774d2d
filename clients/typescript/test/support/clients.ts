// Each client library that a feed takes.
import { Cluster as Cluster5, Redis as Redis5 } from "ioredis5";
import { Cluster as Cluster6, Redis as Redis6 } from "ioredis6";
import { Cluster as ValkeyCluster, Redis as Valkey } from "iovalkey";
import * as redis5 from "redis5";
import * as redis6 from "redis6";
import type { RedisClient } from "../../src/index.js";

/** A user's client, connected, and how its user closes it. */
export interface Connected {
  readonly client: RedisClient & { on(event: "error", listener: (error: unknown) => void): unknown };
  close(): unknown;
}

/** A client library. `options`: those of its client. */
export interface Library {
  readonly name: string;
  readonly isNodeRedis: boolean;
  server(port: number, options?: object): Promise<Connected>;
  sentinel(ports: readonly number[], name: string): Promise<Connected>;
  cluster(ports: readonly number[], options?: object): Promise<Connected>;
}

/** Errors of a client are told to its user, who, in these tests, causes them. */
const quiet = <T extends { on(event: "error", listener: () => void): unknown }>(client: T): T => {
  client.on("error", () => undefined);
  return client;
};

const nodeRedis = (name: string, { createClient, createCluster, createSentinel }: typeof redis6): Library => {
  const open = async (client: any): Promise<Connected> => {
    await quiet(client).connect();
    return { client, close: () => (client.isOpen ? client.destroy() : undefined) };
  };
  return {
    name,
    isNodeRedis: true,
    server: (port, options) => open(createClient({ url: `redis://127.0.0.1:${port}`, ...options })),
    sentinel: (ports, group) =>
      open(createSentinel({ name: group, sentinelRootNodes: ports.map((port) => ({ host: "127.0.0.1", port })) })),
    cluster: (ports, options) =>
      open(createCluster({ rootNodes: ports.map((port) => ({ url: `redis://127.0.0.1:${port}` })), ...options })),
  };
};

const ioredis = (name: string, Redis: typeof Redis6, Cluster: typeof Cluster6): Library => {
  const opened = (client: any): Connected => ({ client: quiet(client), close: () => client.disconnect() });
  return {
    name,
    isNodeRedis: false,
    server: async (port, options) => opened(new Redis({ host: "127.0.0.1", port, ...options })),
    sentinel: async (ports, group) =>
      opened(new Redis({ name: group, sentinels: ports.map((port) => ({ host: "127.0.0.1", port })) })),
    cluster: async (ports, options) =>
      opened(
        new Cluster(
          ports.map((port) => ({ host: "127.0.0.1", port })),
          { ...options },
        ),
      ),
  };
};

export const LIBRARIES: readonly Library[] = [
  nodeRedis("node-redis 5", redis5 as unknown as typeof redis6),
  nodeRedis("node-redis 6", redis6),
  ioredis("ioredis 5", Redis5 as unknown as typeof Redis6, Cluster5 as unknown as typeof Cluster6),
  ioredis("ioredis 6", Redis6, Cluster6),
  ioredis("iovalkey", Valkey as unknown as typeof Redis6, ValkeyCluster as unknown as typeof Cluster6),
];
