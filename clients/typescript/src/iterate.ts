// What iterators do besides yielding: they end when their connection is closed, and several become one.
import type { Connection } from "./connection.js";
import { FeedClosedError } from "./errors.js";
import type { Updates } from "./stream.js";
import type { SessionUpdate } from "./update.js";

/** The updates of one slot, and the connection over which they come. */
export interface Follower {
  readonly connection: Connection;
  readonly updates: Updates;
}

/** Yields updates until the connection is closed; closes it when the caller stops. */
export async function* untilClosed({ connection, updates }: Follower): Updates {
  try {
    for (let next; !(next = await updates.next()).done;) {
      yield next.value;
      // The rules learn that the caller is done with the update.
      if (connection.isClosed) await updates.throw(new FeedClosedError());
    }
  } catch (error) {
    if (!(error instanceof FeedClosedError)) throw error;
  } finally {
    await updates.return();
    await connection.close();
  }
}

/**
 * One iterator over all, which yields updates as they come.
 *
 * When it is left, or the signal is aborted, the connections are closed at once, and not when Redis has responded.
 * `open`: gets what closes them, as long as the iterator runs. `isOver`: whether that was closed before it began.
 */
export function merge(
  followers: readonly Follower[],
  open: Set<() => Promise<void>>,
  signal?: AbortSignal,
  isOver = (): boolean => false,
): Updates {
  const close = async (): Promise<void> => {
    await Promise.all(followers.map(({ connection }) => connection.close()));
  };
  const onAbort = (): void => void close();
  const merged = run();
  const leave = merged.return.bind(merged);
  return Object.assign(merged, {
    return: async () => {
      await close();
      return leave();
    },
  });

  async function* run(): Updates {
    open.add(close);
    signal?.addEventListener("abort", onAbort);
    try {
      if (signal?.aborted || isOver()) await close();
      yield* mergeAll(
        followers.map(({ connection, updates }) => ({ connection, updates: untilClosed({ connection, updates }) })),
      );
    } finally {
      open.delete(close);
      signal?.removeEventListener("abort", onAbort);
    }
  }
}

async function* mergeAll(followers: readonly Follower[]): Updates {
  type Result = { follower: Follower; next?: IteratorResult<SessionUpdate, void>; error?: unknown };
  // Not with Promise.race: what it waits for keeps all that it was ever raced against.
  const ready: Result[] = [];
  let wake = (): void => undefined;
  const step = (follower: Follower): void => {
    const tell = (result: Omit<Result, "follower">): void => {
      ready.push({ follower, ...result });
      wake();
    };
    follower.updates.next().then(
      (next) => tell({ next }),
      (error: unknown) => tell({ error }),
    );
  };
  try {
    followers.forEach(step);
    for (let running = followers.length; running;) {
      if (!ready.length) await new Promise<void>((resolve) => (wake = resolve));
      const { follower, next, error } = ready.shift() as Result;
      if (!next) throw error;
      if (next.done) {
        running--;
      } else if (follower.connection.isClosed) {
        // Its caller never gets it, so it is not done.
        await follower.updates.return();
        running--;
      } else {
        yield next.value;
        step(follower);
      }
    }
  } finally {
    await Promise.all(followers.map(({ connection }) => connection.close()));
    await Promise.all(followers.map(({ updates }) => updates.return()));
  }
}
