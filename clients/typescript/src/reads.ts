// Short reads: the state of sessions, and what the stream says about one.
import type { Command, Connection } from "./connection.js";
import { START } from "./cursors.js";
import { isId } from "./keys.js";
import { BATCH, newest, statesOf, type Partition, type RawEntry } from "./stream.js";
import { published, type LiveStatus, type SessionUpdate } from "./update.js";

export type { LiveStatus };

/** A partition that may know, and the connection to it. */
export type Source = readonly [Connection, Partition];

export async function get(sources: readonly Source[], sessionId: string): Promise<SessionUpdate | null> {
  const stored = await storedFields(sources, sessionId, "state");
  if (!stored) return null;
  const [[, partition], [state]] = stored;
  return published(state as string, partition.keys.session(sessionId), partition.number);
}

export async function status(sources: readonly Source[], sessionId: string): Promise<LiveStatus> {
  const stored = await storedFields(sources, sessionId, "live", "_expire_at");
  if (!stored) return "unknown";
  const [source, [live, expireAt]] = stored;
  let isLive = live === "1";
  if (isLive && expireAt == null) {
    // Another version's: only `state` is promised to have it.
    const update = await get([source], sessionId);
    if (!update) return "unknown"; // the key expired between the two reads
    isLive = update.isLive;
  } else if (expireAt) {
    isLive &&= Number(expireAt) > Date.now();
  }
  return isLive ? "live" : "ended";
}

/**
 * Where the session is stored, and these fields of its hash; null if it is stored nowhere.
 *
 * Partitions that share a connection are asked in one round trip. Of a stored session the first field is there.
 */
async function storedFields(
  sources: readonly Source[],
  sessionId: string,
  ...fields: string[]
): Promise<[Source, (string | null)[]] | null> {
  if (!isId(sessionId)) return null;
  for (const connection of new Set(sources.map(([each]) => each))) {
    const here = sources.filter(([each]) => each === connection);
    const commands = here.map(([, { keys }]): Command => ["HMGET", keys.session(sessionId), ...fields]);
    const responses = (await connection.askTwice(...commands)) as (string | null)[][];
    const index = responses.findIndex(([first]) => first != null);
    if (index >= 0) return [here[index] as Source, responses[index] as (string | null)[]];
  }
  return null;
}

/** `source` is the user's partition. */
export async function liveSessions([connection, partition]: Source, userId: string): Promise<SessionUpdate[]> {
  if (!isId(userId)) return [];
  const { keys, number } = partition;
  const alive: Command = ["ZRANGEBYSCORE", keys.userSessions(userId), `(${Date.now()}`, "+inf"];
  const [ids] = (await connection.askTwice(alive)) as [string[]];
  if (!ids.length) return [];
  const states = await statesOf((...commands) => connection.askTwice(...commands), ids.map(keys.session));
  // One may have ended in between.
  return states.map(([key, state]) => published(state, key, number)).filter(({ isLive }) => isLive);
}

export async function history(sources: readonly Source[], sessionId: string): Promise<SessionUpdate[]> {
  const updates: SessionUpdate[] = [];
  for (const [connection, partition] of sources) {
    let entries: RawEntry[];
    let after = START;
    do {
      const read: Command = ["XRANGE", partition.keys.events, `(${after}`, "+", "COUNT", BATCH];
      [entries] = (await connection.askTwice(read)) as [RawEntry[]];
      for (const entry of entries.map((raw) => partition.entry(raw))) {
        after = entry.cursor;
        if (entry.sessionId === sessionId) updates.push(entry.update());
      }
    } while (entries.length === BATCH);
  }
  return updates;
}

export async function now(sources: readonly Source[]): Promise<Record<number, string>> {
  const cursors: Record<number, string> = {};
  for (const [connection, { number, keys }] of sources) {
    cursors[number] = await newest((...commands) => connection.askTwice(...commands), keys.events);
  }
  return cursors;
}
