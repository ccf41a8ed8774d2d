// What stands for Redis in `clerk-session-feed/testing` responds as a real redis-server does.
import { Redis } from "ioredis5"; // it speaks RESP2
import { afterAll, beforeAll, beforeEach, expect, it } from "vitest";
import type { Command, Reply } from "../src/connection.js";
import { MemoryRedis } from "../src/memory.js";
import { RedisServer } from "./support/redis.js";

const EVENTS = "{clerk}:events";

let server: RedisServer;
let redis: Redis;
let memory: MemoryRedis;

beforeAll(async () => {
  server = await RedisServer.start();
  redis = new Redis({ host: "127.0.0.1", port: server.port });
});
beforeEach(async () => {
  await redis.flushall();
  memory = new MemoryRedis();
});
afterAll(async () => {
  redis.disconnect();
  await server.stop();
});

/** Names and values of which some are compared. */
const picked = (fields: Reply, names: string[]): Reply[] => {
  const flat = fields as Reply[];
  return names.map((name) => flat[flat.indexOf(name) + 1] as Reply);
};

/** A response without what may differ: times, and what no feed looks at. */
function essence([name, subcommand]: Command, response: Reply): Reply {
  const rows = response as Reply[][];
  const all = (names: string[]): Reply[] => rows.map((row) => picked(row, names));
  if (name === "XINFO" && subcommand === "STREAM") {
    return picked(response, ["length", "last-generated-id", "entries-added", "first-entry", "last-entry"]);
  }
  // Redis sorts them by name.
  if (name === "XINFO")
    return all(subcommand === "GROUPS" ? ["name", "last-delivered-id"] : ["name", "pending"]).sort();
  if (name === "XPENDING") return rows.map(([id, consumer]) => [id as string, consumer as string]);
  if (name === "XAUTOCLAIM") return rows.slice(1);
  if (name === "SCAN") return [...(rows[1] as Reply[])].sort();
  return response;
}

/** The first words of an error. */
const said = (error: unknown): string =>
  (/^(NOGROUP|BUSYGROUP|ERR no such key|ERR The XGROUP subcommand requires the key to exist)/.exec(
    (error as Error).message,
  ) ?? [""])[0];

/** Sends a command to both; expects the same of both, and returns it. */
async function same(...command: Command): Promise<Reply> {
  const [name, ...given] = command;
  const real = await redis.call(name, ...given).then((response) => essence(command, response as Reply), said);
  let imitated: Reply;
  try {
    imitated = essence(command, memory.run(command));
  } catch (error) {
    imitated = said(error);
  }
  expect({ command, response: imitated }).toEqual({ command, response: real });
  return real;
}

async function add(...ids: string[]): Promise<void> {
  for (const id of ids) {
    await redis.xadd(EVENTS, id, "session_id", `sess_${id}`);
    memory.add(EVENTS, id, ["session_id", `sess_${id}`]);
  }
}

async function trim(keep: number): Promise<void> {
  await redis.xtrim(EVENTS, "MAXLEN", keep);
  const stream = memory.streams.get(EVENTS);
  if (stream) stream.entries = keep ? stream.entries.slice(-keep) : [];
}

it("reads hashes, sorted sets and keys alike", async () => {
  for (const [key, fields] of [
    ["{clerk}:session:sess_1", { state: "1", live: "1" }],
    ["{clerk}:session:sess_2", { state: "2", live: "0" }],
    ["other:session:sess_3", { state: "3" }],
  ] as const) {
    await redis.hset(key, fields);
    memory.hashes.set(key, fields);
  }
  const scores: [string, number][] = [
    ["d", 7],
    ["b", 5],
    ["a", 5],
    ["c", Infinity],
    ["e", 4],
  ];
  for (const [member, score] of scores) {
    await redis.zadd("{clerk}:user:1", score === Infinity ? "inf" : score, member);
    memory.setMember("{clerk}:user:1", member, score);
  }
  await same("HMGET", "{clerk}:session:sess_1", "state");
  await same("HMGET", "{clerk}:session:sess_1", "live", "none", "state");
  await same("HMGET", "{clerk}:session:none", "live", "_expire_at");
  await same("ZRANGEBYSCORE", "{clerk}:user:1", "(4", "+inf");
  await same("ZRANGEBYSCORE", "{clerk}:user:none", "(4", "+inf");
  expect(await same("SCAN", "0", "MATCH", "{clerk}:session:*", "COUNT", 500)).toHaveLength(2);
});

it("reads streams alike", async () => {
  await same("XINFO", "STREAM", EVENTS);
  await same("XRANGE", EVENTS, "-", "+");
  await same("XREVRANGE", EVENTS, "+", "-", "COUNT", 1);
  await add("9-0", "9-1", "10-0", "18446744073709551615-2");
  for (const keep of [4, 2, 0]) {
    await trim(keep);
    await same("XINFO", "STREAM", EVENTS);
    await same("XRANGE", EVENTS, "9-1", "+", "COUNT", 501);
    await same("XRANGE", EVENTS, "(9-1", "+", "COUNT", 1);
    await same("XRANGE", EVENTS, "10-0", "10-0");
    await same("XREVRANGE", EVENTS, "+", "-", "COUNT", 1);
    await same("XREAD", "COUNT", 1, "STREAMS", EVENTS, "none", "9-0", "0-0");
  }
});

it("does with groups alike", async () => {
  const read = (consumer: string, cursor: string, count = 10): Promise<Reply> =>
    same("XREADGROUP", "GROUP", "group", consumer, "COUNT", count, "STREAMS", EVENTS, cursor);
  const look = async (): Promise<void> => {
    await same("XINFO", "GROUPS", EVENTS);
    await same("XINFO", "CONSUMERS", EVENTS, "group");
    await same("XPENDING", EVENTS, "group", "IDLE", 0, "-", "+", 50);
  };
  await look();
  await read("one", ">");
  await same("XACK", EVENTS, "group", "1-0");
  await same("XGROUP", "SETID", EVENTS, "group", "0-1");
  await same("XGROUP", "CREATE", EVENTS, "group", "0-1", "MKSTREAM");
  await same("XGROUP", "CREATE", EVENTS, "group", "0-1", "MKSTREAM");
  await look();
  await add("1-0", "2-0", "3-0", "4-0", "5-0");
  await read("one", "0");
  await read("one", ">", 2);
  await read("two", ">", 2);
  await look();
  await read("one", "0");
  await same("XACK", EVENTS, "group", "1-0", "4-0", "9-0");
  await read("one", "0");
  await look();
  // Back, so that what the one has goes to the other.
  await same("XGROUP", "SETID", EVENTS, "group", "1-0");
  await read("two", ">");
  await look();
  await trim(2);
  await read("two", "0");
  await same("XAUTOCLAIM", EVENTS, "group", "three", 0, "2-0", "COUNT", 50, "JUSTID");
  await look();
  await read("three", "0");
  await same("XACK", EVENTS, "group", "5-0");
  await same("XGROUP", "DELCONSUMER", EVENTS, "group", "three");
  await same("XGROUP", "DELCONSUMER", EVENTS, "group", "none");
  await look();
  await read("two", ">");
});
