import { requestChecker, type GuardOptions, type StatusSource } from "./guard.js";

export type { GuardOptions, OnError, RequestAuth, StatusSource } from "./guard.js";

/** What the guard uses of a response. */
export interface ResponseLike {
  statusCode: number;
  setHeader(name: string, value: string): unknown;
  end(body: string): unknown;
}

/**
 * Middleware for Express that refuses requests whose session is not live. It belongs after Clerk's:
 *
 *     app.use(clerkMiddleware(), sessionGuard(feed));
 *
 * 401: the session has ended. 503: Redis can't tell. `source`: a feed, or its mirror.
 */
export const sessionGuard = <Request = any>(source: StatusSource, options: GuardOptions<Request> = {}) => {
  const check = requestChecker(
    source,
    options,
    (request: any) => request.auth,
    "Call app.use(clerkMiddleware()) before the guard, or give it the option `auth`",
  );
  return async (request: any, response: ResponseLike, next: (error?: unknown) => void): Promise<void> => {
    try {
      const refusal = await check(request);
      if (refusal) {
        response.statusCode = refusal.status;
        for (const [name, value] of Object.entries(refusal.headers)) response.setHeader(name, value);
        response.end(refusal.body);
        return;
      }
    } catch (error) {
      next(error);
      return;
    }
    next();
  };
};
