// ioredis 5 and 6, and iovalkey: Redis, also with sentinels, and Cluster.
import type { Command, Reply } from "../connection.js";
import { clusterOpener, slotOf } from "./cluster.js";
import { asError, sharedLink, type Driver, type Host, type Link, type Opening } from "./link.js";

type Client = any;

/** What a Link needs, whatever its user's client is set to: to connect once, and to pass on what Redis sends. */
const OPTIONS = {
  lazyConnect: true,
  retryStrategy: null,
  sentinelRetryStrategy: null,
  reconnectOnError: null,
  maxRetriesPerRequest: null,
  autoResubscribe: false,
  autoResendUnfulfilledCommands: false,
  enableOfflineQueue: true,
  enableAutoPipelining: false,
  // It sends INFO, which the user of Redis may have no right to. What a server that loads says is waited for anyway.
  enableReadyCheck: false,
  disableClientInfo: true,
  failoverDetector: false,
  role: "master",
  readOnly: false,
  keyPrefix: "",
  protocol: 2,
  replyMapping: "legacy",
  stringNumbers: false,
  monitor: false,
  commandTimeout: undefined,
  blockingTimeout: undefined,
  socketTimeout: undefined,
  himportFieldsets: undefined,
  // Milliseconds after which a server that does not close its side is not waited for.
  disconnectTimeout: 100,
};

export function ioredisDriver(client: Client): Driver {
  const { options } = client;
  const open = (base: Client, at: Partial<Host>, opening: Opening): Promise<Link> => openLink(base, at, opening);
  // With a prefix of its own, the client's commands miss the relay's keys.
  const hasPrefix = options.keyPrefix || options.redisOptions?.keyPrefix;
  const send: Link["send"] = (commands) => Promise.allSettled(commands.map((command) => client.call(...command)));
  const share = hasPrefix ? undefined : (opening: Opening) => sharedLink(client, opening, send);
  if (!client.isCluster) return { slot: () => 0, share, open: (_key, opening) => open(client, {}, opening) };

  let node: Client;
  const seeds = async (): Promise<Host[]> => {
    // It connects only now if it is lazy.
    if (!client.nodes("all").length) await client.call("CLUSTER", "SLOTS");
    const nodes: Client[] = client.nodes("all");
    node = nodes[0] ?? node;
    return nodes.map((each) => each.options as Host);
  };
  const openAt = ({ host, port }: Host, opening: Opening): Promise<Link> => {
    const { natMap } = options;
    const name = `${host}:${port}`;
    const { host: to, port: toPort } = (typeof natMap === "function" ? natMap(name) : natMap?.[name]) ?? { host, port };
    return open(node, { host: to, port: toPort }, opening);
  };
  return { slot: slotOf, share, open: clusterOpener(openAt, seeds) };
}

async function openLink(base: Client, at: Partial<Host>, { timeout, signal, onEnd }: Opening): Promise<Link> {
  const client = base.duplicate({ ...OPTIONS, ...at, connectTimeout: timeout, sentinelCommandTimeout: timeout });
  let reason: Error | undefined;
  client.on("error", (error: unknown) => (reason = asError(error)));
  client.on("end", () => onEnd(reason ?? new Error("Connection is closed.")));
  const close = (): void => client.disconnect();
  signal.addEventListener("abort", close);
  try {
    await client.connect();
  } catch (error) {
    close();
    throw reason ?? error; // `error` says only that it is closed
  }
  return {
    // In one write: Redis runs such commands one right after the other.
    async send(commands: readonly Command[]) {
      const pipeline = client.pipeline();
      for (const command of commands) pipeline.call(...command);
      const responses: [Error | null, Reply][] = await pipeline.exec();
      return responses.map(([error, value]) =>
        error ? { status: "rejected", reason: reason ?? error } : { status: "fulfilled", value },
      );
    },
    subscribe(channel, onMessage) {
      client.on("message", (_channel: string, message: string) => onMessage(message));
      return client.subscribe(channel);
    },
    ping: () => client.ping(),
    close,
  };
}
