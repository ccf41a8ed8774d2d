// What the guards have in common: whose session a request has, and whether the request is refused.
import type { LiveStatus } from "../update.js";

/** What tells whether a session is live: a `SessionFeed`, or its mirror. */
export interface StatusSource {
  /** Whether the session is live. Throws or rejects if that can't be told. */
  status(sessionId: string, userId?: string): LiveStatus | Promise<LiveStatus>;
}

/** Of whom a request is, as Clerk's `auth()` tells it. */
export interface RequestAuth {
  /** Null or undefined if the request has none. */
  readonly sessionId?: string | null | undefined;
  /** With partitions, it saves asking all of them. */
  readonly userId?: string | null | undefined;
  /** Their `exp` and `iat` tell how long the token is valid. */
  readonly sessionClaims?: object | null | undefined;
  /** The kind of token; default: `session_token`. Machine tokens have no session. */
  readonly tokenType?: string | null | undefined;
}

/** What a guard does where Redis or the mirror can't tell whether a session is live. */
export type OnError = "refuse" | "allow" | ((error: unknown) => "refuse" | "allow");

/** How to treat requests whose session is neither live nor ended. */
export interface CheckOptions {
  /** Lets in an `unknown` session, unless its token is valid for longer than a minute. Default: true. */
  trustToken?: boolean | undefined;
  /** `refuse` (503, the default), `allow`, or a function that decides. Without one, `console.warn` tells of outages. */
  onError?: OnError | undefined;
}

/** The options of a guard. */
export interface GuardOptions<Request> extends CheckOptions {
  /** Whose session a request has; null if it has none. Default: what Clerk's own middleware found. */
  auth?: ((request: Request) => RequestAuth | null | undefined | Promise<RequestAuth | null | undefined>) | undefined;
}

/** The response to a request that is refused. @internal */
export interface Refusal {
  readonly status: 401 | 503;
  readonly headers: Record<string, string>;
  /** Problem details (RFC 9457). */
  readonly body: string;
}

// Seconds that Clerk's session tokens are valid. Those of the Backend API and of JWT templates may last longer, and
// outlive the end of a session.
const SHORT_LIVED = 60;

const refusal = (
  status: 401 | 503,
  title: string,
  code: string,
  detail: string,
  header: [string, string],
): Refusal => ({
  status,
  headers: { "Content-Type": "application/problem+json", [header[0]]: header[1] },
  body: JSON.stringify({ type: "about:blank", title, status, detail, code }),
});
const unauthorized = (code: string, detail: string): Refusal =>
  refusal(401, "Unauthorized", code, detail, ["WWW-Authenticate", 'Bearer error="invalid_token"']);
const NOT_LIVE = unauthorized("session_not_live", "The session is not live");
const NO_SESSION = unauthorized("session_missing", "The token names a user, but no session");
const UNAVAILABLE = "It is unknown whether the session is live";
const CAN_NOT_TELL = refusal(503, "Service unavailable", "status_unavailable", UNAVAILABLE, ["Retry-After", "1"]);

/**
 * Calls `onError`; or, for its other values, warns of the first error after a success, and returns what to do.
 *
 * @internal
 */
export const outages = (onError: OnError = "refuse") => {
  let isTold = false;
  return {
    failed(error: unknown): "refuse" | "allow" {
      if (typeof onError === "function") return onError(error);
      if (!isTold) console.warn(`clerk-session-feed: it is unknown whether sessions are live (${onError}): ${error}`);
      isTold = true;
      return onError;
    },
    worked() {
      isTold = false;
    },
  };
};

/** Makes a function that resolves to the refusal of who is not let in. @internal */
export const checker = (source: StatusSource, { trustToken = true, onError }: CheckOptions = {}) => {
  if (typeof source?.status !== "function") throw new TypeError("A guard needs a SessionFeed or its mirror");
  const { failed, worked } = outages(onError);
  return async ({ sessionId, userId, sessionClaims, tokenType }: RequestAuth): Promise<Refusal | undefined> => {
    // Clerk's middleware takes tokens of JWT templates for sessions, though they have no `sid` and live for years.
    const isOfSession = (tokenType ?? "session_token") === "session_token";
    if (!sessionId && userId && isOfSession) return NO_SESSION;
    if (!sessionId) return undefined; // whether that is allowed, is the application's business
    let status: LiveStatus;
    try {
      status = await source.status(sessionId, userId ?? undefined);
    } catch (error) {
      return failed(error) === "allow" ? undefined : CAN_NOT_TELL;
    }
    worked();
    const { exp, iat } = (sessionClaims ?? {}) as { exp?: number; iat?: number };
    const isFresh = exp === undefined || iat === undefined || exp - iat <= SHORT_LIVED;
    return status === "live" || (status === "unknown" && trustToken && isFresh) ? undefined : NOT_LIVE;
  };
};

/** The same for requests; `found` returns what Clerk's middleware left in a request. @internal */
export const requestChecker = <Request>(
  source: StatusSource,
  options: GuardOptions<Request>,
  found: (request: Request) => unknown,
  advice: string,
) => {
  const check = checker(source, options);
  return async (request: Request): Promise<Refusal | undefined> => {
    let auth: unknown;
    if (options.auth) {
      auth = (await options.auth(request)) ?? { sessionId: null };
    } else {
      auth = found(request);
      if (typeof auth === "function") auth = auth();
    }
    return check(asAuth(auth, options.auth ? "Return { sessionId, userId } from the option `auth`" : advice));
  };
};

/** Throws for what can't be Clerk's: to take it for a request without a session would let in everybody. @internal */
export const asAuth = (auth: unknown, advice: string): RequestAuth => {
  const isAuth = typeof auth === "object" && auth !== null && ("sessionId" in auth || "tokenType" in auth);
  const { sessionId = null } = (isAuth ? auth : {}) as RequestAuth;
  if (!isAuth || (sessionId !== null && typeof sessionId !== "string"))
    throw new TypeError(`clerk-session-feed: the request has no auth of Clerk's. ${advice}`);
  return auth as RequestAuth;
};
