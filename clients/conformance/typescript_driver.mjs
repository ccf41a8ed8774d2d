// Runs TypeScript's feed for the conformance suite, as README.md says: JSON lines on stdin and stdout.
//
//     node typescript_driver.mjs redis5|redis6|ioredis5|ioredis6|iovalkey
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";
import {
  CursorLostError,
  FeedClosedError,
  MirrorTooOldError,
  NoResponseError,
  PartitionsError,
  SessionFeed,
  UnreadableMessageError,
} from "../typescript/dist/index.js";

const library = process.argv[2];
const { resolve } = createRequire(new URL("../typescript/package.json", import.meta.url));
const redis = await import(pathToFileURL(resolve(library)));

const emit = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);

/** What a user has: a client of his own, connected, whose errors he looks at himself. Returns it, and what closes it. */
async function connect({ kind, hosts, master, username, password }) {
  const [[host, port]] = hosts;
  const nodes = hosts.map(([host, port]) => ({ host, port }));
  const login = username === undefined ? {} : { username, password };
  const ignore = () => undefined;
  if (!library.startsWith("redis")) {
    const Redis = redis.Redis ?? redis.default;
    const client =
      kind === "sentinel"
        ? new Redis({ sentinels: nodes, name: master, ...login })
        : kind === "cluster"
          ? new Redis.Cluster(nodes, { redisOptions: login })
          : new Redis({ host, port, ...login });
    client.on("error", ignore);
    return [client, () => client.disconnect()];
  }
  const client =
    kind === "sentinel"
      ? redis.createSentinel({ name: master, sentinelRootNodes: nodes, nodeClientOptions: login })
      : kind === "cluster"
        ? redis.createCluster({ rootNodes: nodes.map((socket) => ({ socket })), defaults: login })
        : redis.createClient({ socket: { host, port }, ...login });
  // node-redis tries for ever with a wrong password. Whoever listens knows.
  const failed = new Promise((_, reject) => client.once("error", reject));
  client.on("error", ignore);
  try {
    await Promise.race([client.connect(), failed]);
  } catch (error) {
    if (client.isOpen) client.destroy();
    throw error;
  } finally {
    failed.catch(ignore);
  }
  return [client, () => client.destroy()];
}

const asJson = (value) => {
  if (Array.isArray(value)) return value.map(asJson);
  if (value === null || typeof value !== "object" || !("revision" in value)) return value;
  const { outcome, cursor, revision, previousStatus, event, session, partition, isSnapshot, json } = value;
  return {
    ...{ outcome, cursor, revision, previous_status: previousStatus, event, session, partition },
    ...{ is_snapshot: isSnapshot, json, position: value.position, is_live: value.isLive },
  };
};

/** An error that no feed may throw has the name of its class for a kind. */
function explain(error) {
  const kinds = [
    [CursorLostError, "cursor_lost"],
    [PartitionsError, "partitions"],
    [FeedClosedError, "closed"],
    [UnreadableMessageError, "unreadable"],
    [MirrorTooOldError, "too_old"],
    [NoResponseError, "redis"],
    [RangeError, "invalid"],
  ];
  const ours = kinds.find(([type]) => error instanceof type)?.[1];
  // Errors of the client are passed on as they are: replies, and those of sockets.
  const isFault = error instanceof TypeError || error instanceof ReferenceError || error?.name === "FeedError";
  const more = error instanceof CursorLostError ? { cursor: error.cursor, partition: error.partition } : {};
  return { kind: ours ?? (isFault ? error.name : "redis"), message: String(error?.message ?? error), ...more };
}

/** The name of a method, or of an option, in TypeScript. */
const camel = (name) => name.replace(/_(\w)/g, (_, letter) => letter.toUpperCase());

const feeds = new Map();
const iterators = new Map();
const mirrors = new Map();

/** Those that are given. */
const set = (options) =>
  Object.fromEntries(Object.entries(options).flatMap(([name, value]) => (value === undefined ? [] : [[camel(name), value]])));

function options({ iterator, user_id, claim_after, after, stale, resync }) {
  const controller = new AbortController();
  const onReconnect = (error) => emit({ iterator, reconnect: String(error?.message ?? error) });
  const given = set({ user_id, claim_after, after, stale, resync });
  return [controller, { ...given, signal: controller.signal, onReconnect }];
}

const operations = {
  async open({ feed, server, prefix, channel, partitions, timeout }) {
    const [client, end] = await connect(server);
    feeds.set(feed, { feed: new SessionFeed(client, set({ prefix, channel, partitions, timeout })), end });
  },
  async close({ feed }) {
    const opened = feeds.get(feed);
    await opened?.feed.close();
    if (opened && !opened.isEnded) opened.end();
    if (opened) opened.isEnded = true;
  },
  ask: async ({ feed, method, arguments: given }) => asJson(await feeds.get(feed).feed[camel(method)](...given)),
  follow(request) {
    const [controller, given] = options(request);
    iterators.set(request.iterator, { controller, updates: feeds.get(request.feed).feed.follow(given) });
  },
  consume(request) {
    const [controller, given] = options(request);
    const updates = feeds.get(request.feed).feed.consume(request.group, request.name, given);
    iterators.set(request.iterator, { controller, updates });
  },
  subscribe(request) {
    const [controller, given] = options(request);
    iterators.set(request.iterator, { controller, updates: feeds.get(request.feed).feed.subscribe(given) });
  },
  async take({ iterator, count }) {
    const { updates } = iterators.get(iterator);
    for (let left = count ?? Infinity; left > 0; left--) {
      const { done, value } = await updates.next();
      if (done) return true;
      emit({ iterator, update: asJson(value) });
    }
    return false;
  },
  async leave({ iterator }) {
    await iterators.get(iterator).updates.return();
  },
  abort({ iterator }) {
    iterators.get(iterator).controller.abort();
  },
  mirror({ feed, mirror, max_age, past_max_age, keep_ended }) {
    const given = set({ max_age, past_max_age, keep_ended });
    mirrors.set(mirror, feeds.get(feed).feed.mirror({ ...given, onReconnect: () => undefined }));
  },
  async ready({ mirror }) {
    await mirrors.get(mirror).ready();
  },
  answer: ({ mirror, method, arguments: given }) => mirrors.get(mirror)[camel(method)](...given),
  close_mirror: ({ mirror }) => mirrors.get(mirror).close(),
};

emit({ ready: `typescript-${library}`, can: ["abort", "mirror"] });
createInterface({ input: process.stdin })
  .on("line", async (line) => {
    const { id, op, ...request } = JSON.parse(line);
    try {
      emit({ id, result: (await operations[op](request)) ?? null });
    } catch (error) {
      emit({ id, error: explain(error) });
    }
  })
  .on("close", () => process.exit());
