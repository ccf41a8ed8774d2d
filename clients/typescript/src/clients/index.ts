import { ioredisDriver } from "./ioredis.js";
import type { Driver } from "./link.js";
import { nodeRedisDriver } from "./node_redis.js";

/** What a user's client is to a feed. Throws a TypeError if it is none that is known. */
export function driverOf(client: any): Driver {
  if (typeof client?.status === "string" && typeof client.call === "function") return ioredisDriver(client);
  if (typeof client?.isOpen === "boolean" && typeof client.sendCommand === "function") return nodeRedisDriver(client);
  throw new TypeError("This is no client of redis (node-redis 5 or 6), ioredis (5 or 6) or iovalkey.");
}
