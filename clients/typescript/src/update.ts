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
  return new SessionUpdate({ ...parse(json, where, false), outcome: "applied", json, partition, isSnapshot });
}

/** The update in an entry of the stream. Throws like `published`. @internal */
export function streamed(
  json: string,
  where: string,
  cursor: string,
  outcome: SessionUpdate["outcome"],
  partition: number,
): SessionUpdate {
  const complete = json.replace('"cursor":null', `"cursor":"${cursor}"`);
  const read = parse(json, where, true);
  return new SessionUpdate({ ...read, cursor, outcome, json: complete, partition, isSnapshot: false });
}

type Check = (value: any) => boolean;
/** What the fields of an object have to be. */
type Shape = [field: string, is: Check][];

/** The id of a stream entry, as Redis writes it. */
const CURSOR = /^(0|[1-9]\d{0,19})-(0|[1-9]\d{0,19})$/;
const isText: Check = (value) => typeof value === "string";
const isFlag: Check = (value) => typeof value === "boolean";
const isTime: Check = (value) => Number.isInteger(value) && value >= 0 && value <= 1e14;
const isRevision: Check = (value) => Number.isInteger(value) && value > 0;
const orNull =
  (is: Check): Check =>
  (value) =>
    value === null || is(value);
/** Whether it is an object of that shape; it may have other keys, too. */
const hasShape =
  (shape: Shape): Check =>
  (value) =>
    typeof value === "object" &&
    value !== null &&
    !Array.isArray(value) &&
    shape.every(([field, is]) => is(value[field]));

// What models.py of the client for Python says: the same of every message. A later version may add keys, and texts.
const ACTIVITY: Shape = [
  "object",
  "id",
  "device_type",
  "browser_name",
  "browser_version",
  "ip_address",
  "city",
  "country",
].map((field) => [field, orNull(isText)]);
ACTIVITY.push(["is_mobile", orNull(isFlag)]);
const isTask = hasShape([["key", isText]]);
const EVENT: Shape = Object.entries({
  // An expiry's is longer than others: `exp_<session id>_<expire_at>`.
  id: (value) => isText(value) && /^([\w-]{1,128}|exp_[\w-]{1,128}_\d{1,15})$/.test(value),
  type: (value) => isText(value) && (value.length <= 128 || [...value].length <= 128),
  source: isText,
  occurred_at: isTime,
  instance_id: orNull(isId),
});
const SESSION: Shape = Object.entries({
  object: (value = "session") => value === "session",
  id: isId,
  user_id: isId,
  client_id: orNull(isId),
  actor: orNull(hasShape([])),
  status: isText,
  live: isFlag,
  last_active_organization_id: orNull(isId),
  last_active_at: orNull(isTime),
  latest_activity: orNull(hasShape(ACTIVITY)),
  expire_at: orNull(isTime),
  abandon_at: orNull(isTime),
  updated_at: orNull(isTime),
  created_at: orNull(isTime),
  tasks: (value) => Array.isArray(value) && value.every(isTask),
});

type Checked = Pick<SessionUpdate, "cursor" | "revision" | "previousStatus" | "event" | "session">;

/** Checks what the feed and its users rely on. Other keys are kept, and other values are tolerated. */
function parse(json: string, where: string, isEntry: boolean): Checked {
  let read: any;
  try {
    read = JSON.parse(json);
  } catch {
    throw new UnreadableMessageError(`${where}: it is no JSON`);
  }
  const need = (isGood: boolean, field: string, of = ""): void => {
    if (!isGood) throw new UnreadableMessageError(`${where}: ${of}${field}: is not as this version knows it`);
  };
  const { cursor, event, session, revision, previous_status: previousStatus } = read ?? {};
  need(read?.schema_version === 1, "schema_version");
  need(isEntry ? cursor === null : isText(cursor) && CURSOR.test(cursor), "cursor");
  need((isEntry && revision === null) || isRevision(revision), "revision");
  need(previousStatus === null || isText(previousStatus), "previous_status");
  for (const [field, is] of EVENT) need(is(event?.[field]), field, "event.");
  for (const [field, is] of SESSION) need(is(session?.[field]), field, "session.");
  return { cursor, revision, previousStatus, event, session };
}
