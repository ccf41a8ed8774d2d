import { requestChecker, type GuardOptions, type StatusSource } from "./guard.js";

export type { GuardOptions, OnError, RequestAuth, StatusSource } from "./guard.js";

/** What the guard uses of a reply. */
export interface ReplyLike {
  code(status: number): ReplyLike;
  headers(headers: Record<string, string>): ReplyLike;
  send(body: string): unknown;
}

/**
 * A hook for Fastify that refuses requests whose session is not live. It belongs after Clerk's plugin:
 *
 *     app.register(clerkPlugin);
 *     app.addHook("preHandler", sessionGuard(feed)); // or for one route: { preHandler: sessionGuard(feed) }
 *
 * 401: the session has ended. 503: Redis can't tell. `source`: a feed, or its mirror.
 */
export const sessionGuard = <Request = any>(source: StatusSource, options: GuardOptions<Request> = {}) => {
  const check = requestChecker(
    source,
    options,
    (request: any) => request.auth,
    "Call app.register(clerkPlugin) before you add the guard, or give it the option `auth`",
  );
  return async (request: any, reply: ReplyLike): Promise<unknown> => {
    const refusal = await check(request);
    return refusal && reply.code(refusal.status).headers(refusal.headers).send(refusal.body);
  };
};
