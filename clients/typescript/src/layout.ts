import { PartitionsError } from "./errors.js";

/** Of the mark: `8`; or, while the data is moved, `1>8@<when that began, in Unix milliseconds>`. */
export const FIELD = "partitions";

/** Throws a PartitionsError if a mark is there and says another number of partitions than the feed's. */
export function refuseOtherNumber(partitions: number, mark: string | null): void {
  if (mark === null || mark === String(partitions)) return;
  const [, was, to] = /^(\d{1,4})>(\d{1,4})@\d{1,15}$/.exec(mark) ?? [];
  if (was && to) {
    const where = `the data is being moved from ${Number(was)} partitions to ${Number(to)}`;
    const todo = `wait for \`session-relay repartition\`, then set partitions: ${Number(to)}`;
    throw new PartitionsError(`partitions: ${partitions}, but ${where}: ${todo}.`, true);
  }
  if (/^\d+$/.test(mark)) {
    throw new PartitionsError(`partitions: ${partitions}, but the data has ${mark}: set partitions: ${mark}.`);
  }
  throw new PartitionsError("The data has a mark that this version can't read: upgrade clerk-session-feed.");
}
