// What a mirror keeps of the sessions of one partition: a Map from id to text, or to a number. Texts of one byte a
// character take V8 the least: 48 bytes for an id, 56 for an end and a user. The number costs nothing besides its place.

export const HOUR_MS = 3_600_000;
/** Milliseconds after which the relay forgets any session that is over; and one that had no end, after exactly that. */
export const MAX_KEPT_MS = 400 * 86_400_000;

/**
 * Of an open session, its end and its user; of one that ended, the hour, by Unix time, in which to forget it.
 *
 * The end, in Unix milliseconds, is in the codes of six characters. The first bit says that the session is live until
 * then; without it, it is not live whatever the time is.
 */
export type Kept = string | number;

const LIVE = 2 ** 47;
/** The end of a session that has none. */
const NONE = LIVE - 1;
const END_LENGTH = 6;

const bitsOf = (kept: string): number => {
  let bits = 0;
  for (let at = 0; at < END_LENGTH; at++) bits = bits * 256 + kept.charCodeAt(at);
  return bits;
};

/** Longer than an id and what comes before it: docs/contract.md, section 7. */
const scratch = Buffer.alloc(256);

/** A text by itself, behind what is in front of it. V8 keeps what a text was cut out of, and what it was joined from. */
const copied = (text: string, at = 0): string => scratch.toString("latin1", 0, at + scratch.write(text, at, "latin1"));

/** Whether a session is live; `now`: Unix milliseconds. */
export const isLiveAt = (kept: Kept, now: number): boolean => typeof kept === "string" && bitsOf(kept) - LIVE > now;

/** Whose session it is, if it is open. */
export const userOf = (kept: Kept | undefined): string | null =>
  typeof kept === "string" ? kept.slice(END_LENGTH) : null;

/** Sessions by their ids. Times are Unix milliseconds. */
export class Table {
  readonly kept = new Map<string, Kept>();
  /** Number of the open ones. Those whose end has passed count until `forget` comes to them. */
  open = 0;

  /** `keepEnded`: milliseconds that the id of a session stays after the session's end. */
  constructor(readonly keepEnded: number) {}

  /** Sets the state of a session. `end`: null if it has none. */
  put(sessionId: string, userId: string, end: number | null, isOpen: boolean, isLive: boolean, now: number): void {
    const { kept } = this;
    const before = kept.get(sessionId);
    const id = before === undefined ? copied(sessionId) : sessionId;
    if (typeof before === "string") this.open--;
    if (!isOpen && !isLive) {
      kept.set(id, this.#forgetIn(end ?? NONE, now));
      return;
    }
    this.open++;
    scratch.writeUIntBE(Math.min(end ?? NONE, NONE) + (isLive ? LIVE : 0), 0, END_LENGTH);
    kept.set(id, copied(userId, END_LENGTH));
  }

  /** Drops a session that ended long ago, and keeps less of one whose end has passed. */
  forget(sessionId: string, now: number): void {
    let kept = this.kept.get(sessionId);
    if (typeof kept === "string") {
      const end = bitsOf(kept) % LIVE;
      if (end > now) return;
      this.kept.set(sessionId, (kept = this.#forgetIn(end, end)));
      this.open--;
    }
    if (kept !== undefined && kept <= now / HOUR_MS) this.kept.delete(sessionId);
  }

  /** The hour at whose begin the relay has forgotten a session that is over now, at the latest. */
  #forgetIn(end: number, now: number): number {
    const left = end >= NONE ? MAX_KEPT_MS : Math.min(Math.max(end - now, 0) + this.keepEnded, MAX_KEPT_MS);
    return Math.floor((now + left) / HOUR_MS) + 1;
  }
}
