// (c) Fastify, svix, ioredis with automatic pipelining: `node fastify.mjs`.
//
// Left out, that the service does: checking any field's type, length or value (an odd one is published as it came,
// or is a 500), the other spelling of names, times in seconds, the type that outranks an open status, dead letters,
// fields to omit, PUBLISH_HTTP_REQUEST, WAIT for replicas, several secrets; a limit on how long a body may take to
// arrive; answers as problem JSON; 503 when Redis is away (ioredis holds commands back, and sends them again); logs;
// metrics; a health check that asks Redis.

import { hash } from "node:crypto";
import { readFileSync } from "node:fs";

import Fastify from "fastify";
import { Redis } from "ioredis";
import { Webhook } from "svix";

const RANKS = ["pending", "active", "abandoned", "expired", "replaced", "removed", "ended", "revoked"];
const RETENTION_MS = 7 * 86_400_000;

const webhook = new Webhook(process.env.CLERK_WEBHOOK_SIGNING_SECRET);
const redis = new Redis(process.env.REDIS_URL, { enableAutoPipelining: true });
const lua = readFileSync(new URL("../../service/store/apply_session.lua", import.meta.url), "utf8");
redis.defineCommand("applySession", { numberOfKeys: 7, lua });

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
  const { type, timestamp, instance_id = null, data } = JSON.parse(body);
  if (!type.startsWith("session.")) {
    return { outcome: "ignored" };
  }
  const id = request.headers["svix-id"];
  const { object, user_id, client_id, actor, status, last_active_organization_id, last_active_at } = data;
  const { latest_activity = null, expire_at, abandon_at, updated_at, created_at, tasks = [] } = data;
  const now = Date.now();
  const live = status === "active" && expire_at > now;
  const isOpen = status === "active" || status === "pending";
  const message = JSON.stringify({
    event: { id, type, occurred_at: timestamp, instance_id, source: "clerk" },
    session: {
      object, id: data.id, user_id, client_id, actor, status, live, last_active_organization_id, last_active_at,
      latest_activity, expire_at, abandon_at, updated_at, created_at, tasks,
    },
  });
  const [outcome, cursor, revision] = await redis.applySession(
    `{clerk}:session:${data.id}`, `{clerk}:user:${user_id}:sessions`, `{clerk}:user:${user_id}:pending`,
    `{clerk}:user:${user_id}:gone`, "{clerk}:events", "{clerk}:expiry", "{clerk}:partitions",
    id, `${isOpen ? 0 : 1} ${updated_at} ${timestamp} ${RANKS.indexOf(status)} ${id}`, "",
    data.id, user_id, status, live ? 1 : 0, expire_at, created_at,
    Math.max(expire_at - now, 0) + RETENTION_MS, RETENTION_MS, 5000, "clerk:sessions", `clerk:sessions:user:${user_id}`, `,${message.slice(1)}`, 0,
    hash("sha256", body, "hex").slice(0, 16), "", 1, 1,
  );
  return { outcome, session_id: data.id, cursor, revision: revision ? Number(revision) : null };
});

process.on("SIGTERM", () => app.close().then(() => redis.quit()));
await app.listen({ host: "127.0.0.1", port: Number(process.env.PORT) });
