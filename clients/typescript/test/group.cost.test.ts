// What a consumer that waits costs: some providers bill each command.
import { Redis } from "ioredis6";
import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { BLOCK_MS } from "../src/connection.js";
import { SessionFeed } from "../src/index.js";
import { calls } from "./support/groups.js";
import { relay, server, useRelay } from "./support/relayed.js";
import { take } from "./support/updates.js";

// The times that matter are 400 times shorter than those that programs have.
const FASTER = 400;
const CLAIM_AFTER = 60_000 / FASTER;
// Vitest calls this before there is a FASTER.
vi.mock("../src/connection.js", async (original) => ({ ...(await original<object>()), BLOCK_MS: 20_000 / 400 }));

const MONTH_MS = 30 * 86_400_000;

let client: Redis;
let feed: SessionFeed;
useRelay();
beforeEach(async () => {
  await relay.redis.config("RESETSTAT");
  client = new Redis({ host: "127.0.0.1", port: server.port });
});
afterEach(async () => {
  await feed.close();
  client.disconnect();
});

const reads = async (): Promise<number> => (await calls(relay.redis))["xreadgroup"] ?? 0;

it("takes at most 300,000 commands for a month of waiting", async () => {
  expect(BLOCK_MS).toBe(50);
  await relay.apply({ id: "sess_1" });
  feed = new SessionFeed(client);
  const updates = feed.consume("group", "name", { claimAfter: CLAIM_AFTER });
  await take(updates, 1);
  void updates.next();
  await expect.poll(reads).toBeGreaterThan(3);
  await relay.redis.config("RESETSTAT");
  await expect.poll(reads).toBeGreaterThanOrEqual(40);
  const counted = await calls(relay.redis);
  const sum = Object.values(counted).reduce((a, b) => a + b, 0);
  expect(((sum / (counted["xreadgroup"] as number)) * MONTH_MS) / (BLOCK_MS * FASTER)).toBeLessThanOrEqual(300_000);
});

it("waits at several partitions in one command", async () => {
  feed = new SessionFeed(client, { partitions: 4 });
  void feed.consume("group", "name", { after: "0-0", claimAfter: CLAIM_AFTER }).next();
  await expect.poll(reads).toBeGreaterThan(3);
  await relay.redis.config("RESETSTAT");
  await expect.poll(reads).toBeGreaterThanOrEqual(3);
  expect(["xpending", "xreadgroup"]).toEqual(expect.arrayContaining(Object.keys(await calls(relay.redis))));
});
