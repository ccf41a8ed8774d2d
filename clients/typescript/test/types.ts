// Compiled, and not run: what TypeScript takes for a client, without a cast.
import { Cluster as Cluster5, Redis as Redis5 } from "ioredis5";
import { Cluster as Cluster6, Redis as Redis6 } from "ioredis6";
import { Cluster as ValkeyCluster, Redis as Valkey } from "iovalkey";
import * as redis5 from "redis5";
import * as redis6 from "redis6";
import { sessionGuard } from "../src/guards/express.js";
import {
  SessionFeed,
  type AskingMirror,
  type LiveStatus,
  type Mirror,
  type PastMaxAge,
  type SessionUpdate,
  type Status,
} from "../src/index.js";

const sentinels = { name: "main", sentinelRootNodes: [] };

export const feeds = (): SessionFeed[] => [
  new SessionFeed(redis5.createClient()),
  new SessionFeed(redis6.createClient()),
  new SessionFeed(redis6.createClient({ RESP: 3, commandOptions: { typeMapping: {} } })),
  new SessionFeed(redis5.createClientPool()),
  new SessionFeed(redis6.createClientPool()),
  new SessionFeed(redis5.createCluster({ rootNodes: [] })),
  new SessionFeed(redis6.createCluster({ rootNodes: [] })),
  new SessionFeed(redis5.createSentinel(sentinels)),
  new SessionFeed(redis6.createSentinel(sentinels)),
  new SessionFeed(new Redis5(), { partitions: 8, prefix: "{other}", channel: "other", timeout: 500 }),
  new SessionFeed(new Redis6()),
  new SessionFeed(new Cluster5([])),
  new SessionFeed(new Cluster6([])),
  new SessionFeed(new Valkey()),
  new SessionFeed(new ValkeyCluster([])),
  // @ts-expect-error no client
  new SessionFeed({}),
  // @ts-expect-error the address of one
  new SessionFeed("redis://localhost:6379"),
];

/** What an update's fields are to its user. */
export async function fields(feed: SessionFeed): Promise<unknown[]> {
  const told: unknown[] = [];
  for await (const update of feed.follow({
    after: { 0: "0-0", 1: null },
    stale: true,
    signal: AbortSignal.timeout(1),
  })) {
    const { session, event, previousStatus }: SessionUpdate = update;
    const status: Status = session.status;
    const ends: number | null = session.expire_at;
    const who: string | undefined = session.actor?.sub;
    told.push(status === "active", ends, who, event.http_request?.client_ip, previousStatus, update.position?.length);
    // @ts-expect-error updates don't change
    update.cursor = "1-1";
  }
  const cursors: Record<number, string> = await feed.now();
  return [told, cursors, feed.follow({ after: cursors })];
}

/** What a mirror's answers are to its user. */
export async function mirrors(feed: SessionFeed, pastMaxAge: PastMaxAge): Promise<unknown[]> {
  const mirror: Mirror = feed.mirror({ maxAge: 1000, pastMaxAge: "allow" });
  const status: LiveStatus = feed.mirror().status("sess_1", null);
  const user: string | null = mirror.userId("sess_1");
  const asking: AskingMirror = feed.mirror({ pastMaxAge: "ask" });
  const asked: LiveStatus = await asking.status("sess_1");
  const some: AskingMirror = mirror;
  // @ts-expect-error it may be a promise
  const isLive: boolean = asking.isLive("sess_1");
  // @ts-expect-error it may be a promise
  const maybe: LiveStatus = feed.mirror({ pastMaxAge }).status("sess_1");
  return [status, user, asked, some.age, isLive, maybe, sessionGuard(mirror), sessionGuard(asking)];
}
