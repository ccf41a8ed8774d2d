// A redis-server of a test file's own, with what stands for the relay, and feeds on it that are closed after each test.
import { afterAll, afterEach, beforeAll, beforeEach } from "vitest";
import type { Access } from "../../src/connection.js";
import { SessionFeed, type FeedOptions, type RedisClient } from "../../src/index.js";
import type { Connected, Library } from "./clients.js";
import { RedisServer } from "./redis.js";
import { Relay } from "./relay.js";

export let server: RedisServer;
export let relay: Relay;
/** A client for the tests of `useClient`. */
export let connected: Connected;
/** What is closed after each of these, before the client. */
export const feeds: { close(): Promise<void> }[] = [];

/** Starts server and relay for the tests of a file; Redis is empty before each. */
export function useRelay(): void {
  beforeAll(async () => {
    server = await RedisServer.start();
    relay = new Relay(server.port);
  });
  beforeEach(async () => {
    await relay.redis.flushall();
    relay.revisions.clear();
  });
  afterAll(async () => {
    relay.close();
    await server.stop();
  });
}

/** Connects a client for each of the tests that follow, and closes it after the feeds. */
export function useClient(library: Library): void {
  beforeEach(async () => {
    connected = await library.server(server.port);
  });
  afterEach(async () => {
    for (const feed of feeds.splice(0)) await feed.close();
    await connected.close();
  });
}

/** A feed that is closed after the test. */
export function feedOf(client: RedisClient | Access = connected.client, options?: FeedOptions): SessionFeed {
  const feed = new SessionFeed(client as RedisClient, options);
  feeds.push(feed);
  return feed;
}
