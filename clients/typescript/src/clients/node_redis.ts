// node-redis 5 and 6: createClient, createClientPool, createCluster and createSentinel.
import type { Command, Reply } from "../connection.js";
import { FeedError } from "../errors.js";
import { clusterOpener, slotOf } from "./cluster.js";
import { asError, type Driver, type Host, type Link, type Opening } from "./link.js";

type Client = any;

/** What a Link needs, whatever its user's client is set to: to connect once, and to pass on what Redis sends. */
const OPTIONS = {
  RESP: 2,
  commandOptions: {},
  commandsQueueMaxLength: undefined,
  disableOfflineQueue: false,
  disableClientInfo: true,
  clientSideCache: undefined,
  emitInvalidate: false,
  maintNotifications: "disabled",
  pingInterval: 0,
  readonly: false,
  keyPrefix: undefined,
};
/** Of a sentinel's client: one connection, and no second attempt, since a Link is lost then. */
const SENTINEL_OPTIONS = {
  RESP: 2,
  commandOptions: {},
  clientSideCache: undefined,
  masterPoolSize: 1,
  replicaPoolSize: 0,
  reserveClient: true,
  maxCommandRediscovers: 0,
  passthroughClientErrorEvents: true,
  scanInterval: 0,
  keyPrefix: undefined,
};
/** No types of the user's; and maps as names and values in turns, where the client speaks RESP3. */
const TYPES = { typeMapping: { 37: Array } };

type Send = (command: Command) => Promise<Reply>;

/** Sends commands, which are in one write, since the client writes what one turn of the event loop brings. */
const sender =
  (send: Send): Link["send"] =>
  (commands) =>
    Promise.allSettled(
      commands.map(async (command) => {
        const response = await send(command);
        const isMap = command[0].startsWith("XREAD") && Array.isArray(response) && typeof response[0] === "string";
        return isMap ? pairs(response) : response;
      }),
    );

const pairs = (flat: Reply[]): Reply[] =>
  flat.flatMap((name, index) => (index % 2 ? [] : [[name, flat[index + 1] as Reply]]));

const texts = (command: Command): string[] => command.map(String);

export function nodeRedisDriver(client: Client): Driver {
  const isCluster = "nodeByAddress" in client;
  const isSentinel = "getMasterNode" in client;
  const isPool = "totalClients" in client;
  const send: Send = isCluster
    ? (command) => client.sendCommand(command[1], false, texts(command), TYPES)
    : isSentinel
      ? (command) => client.sendCommand(false, texts(command), TYPES)
      : (command) => client.sendCommand(texts(command), TYPES);
  const needOpen = (): void => {
    if (!client.isOpen) throw new FeedError("The Redis client is not connected: `await client.connect()` first.");
  };
  const share = ({ onEnd }: Opening): Link => {
    // What it connects to next may be another server.
    const onReady = (): void => onEnd(new Error("The client has connected again."));
    client.on("ready", onReady);
    return {
      async send(commands) {
        needOpen();
        return sender(send)(commands);
      },
      subscribe: () => Promise.reject(new Error("A shared client subscribes to nothing.")),
      ping: () => send(["PING"]),
      close: () => client.off("ready", onReady),
    };
  };

  if (isCluster) {
    let node: Client;
    const seeds = async (): Promise<Host[]> => {
      needOpen();
      const nodes = [...client.nodeByAddress.values()];
      node = nodes.find((each) => each.client)?.client ?? node ?? (await client.nodeClient(nodes[0]));
      return nodes.map(({ host, port }) => ({ host, port }));
    };
    const openAt = ({ host, port }: Host, opening: Opening): Promise<Link> => {
      // Where the user's nodeAddressMap leads to, if the client knows that node.
      const { socket } = client.nodeByAddress.get(`${host}:${port}`)?.client?.options ?? {};
      return openLink(node, { host: socket?.host ?? host, port: socket?.port ?? port }, opening);
    };
    return { slot: slotOf, isShared: true, share, open: clusterOpener(openAt, seeds) };
  }
  if (isSentinel) {
    const open = async (opening: Opening): Promise<Link> => {
      needOpen();
      // Where the client itself reaches no primary, a copy of it would try for ever, and could not be closed.
      await send(["PING"]);
      return openSentinelLink(client, opening);
    };
    return { slot: () => 0, isShared: true, share, open: (_key, opening) => open(opening) };
  }
  const base = async (): Promise<Client> => (isPool ? client.execute((each: Client) => each) : client);
  return { slot: () => 0, isShared: true, share, open: async (_key, opening) => openLink(await base(), {}, opening) };
}

async function openLink(base: Client, at: Partial<Host>, { timeout, signal, onEnd }: Opening): Promise<Link> {
  const { socket } = base.options;
  const limits = { reconnectStrategy: false, connectTimeout: timeout, socketTimeout: undefined };
  const client = base.duplicate({ ...OPTIONS, socket: { ...socket, ...at, ...limits } });
  let hasSocket = false;
  let isWanted = true;
  const close = (): void => {
    isWanted = false;
    // Before there is a socket, the client would only forget that it is connecting.
    if (hasSocket && client.isOpen) client.destroy();
  };
  client.on("error", (error: unknown) => onEnd(asError(error)));
  client.on("connect", () => {
    hasSocket = true;
    if (!isWanted) close();
  });
  signal.addEventListener("abort", close);
  try {
    await client.connect();
  } finally {
    signal.removeEventListener("abort", close);
  }
  return {
    send: sender((command) => client.sendCommand(texts(command), TYPES)),
    subscribe: (channel, onMessage) => client.subscribe(channel, (message: string) => onMessage(message)),
    ping: () => client.sendCommand(["PING"]),
    close,
  };
}

async function openSentinelLink(base: Client, { signal, onEnd }: Opening): Promise<Link> {
  const client = base.duplicate(SENTINEL_OPTIONS);
  const close = (): void => void client.destroy().catch(() => undefined);
  client.on("error", (error: unknown) => onEnd(asError(error)));
  client.on("topology-change", ({ type }: { type: string }) => {
    if (type === "MASTER_CHANGE" && isOpen) onEnd(new Error("The sentinels name another primary."));
  });
  let isOpen = false;
  signal.addEventListener("abort", close);
  try {
    await client.connect();
    isOpen = true;
  } catch (error) {
    close();
    throw error;
  } finally {
    signal.removeEventListener("abort", close);
  }
  return {
    send: sender((command) => client.sendCommand(false, texts(command), TYPES)),
    subscribe: (channel, onMessage) => client.subscribe(channel, (message: string) => onMessage(message)),
    ping: () => client.sendCommand(false, ["PING"]),
    close,
  };
}
