/** The cursor before everything that the stream holds, whatever was trimmed. @internal */
export const START = "0-0";
/**
 * The cursor of a stream that was empty. No entry has it. Unlike with START, what is trimmed behind it was missed.
 *
 * @internal
 */
export const NOTHING = "0-1";

const MAX_PART = 2n ** 64n - 1n;

/**
 * The cursor, without leading zeros; for a time alone (Unix milliseconds), the one before all entries of that time.
 *
 * Throws a RangeError if it is neither.
 *
 * @internal
 */
export function wholeCursor(cursor: string): string {
  const found = /^(\d{1,20})(?:-(\d{1,20}))?$/.exec(cursor);
  const parts = found?.slice(1).filter(Boolean).map(BigInt);
  if (!parts || parts.some((part) => part > MAX_PART)) {
    throw new RangeError(`${JSON.stringify(cursor)} is no cursor like 1795422761000-0`);
  }
  const [ms = 0n, sequence] = parts;
  if (sequence !== undefined) return `${ms}-${sequence}`;
  return ms === 0n ? START : `${ms - 1n}-${MAX_PART}`;
}

/** Compares two cursors (ids of stream entries): negative if `a` comes before `b`, 0 if they are the same. */
export function compareCursors(a: string, b: string): number {
  const [aMs = "", aSequence = ""] = a.split("-");
  const [bMs = "", bSequence = ""] = b.split("-");
  return compareDigits(aMs, bMs) || compareDigits(aSequence, bSequence);
}

// Redis writes numbers of up to 64 bits without leading zeros: of two, the longer is the greater.
const compareDigits = (a: string, b: string): number => a.length - b.length || (a < b ? -1 : a > b ? 1 : 0);

/** The greater of two cursors. @internal */
export const later = (a: string, b: string): string => (compareCursors(a, b) < 0 ? b : a);
