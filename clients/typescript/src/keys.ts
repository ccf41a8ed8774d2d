/** The names of the keys of one partition. Types and fields: docs/contract.md, section 5. */
export interface Keys {
  readonly prefix: string;
  readonly events: string;
  /** Of the whole data, not of one partition: how many there are. */
  readonly layout: string;
  session(sessionId: string): string;
  userSessions(userId: string): string;
}

export const keysOf = (prefix: string): Keys => ({
  prefix,
  events: `${prefix}:events`,
  layout: `${prefix}:partitions`,
  session: (sessionId) => `${prefix}:session:${sessionId}`,
  userSessions: (userId) => `${prefix}:user:${userId}:sessions`,
});

/** The keys of each partition: `{clerk:7}:…`; those of the prefix itself, if there is only one. */
export function split(prefix: string, partitions: number): Keys[] {
  if (partitions === 1) return [keysOf(prefix)];
  const place = /\{([^}]*)\}/;
  return Array.from({ length: partitions }, (_, number) =>
    keysOf(prefix.replace(place, (_all, tag: string) => `{${tag}:${number}}`)),
  );
}

/**
 * The number of the partition that has a user's sessions: the CRC-32 of the id, by the number of partitions.
 *
 * Node 20 may have no `zlib.crc32`; and an id is short.
 */
export function partitionOf(userId: string, partitions: number): number {
  let crc = ~0;
  for (const byte of new TextEncoder().encode(userId)) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return (~crc >>> 0) % partitions;
}

/** Whether something can be stored under this id. A claim of a token can be anything, also of another type. */
export const isId = (value: unknown): value is string => typeof value === "string" && /^[\w-]{1,128}$/.test(value);
