// node-redis 5 and 6: createClient, createClientPool, createCluster and createSentinel.
import type { Command, Reply } from "../connection.js";
import { FeedError } from "../errors.js";
import { clusterOpener, slotOf } from "./cluster.js";
import { asError, sharedLink, type Driver, type Host, type Link, type Opening } from "./link.js";

type Client = any;

/** What a Link needs, whatever its user's client is set to: to connect once, and to pass on what Redis sends. */
const OPTIONS = {
  RESP: 2,
  // Otherwise there is an AbortSignal for each command that waits to be written, which takes half of all the time.
  commandOptions: { timeout: 0 },
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
/** A user's types of responses don't count. */
const TYPES = { typeMapping: {} };

/** Sends commands in one write, since the client writes together what one turn of the event loop brings. */
const sendAll = (send: (args: string[]) => Promise<Reply>, commands: readonly Command[]): ReturnType<Link["send"]> =>
  Promise.allSettled(commands.map((command) => send(command.map(String))));

export function nodeRedisDriver(client: Client): Driver {
  const isCluster = "nodeByAddress" in client;
  const isSentinel = "getMasterNode" in client;
  const isPool = "totalClients" in client;
  const send = (args: string[]): Promise<Reply> =>
    isSentinel ? client.sendCommand(false, args, TYPES) : client.sendCommand(args, TYPES);
  const needOpen = (): void => {
    if (!client.isOpen) throw new FeedError("The Redis client is not connected: `await client.connect()` first.");
  };
  const share: Driver["share"] = (opening) =>
    sharedLink(client, opening, async (commands) => {
      needOpen();
      return sendAll(send, commands);
    });

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
    // The client of version 5 waits for a node that is gone, as long as it is gone, whoever holds its slots by now.
    return { slot: slotOf, share: undefined, open: clusterOpener(openAt, seeds) };
  }
  // A pool and a sentinel's client lend a client that has their options, and, of the latter, leads to the primary. That
  // of version 5 has no `duplicate`, and neither tells its options; `_execute` is part of its published types.
  const lend = (each: Client): Promise<Client> => Promise.resolve(each);
  const base = async (): Promise<Client> => {
    if (isPool || isSentinel) needOpen();
    return isPool ? client.execute(lend) : isSentinel ? client._execute(false, lend) : client;
  };
  const open = async (opening: Opening): Promise<Link> => openLink(await base(), {}, opening);
  return { slot: () => 0, share, open: (_key, opening) => open(opening) };
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
  await client.connect();
  return {
    send: (commands) => sendAll((args) => client.sendCommand(args, TYPES), commands),
    subscribe: (channel, onMessage) => client.subscribe(channel, (message: string) => onMessage(message)),
    ping: () => client.sendCommand(["PING"]),
    close,
  };
}
