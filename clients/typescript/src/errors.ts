/** Called with the error before each new attempt to connect. */
export type OnReconnect = (error: Error) => void;

/** What a feed throws, besides the errors of the Redis client. */
export class FeedError extends Error {
  override name = "FeedError";
}

/** The stream was trimmed past the cursor (STREAM_MAXLEN), or Redis lost it. What was missed is in the snapshots. */
export class CursorLostError extends FeedError {
  override name = "CursorLostError";
  constructor(
    readonly cursor: string,
    readonly partition: number,
  ) {
    super(`The stream was trimmed past ${cursor}, or Redis lost it: begin again from the snapshots.`);
  }
}

/** The data has another number of partitions than the feed, or is just being moved to one. The text says what to do. */
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
    /** Milliseconds; Infinity before it has read all sessions. */
    readonly age: number,
    readonly maxAge: number,
    readonly reason: string,
    cause?: unknown,
  ) {
    const old = age === Infinity ? "not ready" : `${(age / 1000).toFixed(1)} s old, and maxAge is ${maxAge / 1000} s`;
    // What Redis says may end with a full stop.
    super(`The mirror is ${old}: ${reason.replace(/\.$/, "")}.`, cause === undefined ? undefined : { cause });
  }
}
