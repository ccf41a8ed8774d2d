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

/** The feed, or its mirror, is closed. */
export class FeedClosedError extends FeedError {
  override name = "FeedClosedError";
  constructor(what: "feed" | "mirror" = "feed") {
    super(`The ${what} is closed.`);
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

/** A mirror can't say what became of a session: it may have missed something, and `maxAge` has passed. */
export class MirrorTooOldError extends FeedError {
  override name = "MirrorTooOldError";
  constructor(
    /** Milliseconds since the mirror last knew that it had missed nothing; Infinity before it has read all sessions. */
    readonly age: number,
    /** Milliseconds, as the mirror was told. */
    readonly maxAge: number,
    /** Why, in some words. */
    readonly reason: string,
    cause?: unknown,
  ) {
    const old = age === Infinity ? "not ready" : `${(age / 1000).toFixed(1)} s old, and maxAge is ${maxAge / 1000} s`;
    super(`The mirror is ${old}: ${reason}.`, cause === undefined ? undefined : { cause });
  }
}
