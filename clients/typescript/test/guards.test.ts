// The guards in real servers of Express, Fastify and Hono, behind Clerk's own middleware, which verifies tokens that
// are signed with a key of the tests' own. Next.js is too large for that: its guard gets requests of a stand-in, with
// an `auth` that does as Clerk's.
import { once } from "node:events";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { clerkMiddleware as clerkExpress, getAuth } from "@clerk/express";
import { clerkPlugin } from "@clerk/fastify";
import { clerkMiddleware as clerkHono } from "@clerk/hono";
import { createAdaptorServer } from "@hono/node-server";
import express from "express";
import Fastify from "fastify";
import { Hono } from "hono";
import { afterEach, beforeEach, describe, expect, it, onTestFinished, vi } from "vitest";
import { MirrorTooOldError } from "../src/errors.js";
import { sessionGuard as expressGuard } from "../src/guards/express.js";
import { sessionGuard as fastifyGuard } from "../src/guards/fastify.js";
import type { GuardOptions, RequestAuth, StatusSource } from "../src/guards/guard.js";
import { sessionGuard as honoGuard } from "../src/guards/hono.js";
import { sessionCheck, sessionGuard as nextGuard } from "../src/guards/next.js";
import { KEYS, signedIn } from "./support/clerk.js";

const STATUSES = { sess_live: "live", sess_ended: "ended", sess_new: "unknown" } as const;

/** Knows the sessions of STATUSES, and whose status was asked for. */
class Source {
  readonly asked: [string, string | undefined][] = [];
  error: Error | undefined;

  async status(sessionId: string, userId?: string) {
    this.asked.push([sessionId, userId]);
    if (this.error) throw this.error;
    return STATUSES[sessionId as keyof typeof STATUSES];
  }
}

type Options = GuardOptions<any>;
/** Starts a server whose only route, behind the guard, says "in"; resolves to its address. */
type Start = (source: StatusSource, options?: Options, hasClerk?: boolean) => Promise<string>;

async function listening(server: Server): Promise<string> {
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  onTestFinished(() => void server.close());
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}/`;
}

const startExpress: Start = (source, options, hasClerk = true) => {
  const app = express();
  if (hasClerk) app.use(clerkExpress(KEYS));
  app.use(expressGuard(source, options));
  app.get("/", (_, response) => void response.send("in"));
  return listening(createServer(app));
};

const startFastify: Start = async (source, options, hasClerk = true) => {
  const app = Fastify();
  if (hasClerk) await app.register(clerkPlugin, KEYS);
  app.addHook("preHandler", fastifyGuard(source, options));
  app.get("/", async () => "in");
  onTestFinished(() => app.close());
  return app.listen({ host: "127.0.0.1", port: 0 });
};

const startHono: Start = (source, options, hasClerk = true) => {
  const app = new Hono();
  if (hasClerk) app.use(clerkHono(KEYS));
  app.use(honoGuard(source, options));
  app.get("/", (context) => context.text("in"));
  app.onError((error, context) => context.text(error.message, 500));
  return listening(createAdaptorServer({ fetch: app.fetch }) as Server);
};

// Express does Clerk's part, since `auth` of @clerk/nextjs/server works only within Next.js.
const startNext: Start = (source, options = {}) => {
  const app = express();
  app.use(clerkExpress(KEYS));
  app.get("/", async (request, response) => {
    const auth = async () => (options.auth ? options.auth(request) : getAuth(request)) as RequestAuth;
    const handler = nextGuard(source, { ...options, auth })(() => new Response("in"));
    const { status, headers, body } = await handler();
    response.status(status).set(Object.fromEntries(headers));
    response.send(body && Buffer.from(await new Response(body).arrayBuffer()));
  });
  return listening(createServer(app));
};

let source: Source;
beforeEach(() => {
  source = new Source();
  vi.spyOn(console, "warn").mockImplementation(() => undefined);
});
afterEach(() => vi.restoreAllMocks());

const get = (url: string, headers: Record<string, string> = {}) => fetch(url, { headers });
const warnings = () => vi.mocked(console.warn).mock.calls.flat();

describe.each([
  ["express", startExpress],
  ["fastify", startFastify],
  ["hono", startHono],
  ["next", startNext],
])("%s", (name, start) => {
  it("lets in who has a live session", async () => {
    const response = await get(await start(source), signedIn("sess_live"));
    expect([response.status, await response.text()]).toEqual([200, "in"]);
  });

  it("asks for the session with its user", async () => {
    await get(await start(source), signedIn("sess_live", { sub: "user_7" }));
    expect(source.asked).toEqual([["sess_live", "user_7"]]);
  });

  it("refuses an ended session with problem details", async () => {
    const response = await get(await start(source), signedIn("sess_ended"));
    expect(response.status).toBe(401);
    expect(response.headers.get("content-type")).toMatch(/^application\/problem\+json(;|$)/);
    expect(response.headers.get("www-authenticate")).toBe('Bearer error="invalid_token"');
    expect(await response.json()).toEqual({
      type: "about:blank",
      title: "Unauthorized",
      status: 401,
      detail: "The session is not live",
      code: "session_not_live",
    });
  });

  it("lets pass a request without a session, and asks nobody", async () => {
    expect((await get(await start(source))).status).toBe(200);
    expect(source.asked).toEqual([]);
  });

  it("lets pass a pending session, which is signed out to auth()", async () => {
    expect((await get(await start(source), signedIn("sess_ended", { sts: "pending" }))).status).toBe(200);
    expect(source.asked).toEqual([]);
  });

  it("refuses a token that names a user, but no session", async () => {
    const response = await get(await start(source), signedIn(undefined));
    expect([response.status, ((await response.json()) as { code: string }).code]).toEqual([401, "session_missing"]);
  });

  it("lets in an unknown session, whose token is fresh", async () => {
    expect((await get(await start(source), signedIn("sess_new"))).status).toBe(200);
  });

  it("refuses an unknown session whose token is valid for long", async () => {
    const exp = Math.floor(Date.now() / 1000) + 3600;
    expect((await get(await start(source), signedIn("sess_new", { exp }))).status).toBe(401);
  });

  it("refuses an unknown session without trustToken", async () => {
    expect((await get(await start(source, { trustToken: false }), signedIn("sess_new"))).status).toBe(401);
  });

  it("refuses with 503 where the status can't be told", async () => {
    source.error = new Error("connect ECONNREFUSED");
    const response = await get(await start(source), signedIn("sess_live"));
    expect([response.status, response.headers.get("retry-after")]).toEqual([503, "1"]);
    expect(response.headers.get("content-type")).toMatch(/^application\/problem\+json(;|$)/);
    expect(await response.json()).toMatchObject({ status: 503, code: "status_unavailable" });
  });

  it("lets in where the status can't be told, if it may", async () => {
    source.error = new Error("connect ECONNREFUSED");
    expect((await get(await start(source, { onError: "allow" }), signedIn("sess_live"))).status).toBe(200);
  });

  it("takes a status without a Promise, and the error of a mirror that is too old", async () => {
    const mirror = {
      status(sessionId: string) {
        if (sessionId === "sess_live") return "live" as const;
        throw new MirrorTooOldError(7000, 5000, "Redis is away");
      },
    };
    const url = await start(mirror);
    expect((await get(url, signedIn("sess_live"))).status).toBe(200);
    expect((await get(url, signedIn("sess_other"))).status).toBe(503);
  });

  it("asks the option auth whose session it is", async () => {
    const url = await start(source, { auth: async () => ({ sessionId: "sess_ended" }) });
    expect((await get(url)).status).toBe(401);
  });

  it("refuses a user without a session, whoever says so, but for machine tokens", async () => {
    for (const sessionId of [null, undefined, ""]) {
      const url = await start(source, { auth: () => ({ sessionId, userId: "user_1" }) });
      const response = await get(url);
      expect([response.status, ((await response.json()) as { code: string }).code]).toEqual([401, "session_missing"]);
    }
    const url = await start(source, { auth: () => ({ sessionId: null, userId: "user_1", tokenType: "api_key" }) });
    expect((await get(url)).status).toBe(200);
  });

  it.each([{ sid: "sess_ended" }, { sessionId: 7 }, "sess_ended"])("lets nobody in whose auth is %j", async (auth) => {
    const url = await start(source, { auth: () => auth as RequestAuth });
    expect((await get(url)).status).toBe(500);
  });

  it.skipIf(name === "next")("lets nobody in without Clerk's middleware before it", async () => {
    expect((await get(await start(source, {}, false), signedIn("sess_live"))).status).toBe(500);
  });
});

it("express: says in the error what is missing", async () => {
  const next = vi.fn();
  await expressGuard(source)({}, {} as never, next);
  expect(next.mock.calls).toEqual([
    [expect.objectContaining({ message: expect.stringContaining("clerkMiddleware()") })],
  ]);
});

it("fastify: a hook that comes before Clerk's lets nobody in", async () => {
  const app = Fastify();
  app.addHook("preHandler", fastifyGuard(source));
  void app.register(clerkPlugin, KEYS);
  app.get("/", async () => "in");
  onTestFinished(() => app.close());
  const response = await get(await app.listen({ host: "127.0.0.1", port: 0 }), signedIn("sess_live"));
  expect(response.status).toBe(500);
  expect(await response.json()).toMatchObject({ message: expect.stringContaining("app.register(clerkPlugin) before") });
});

it("fastify: guards a single route", async () => {
  const app = Fastify();
  await app.register(clerkPlugin, KEYS);
  app.get("/guarded", { preHandler: fastifyGuard(source) }, async () => "in");
  app.get("/open", async () => "in");
  onTestFinished(() => app.close());
  const url = await app.listen({ host: "127.0.0.1", port: 0 });
  expect((await get(`${url}/guarded`, signedIn("sess_ended"))).status).toBe(401);
  expect((await get(`${url}/open`, signedIn("sess_ended"))).status).toBe(200);
});

it("next: the check of proxy.ts resolves to the response of who is refused, and to undefined otherwise", async () => {
  const check = sessionCheck(source);
  expect((await check(async () => ({ sessionId: "sess_ended" })))?.status).toBe(401);
  expect(await check(async () => ({ sessionId: "sess_live" }))).toBeUndefined();
});

it("next: the handler gets the guard's arguments", async () => {
  const guard = nextGuard(source, { auth: () => ({ sessionId: null }) });
  const handler = guard((request: Request, { params }: { params: { id: string } }) =>
    Response.json([request.method, params.id]),
  );
  const response = await handler(new Request("http://127.0.0.1/"), { params: { id: "7" } });
  expect(await response.json()).toEqual(["GET", "7"]);
});

it("next: what auth() throws is passed on, since Next.js signals with errors", async () => {
  const signal = new Error("NEXT_REDIRECT");
  const guard = nextGuard(source, { auth: () => Promise.reject(signal), onError: "allow" });
  await expect(guard(() => new Response("in"))()).rejects.toBe(signal);
});

describe("an outage", () => {
  const check = sessionCheck;
  const auth = () => ({ sessionId: "sess_live" });

  it("is told once, and again after a success", async () => {
    const checked = check(source);
    source.error = new Error("connect ECONNREFUSED");
    await checked(auth);
    await checked(auth);
    expect(warnings()).toEqual([
      expect.stringMatching(/^clerk-session-feed: .*\(refuse\): Error: connect ECONNREFUSED$/),
    ]);
    source.error = undefined;
    await checked(auth);
    source.error = new Error("LOADING");
    await checked(auth);
    expect(warnings()).toHaveLength(2);
  });

  it("is for the option onError to judge, where it is a function", async () => {
    source.error = new Error("connect ECONNREFUSED");
    const onError = vi.fn(() => "allow" as const);
    expect(await check(source, { onError })(auth)).toBeUndefined();
    expect(onError.mock.calls).toEqual([[source.error]]);
    expect(warnings()).toEqual([]);
  });

  it("refuses if that function returns nothing", async () => {
    source.error = new Error("connect ECONNREFUSED");
    expect((await check(source, { onError: () => undefined as never })(auth))?.status).toBe(503);
  });
});

it("a guard without a feed is an error at once", () => {
  expect(() => expressGuard(undefined as unknown as StatusSource)).toThrow(TypeError);
});
