// What tests of consumer groups share: what Redis says of a group, and a feed whose commands a test sees and changes.
import type { Redis } from "ioredis6";
import { vi } from "vitest";
import { driverOf } from "../../src/clients/index.js";
import type { Access, Command, Connection, Reply } from "../../src/connection.js";
import type { RedisClient } from "../../src/feed.js";
import { accessTo } from "../../src/redis_connection.js";

export const EVENTS = "{clerk}:events";

/** How many entries somebody has that are not acknowledged. */
export async function pending(redis: Redis, group = "group", events = EVENTS): Promise<number> {
  const [count] = (await redis.xpending(events, group)) as [number];
  return count;
}

/** The names of a stream's groups. */
export async function groups(redis: Redis): Promise<unknown[]> {
  const found = (await redis.exists(EVENTS)) ? ((await redis.xinfo("GROUPS", EVENTS)) as unknown[][]) : [];
  return found.map(([, name]) => name);
}

/** The names of the group's consumers. */
export async function consumers(redis: Redis): Promise<unknown[]> {
  const found = (await redis.xinfo("CONSUMERS", EVENTS, "group")) as unknown[][];
  return found.map(([, name]) => name).sort();
}

/** How often Redis has executed each command since `config resetstat`, but for those by which tests ask. */
export async function calls(redis: Redis): Promise<Record<string, number>> {
  const lines = (await redis.info("commandstats")).matchAll(/cmdstat_([^:|]+)[^:]*:calls=(\d+)/g);
  const counts: Record<string, number> = {};
  for (const [, name, count] of lines) counts[name as string] = (counts[name as string] ?? 0) + Number(count);
  for (const ours of ["info", "config", "flushall", "client"]) delete counts[ours];
  return counts;
}

/** Lets a test set by how many milliseconds the clock of the feeds is ahead. `vi.restoreAllMocks` ends it. */
export function skewClock(): { ahead: number } {
  const clock = { ahead: 0 };
  const now = performance.now.bind(performance);
  vi.spyOn(performance, "now").mockImplementation(() => now() + clock.ahead);
  return clock;
}

type Send = (commands: Command[]) => Promise<Reply[]>;

/** What a SessionFeed takes in place of a client; `seen`: is called for all that its iterators send. */
export function watched(client: RedisClient, seen: (commands: Command[], send: Send) => Promise<Reply[]>): Access {
  const access = accessTo(driverOf(client), { prefix: "{clerk}", partitions: 1, timeout: 2000 });
  const follower: Access["follower"] = (key, options) => {
    const connection = access.follower(key, options);
    const execute: Connection["execute"] = connection.execute.bind(connection);
    connection.execute = (...commands) => seen(commands, (changed) => execute(...changed));
    return connection;
  };
  return { ...access, follower };
}
