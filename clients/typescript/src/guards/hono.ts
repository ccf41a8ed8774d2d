import { requestChecker, type GuardOptions, type StatusSource } from "./guard.js";

export type { GuardOptions, OnError, RequestAuth, StatusSource } from "./guard.js";

/**
 * Middleware for Hono that refuses requests whose session is not live. It belongs after Clerk's:
 *
 *     app.use(clerkMiddleware(), sessionGuard(feed));
 *
 * 401: the session has ended. 503: Redis can't tell. `source`: a feed, or its mirror.
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
