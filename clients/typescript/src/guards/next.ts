import { asAuth, checker, type CheckOptions, type RequestAuth, type StatusSource } from "./guard.js";

export type { CheckOptions, OnError, RequestAuth, StatusSource } from "./guard.js";

/** `auth` of `@clerk/nextjs/server`, or anything that resolves to `{ sessionId, userId }`. */
export type Auth = () => RequestAuth | Promise<RequestAuth>;

/**
 * Makes a function that resolves to the response to who is not let in, or to undefined:
 *
 *     const check = sessionCheck(feed);
 *     export default clerkMiddleware((auth) => check(auth)); // proxy.ts
 *
 * 401: the session has ended. 503: Redis can't tell. `source`: a feed, or its mirror. It needs the Node runtime, which
 * `proxy.ts` has; a `middleware.ts` has it with `export const config = { runtime: "nodejs" }`.
 */
export const sessionCheck = (source: StatusSource, options: CheckOptions = {}) => {
  const check = checker(source, options);
  return async (auth: Auth): Promise<Response | undefined> => {
    const refusal = await check(asAuth(await auth(), "Pass `auth` of @clerk/nextjs/server"));
    return refusal && new Response(refusal.body, refusal);
  };
};

/**
 * Makes a wrapper for route handlers that refuses requests whose session is not live:
 *
 *     const guard = sessionGuard(feed, { auth }); // auth of @clerk/nextjs/server
 *     export const GET = guard(async (request) => Response.json(…));
 */
export const sessionGuard = (source: StatusSource, { auth, ...options }: CheckOptions & { auth: Auth }) => {
  const check = sessionCheck(source, options);
  return <Arguments extends unknown[]>(handler: (...args: Arguments) => Response | Promise<Response>) =>
    async (...args: Arguments): Promise<Response> =>
      (await check(auth)) ?? handler(...args);
};
