// Which consumers leave a group, over what stands for Redis: its clock is the test's.
import { afterEach, beforeEach, expect, it, vi } from "vitest";
import type { Connection } from "../src/connection.js";
import { FeedClosedError } from "../src/index.js";
import { MemoryRedis } from "../src/memory.js";
import { memoryAccess } from "../src/memory_connection.js";
import { UnusedConsumers } from "../src/unused.js";
import { EVENTS } from "./support/groups.js";

const DAY = 86_400_000;
const group = { name: "group", consumer: "own", claimAfter: 1000, unusedAfter: DAY, lookEvery: 3_600_000 };

let redis: MemoryRedis;
let connection: Connection;
let unused: UnusedConsumers;

const names = (): string[] => [...(redis.streams.get(EVENTS)?.groups.get("group")?.consumers.keys() ?? [])];
const read = (consumer: string): unknown =>
  redis.run(["XREADGROUP", "GROUP", "group", consumer, "COUNT", 1, "STREAMS", EVENTS, ">"]);

beforeEach(() => {
  vi.useFakeTimers();
  redis = new MemoryRedis();
  connection = memoryAccess(redis).reader(EVENTS);
  unused = new UnusedConsumers(connection, EVENTS, group);
  redis.run(["XGROUP", "CREATE", EVENTS, "group", "0-0", "MKSTREAM"]);
});
afterEach(() => void vi.useRealTimers());

it("removes others that were silent for long, and nothing of which is missing", async () => {
  for (const name of ["own", "silent", "heard"]) read(name);
  vi.advanceTimersByTime(DAY + 1);
  read("heard");
  expect(await unused.remove()).toBeUndefined();
  expect(names()).toEqual(["own", "heard"]);
});

it("leaves those that have something to do", async () => {
  redis.add(EVENTS, "1-0", ["session_id", "sess_1"]);
  read("silent");
  vi.advanceTimersByTime(DAY + 1);
  redis.run(["XAUTOCLAIM", EVENTS, "group", "other", 0, "0-0", "COUNT", 1, "JUSTID"]); // it is not due soon
  expect(await unused.remove()).toBeUndefined();
  expect(names()).toEqual(["other"]);
  vi.advanceTimersByTime(DAY + 1);
  expect(await unused.remove()).toBeUndefined();
  expect(names()).toEqual(["other"]);
});

it("waits while something is due soon, since who wakes might take that over", async () => {
  redis.add(EVENTS, "1-0", ["session_id", "sess_1"]);
  read("silent");
  redis.run(["XACK", EVENTS, "group", "1-0"]);
  vi.advanceTimersByTime(DAY + 1);
  redis.add(EVENTS, "2-0", ["session_id", "sess_2"]);
  read("other");
  vi.advanceTimersByTime(600);
  expect(await unused.remove()).toBeUndefined();
  expect(names()).toEqual(["silent", "other"]);
  expect(unused.isTime).toBe(true);
  redis.run(["XACK", EVENTS, "group", "2-0"]);
  await unused.remove();
  expect(names()).toEqual(["other"]);
  expect(unused.isTime).toBe(false);
});

it("tells where the group has to go back to, if one wakes in the moment of its removal", async () => {
  for (const name of ["silent", "last"]) read(name);
  vi.advanceTimersByTime(DAY + 1);
  const execute: Connection["execute"] = connection.execute.bind(connection);
  connection.execute = async (...commands) => {
    if (commands[0]?.includes("silent")) {
      redis.add(EVENTS, "5-0", ["session_id", "sess_1"]);
      read("silent");
    }
    // A reply that passes says nothing of what the one before has dropped.
    if (commands[0]?.includes("last")) throw new Error("READONLY You can't write against a read only replica.");
    return execute(...commands);
  };
  expect(await unused.remove()).toBe("0-0");
  expect(names()).toEqual(["last"]);
});

it("goes back, too, if nobody knows what one had, as the reply got lost", async () => {
  read("silent");
  vi.advanceTimersByTime(DAY + 1);
  const execute: Connection["execute"] = connection.execute.bind(connection);
  connection.execute = async (...commands) => {
    const responses = await execute(...commands);
    if (commands[0]?.includes("DELCONSUMER")) throw new Error("Connection is closed.");
    return responses;
  };
  expect(await unused.remove()).toBe("0-0");
});

it("is given up where a right is missing", async () => {
  connection.execute = () =>
    Promise.reject(new Error("NOPERM this user has no permissions to run the 'xinfo' command"));
  expect(await unused.remove()).toBeUndefined();
  vi.advanceTimersByTime(DAY);
  expect(unused.isTime).toBe(false);
});

it("is tried again after whatever else Redis says", async () => {
  connection.execute = () => Promise.reject(new Error("LOADING Redis is loading the dataset in memory"));
  expect(await unused.remove()).toBeUndefined();
  expect(unused.isTime).toBe(false);
  vi.advanceTimersByTime(group.lookEvery);
  expect(unused.isTime).toBe(true);
});

it("ends with the connection", async () => {
  await connection.close();
  await expect(unused.remove()).rejects.toBeInstanceOf(FeedClosedError);
});
