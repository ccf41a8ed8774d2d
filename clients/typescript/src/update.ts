import { UnreadableMessageError } from "./errors.js";
import { isId } from "./keys.js";
import type { Event, Session, Status } from "./messages.js";

/** The state of a session, and the event that led to it. Times are Unix milliseconds. */
export class SessionUpdate {
  /** `stale`: it came too late to change anything. */
  declare readonly outcome: "applied" | "stale";
  /** The id of its entry in the stream. */
  declare readonly cursor: string;
  /** Counts the states applied to the session, from 1; null for a stale event. */
  declare readonly revision: number | null;
  declare readonly previousStatus: Status | null;
  declare readonly event: Event;
  declare readonly session: Session;
  /** The stream that its cursor belongs to; 0 unless the relay has PARTITIONS. */
  declare readonly partition: number;
  /** It is the state stored when the feed began, and not news. */
  declare readonly isSnapshot: boolean;
  /** The message itself, as it was published. */
  declare readonly json: string;

  /** Made by a feed. @internal */
  constructor(fields: Omit<SessionUpdate, "position" | "isLive">) {
    Object.assign(this, fields);
  }

  /** Where `follow({ after })` goes on; null for a snapshot. */
  get position(): string | null {
    return this.isSnapshot ? null : this.cursor;
  }

  /** Whether the session is live now: it may have expired since it was published. */
  get isLive(): boolean {
    const { live, expire_at } = this.session;
    return live && (expire_at === null || expire_at > Date.now());
  }
}

/** What `SessionFeed.status` tells about a session. */
export type LiveStatus = "live" | "ended" | "unknown";

/** What an iterator of a feed is. */
export type Updates = AsyncGenerator<SessionUpdate, void, undefined>;

/**
 * What was published, or is stored as a session's state.
 *
 * `where`: the channel or the key that it is from, for the UnreadableMessageError which it may throw.
 *
 * @internal
 */
export function published(json: string, where: string, partition = 0, isSnapshot = false): SessionUpdate {
  const { read, ...common } = parse(json, where, false);
  return new SessionUpdate({ ...common, outcome: "applied", cursor: read.cursor, json, partition, isSnapshot });
}

/** The update in an entry of the stream. Throws like `published`. @internal */
export function streamed(
  json: string,
  where: string,
  cursor: string,
  outcome: SessionUpdate["outcome"],
  partition: number,
): SessionUpdate {
  const { read: _, ...common } = parse(json, where, true);
  const complete = json.replace('"cursor":null', `"cursor":"${cursor}"`);
  return new SessionUpdate({ ...common, outcome, cursor, json: complete, partition, isSnapshot: false });
}

type Checked = Pick<SessionUpdate, "revision" | "previousStatus" | "event" | "session">;

/** Checks what the feed and its users rely on. Other keys are kept, and other values are tolerated. */
function parse(json: string, where: string, isEntry: boolean): Checked & { read: any } {
  let read: any;
  try {
    read = JSON.parse(json);
  } catch {
    throw new UnreadableMessageError(`${where}: it is no JSON`);
  }
  const need = (field: string, isGood: unknown): void => {
    if (!isGood) throw new UnreadableMessageError(`${where}: ${field}: is not as this version knows it`);
  };
  const { event, session, revision, previous_status: previousStatus } = read ?? {};
  const isText = (value: unknown): boolean => typeof value === "string";
  const isTime = (value: unknown): boolean => Number.isSafeInteger(value) && (value as number) >= 0;
  need("schema_version", read?.schema_version === 1);
  need("cursor", isEntry ? read.cursor === null : isText(read.cursor) && /^\d{1,20}-\d{1,20}$/.test(read.cursor));
  need("revision", (isEntry && revision === null) || (isTime(revision) && revision > 0));
  need("previous_status", previousStatus === null || isText(previousStatus));
  need("event.id", isText(event?.id) && /^[\w-]{1,150}$/.test(event.id));
  need("event.type", isText(event.type) && event.type.length <= 128);
  need("event.source", isText(event.source));
  need("event.occurred_at", isTime(event.occurred_at));
  for (const field of ["id", "user_id"]) need(`session.${field}`, isId(session?.[field]));
  need("session.status", isText(session.status));
  need("session.live", typeof session.live === "boolean");
  for (const field of ["expire_at", "abandon_at", "updated_at", "created_at", "last_active_at"]) {
    need(`session.${field}`, session[field] === null || isTime(session[field]));
  }
  need("session.tasks", Array.isArray(session.tasks));
  need("session.actor", session.actor === null || typeof session.actor === "object");
  return { read, revision, previousStatus, event, session };
}
