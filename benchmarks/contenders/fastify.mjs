// (c) Fastify, svix, ioredis with automatic pipelining: `node fastify.mjs`.
//
// Left out, that the service does: what session_script.mjs says; a limit on how long a body may take to arrive; answers
// as problem JSON; 503 when Redis is away (ioredis holds commands back, and sends them again); logs; metrics; a health
// check that asks Redis.

import Fastify from "fastify";
import { Redis } from "ioredis";
import { Webhook } from "svix";

import { LUA, NUMBER_OF_KEYS, call } from "./session_script.mjs";

const webhook = new Webhook(process.env.CLERK_WEBHOOK_SIGNING_SECRET);
const redis = new Redis(process.env.REDIS_URL, { enableAutoPipelining: true });
redis.defineCommand("applySession", { numberOfKeys: NUMBER_OF_KEYS, lua: LUA });

const app = Fastify({ bodyLimit: 1_048_576 });
app.addContentTypeParser("application/json", { parseAs: "buffer" }, (request, body, done) => done(null, body));

app.get("/healthz", async () => ({ status: "ok" }));

app.post("/webhooks/clerk", async (request, reply) => {
  const body = request.body;
  try {
    webhook.verify(body, request.headers);
  } catch {
    return reply.code(400).send({ error: "invalid signature" });
  }
  const event = JSON.parse(body);
  if (!event.type.startsWith("session.")) {
    return { outcome: "ignored" };
  }
  const [outcome, cursor, revision] = await redis.applySession(...call(request.headers["svix-id"], body, event));
  return { outcome, session_id: event.data.id, cursor, revision: revision ? Number(revision) : null };
});

process.on("SIGTERM", () => app.close().then(() => redis.quit()));
await app.listen({ host: "127.0.0.1", port: Number(process.env.PORT) });
