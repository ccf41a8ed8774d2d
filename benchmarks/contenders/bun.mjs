// (d) Bun with its own HTTP server and Redis client, svix: `bun bun.mjs`.
//
// Left out, that the service does: what session_script.mjs says; a limit on how long a body may take to arrive; answers
// as problem JSON; 503 when Redis is away (Bun's client holds commands back); logs; metrics; a health check that asks
// Redis.

import { hash } from "node:crypto";

import { RedisClient, serve } from "bun";
import { Webhook } from "svix";

import { LUA, NUMBER_OF_KEYS, call } from "./session_script.mjs";

const LUA_SHA1 = hash("sha1", LUA);

const webhook = new Webhook(process.env.CLERK_WEBHOOK_SIGNING_SECRET);
const redis = new RedisClient(process.env.REDIS_URL); // it pipelines by default

async function applySession(keysAndArguments) {
  try {
    return await redis.evalsha(LUA_SHA1, NUMBER_OF_KEYS, ...keysAndArguments);
  } catch (error) {
    if (!error.message.startsWith("NOSCRIPT")) {
      throw error;
    }
    return await redis.eval(LUA, NUMBER_OF_KEYS, ...keysAndArguments);
  }
}

async function receive(request) {
  const body = await request.text();
  try {
    webhook.verify(body, request.headers.toJSON());
  } catch {
    return Response.json({ error: "invalid signature" }, { status: 400 });
  }
  const event = JSON.parse(body);
  if (!event.type.startsWith("session.")) {
    return Response.json({ outcome: "ignored" });
  }
  const [outcome, cursor, revision] = await applySession(call(request.headers.get("svix-id"), body, event));
  return Response.json({ outcome, session_id: event.data.id, cursor, revision: revision ? Number(revision) : null });
}

const server = serve({
  hostname: "127.0.0.1",
  port: Number(process.env.PORT),
  idleTimeout: 75, // seconds, as for (a) and (b)
  maxRequestBodySize: 1_048_576,
  routes: { "/healthz": () => Response.json({ status: "ok" }), "/webhooks/clerk": { POST: receive } },
});

process.on("SIGTERM", () => server.stop().then(() => redis.close()));
