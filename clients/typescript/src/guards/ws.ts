import { CursorLostError } from "../errors.js";
import type { SessionFeed } from "../feed.js";
import { outages } from "./guard.js";

/** A WebSocket of `ws`, or whatever else can be closed with a code and a reason. */
export interface SocketLike {
  close(code: number, reason: string): unknown;
  /** 2 and 3: it is closing or closed. */
  readonly readyState?: number;
  /** With it, a socket that closes is forgotten; without it, call `delete`. */
  addEventListener?(type: "close", listener: () => void): unknown;
  /** With both, nothing is read from the socket before its session is checked. */
  pause?(): unknown;
  resume?(): unknown;
  /** With it, a client that does not close in turn is cut off. */
  terminate?(): unknown;
}

export interface SocketOptions {
  /** The code of sockets whose session is not live. Default: 4401. */
  code?: number;
  /** Lets in an `unknown` session: right if you verified the client's token. Default: true. */
  trustToken?: boolean;
  /** As in `SessionFeed.follow`. */
  onReconnect?: (error: Error) => void;
  /** Called with what made it close sockets with 1013. Default: `console.warn`. */
  onError?: (error: unknown) => void;
}

export interface SessionSockets {
  /**
   * Lists a socket, then checks its session. Call it as soon as the socket is open, before anything is awaited.
   *
   * `sessionId`, `userId`: the claims `sid` and `sub` of a token that you verified. Resolves to whether the socket may
   * be used; if not, it is closed.
   */
  add(socket: SocketLike, sessionId: string | null | undefined, userId?: string | null): Promise<boolean>;
  /** Forgets a socket, and leaves it open. */
  delete(socket: SocketLike): void;
  /** Stops, and closes all sockets with 1001: nobody would notice the end of their sessions. */
  close(): void;
}

const GOING_AWAY = 1001;
const TRY_AGAIN_LATER = 1013;
// Milliseconds that a client has to close in turn: until then, `ws` still delivers what it sends.
const CLOSING = 2_000;
// Milliseconds before the feed is followed again. At Redis 6.2, the place in a stream that was emptied is lost at once.
const PAUSE = 1_000;
// Sessions whose status is asked for side by side.
const AT_ONCE = 100;

/**
 * Closes WebSockets as soon as their session ends (code 4401), and at once where it has ended already.
 *
 *     const sockets = sessionSockets(feed);
 *     if (await sockets.add(socket, claims.sid, claims.sub)) socket.on("message", …);
 *
 * Sockets stay open while Redis is away. Where it can't be told whether a session is live, they are closed with 1013:
 * if Redis does not respond when one is added, the feed can't be followed any longer, or a session was lost.
 *
 * Of sessions that expire, it learns if `session-relay expire` runs.
 */
export const sessionSockets = (
  feed: Pick<SessionFeed, "follow" | "now" | "status">,
  { code = 4401, trustToken = true, onReconnect, onError }: SocketOptions = {},
): SessionSockets => {
  // By session, each socket with its user's id.
  const sessions = new Map<string, Map<SocketLike, string | undefined>>();
  const sessionOf = new WeakMap<SocketLike, string>();
  // Those that tell when they close.
  const heard = new WeakSet<SocketLike>();
  const end = new AbortController();
  const { failed, worked } = outages(onError && ((error) => (onError(error), "refuse")));
  let watching: Promise<void> | undefined;

  const forget = (socket: SocketLike) => {
    const sessionId = sessionOf.get(socket);
    if (sessionId === undefined) return;
    sessionOf.delete(socket);
    const sockets = sessions.get(sessionId);
    sockets?.delete(socket);
    if (!sockets?.size) sessions.delete(sessionId);
  };
  const shut = (socket: SocketLike, number: number, reason: string) => {
    forget(socket);
    try {
      socket.close(number, reason);
    } catch {
      // It is closed already, and the others must not wait for it.
    }
    if (socket.terminate) setTimeout(() => socket.terminate?.(), CLOSING).unref();
  };
  const shutSession = (sessionId: string, number: number, reason: string) => {
    for (const socket of [...(sessions.get(sessionId)?.keys() ?? [])]) shut(socket, number, reason);
  };
  const shutAll = (number: number, reason: string) => {
    for (const sessionId of [...sessions.keys()]) shutSession(sessionId, number, reason);
  };
  const doubt = "it is unknown whether the session is live";

  const checkAll = async () => {
    const all = [...sessions];
    for (let n = 0; n < all.length; n += AT_ONCE)
      await Promise.all(
        all.slice(n, n + AT_ONCE).map(async ([sessionId, sockets]) => {
          const [userId] = sockets.values();
          const status = await feed.status(sessionId, userId);
          if (status === "ended") shutSession(sessionId, code, "the session is not live");
          // The token of an open socket is no longer fresh: let the client come again with a new one.
          if (status === "unknown") shutSession(sessionId, TRY_AGAIN_LATER, doubt);
        }),
      );
  };
  const watch = async (after: Awaited<ReturnType<SessionFeed["now"]>>) => {
    try {
      while (true) {
        try {
          const options = { after, signal: end.signal, ...(onReconnect && { onReconnect }) };
          for await (const update of feed.follow(options))
            if (!update.isLive) shutSession(update.session.id, code, "the session is not live");
          return shutAll(GOING_AWAY, "the server stops"); // the feed is closed
        } catch (error) {
          if (!(error instanceof CursorLostError)) throw error;
          after = await feed.now();
          await checkAll();
          await new Promise((resolve) => setTimeout(resolve, PAUSE).unref());
        }
      }
    } catch (error) {
      watching = undefined; // the next socket tries again
      shutAll(TRY_AGAIN_LATER, doubt);
      failed(error);
    }
  };
  // Resolves once the place in the stream is known from which on it is followed. Status is asked for after that, so
  // that an end is seen by one of the two.
  const start = () =>
    (watching ??= feed.now().then(
      (after) => void watch(after),
      (error) => {
        watching = undefined;
        throw error;
      },
    ));

  return {
    async add(socket, sessionId, userId) {
      forget(socket);
      if ((socket.readyState ?? 1) > 1) return false;
      if (!sessionId) {
        shut(socket, code, "the token names no session");
        return false;
      }
      const sockets = sessions.get(sessionId) ?? new Map();
      sessions.set(sessionId, sockets.set(socket, userId ?? undefined));
      sessionOf.set(socket, sessionId);
      if (!heard.has(socket)) socket.addEventListener?.("close", () => forget(socket));
      heard.add(socket);
      const isPaused = socket.pause && socket.resume;
      if (isPaused) socket.pause?.();
      try {
        if (end.signal.aborted) shut(socket, GOING_AWAY, "the server stops");
        else {
          await start();
          const status = await feed.status(sessionId, userId ?? undefined);
          worked();
          if (status === "ended" || (status === "unknown" && !trustToken))
            shut(socket, code, "the session is not live");
        }
      } catch (error) {
        shut(socket, TRY_AGAIN_LATER, doubt);
        failed(error);
      }
      if (isPaused) socket.resume?.();
      return sessionOf.get(socket) === sessionId;
    },
    delete: forget,
    close() {
      end.abort();
      shutAll(GOING_AWAY, "the server stops");
    },
  };
};
