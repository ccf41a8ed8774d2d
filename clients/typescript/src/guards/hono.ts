import { requestChecker, type GuardOptions, type StatusSource } from "./guard.js";

export type { GuardOptions, OnError, RequestAuth, StatusSource } from "./guard.js";

/**
 * Middleware for Hono that refuses requests whose session is not live. It belongs after Clerk's:
 *
 *     app.use(clerkMiddleware(), sessionGuard(feed));
 *
 * A request without a session passes. 401: the session has ended. 503: Redis can't tell.
 *
 * @param source - A `SessionFeed`, or its mirror.
 * @param options - See `GuardOptions`. `auth` is `getAuth(c)` of `@clerk/hono` (or `@hono/clerk-auth`), if left out.
 */
export const sessionGuard = <Context = any>(source: StatusSource, options: GuardOptions<Context> = {}) => {
  const check = requestChecker(
    source,
    options,
    (context: any) => context.get("clerkAuth"),
    "Call app.use(clerkMiddleware()) before the guard, or give it the option `auth`",
  );
  return async (context: any, next: () => Promise<void>): Promise<Response | void> => {
    const refusal = await check(context);
    return refusal ? new Response(refusal.body, refusal) : next();
  };
};
