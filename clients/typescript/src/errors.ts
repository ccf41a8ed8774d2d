/** Called with the error before each new attempt to connect. */
export type OnReconnect = (error: Error) => void;

/** What a feed throws, besides the errors of the Redis client, which are passed on as they are. */
export class FeedError extends Error {
  override name = "FeedError";
}

/**
 * The stream does not hold the cursor's entry any more, so entries behind it may be missing, too.
 *
 * It was trimmed past it (STREAM_MAXLEN), or Redis lost it. What was missed is in the snapshots.
 */
export class CursorLostError extends FeedError {
  override name = "CursorLostError";
  constructor(
    readonly cursor: string,
    /** The number of the partition whose stream it was. */
    readonly partition: number,
  ) {
    super(`The stream was trimmed past ${cursor}, or Redis lost it: begin again from the snapshots.`);
  }
}

/**
 * The data is divided into another number of partitions than the feed's, or is just being moved to one.
 *
 * The text is one line, and says what to do.
 */
export class PartitionsError extends FeedError {
  override name = "PartitionsError";
  constructor(
    message: string,
    /** Whether the data is being moved: an iterator waits for the end of that. */
    readonly isMoving = false,
  ) {
    super(message);
  }
}

/** The feed, or the iterator, is closed. */
export class FeedClosedError extends FeedError {
  override name = "FeedClosedError";
  constructor() {
    super("The feed is closed.");
  }
}

/** What is stored, or was published, is no message that this version can read. */
export class UnreadableMessageError extends FeedError {
  override name = "UnreadableMessageError";
}

/** Redis did not respond within the feed's `timeout`. */
export class NoResponseError extends FeedError {
  override name = "NoResponseError";
}

/** A mirror does not know for longer than its `maxAge` that it has missed nothing. */
export class MirrorTooOldError extends FeedError {
  override name = "MirrorTooOldError";
  constructor(
    /** Seconds since the mirror last knew. */
    readonly age: number,
    /** Seconds that were allowed. */
    readonly maxAge: number,
  ) {
    super(`The mirror last knew ${age.toFixed(1)} s ago that nothing was missing; maxAge is ${maxAge} s.`);
  }
}
