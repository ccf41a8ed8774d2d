// What the contenders in JavaScript have in common: an event to the script's arguments.
//
// Left out, that the service does: checking any field's type, length or value (an odd one is published as it came,
// or is a 500), the other spelling of names, times in seconds, the type that outranks an open status, dead letters,
// fields to omit, PUBLISH_HTTP_REQUEST, WAIT for replicas, partitions, several secrets.

import { hash } from "node:crypto";
import { readFileSync } from "node:fs";

export const LUA = readFileSync(new URL("../../service/store/apply_session.lua", import.meta.url), "utf8");
export const NUMBER_OF_KEYS = 7;

const RANKS = ["pending", "active", "abandoned", "expired", "replaced", "removed", "ended", "revoked"];
const RETENTION_MS = 7 * 86_400_000;

// Returns KEYS and ARGV of apply_session.lua, in one array, for one event about a session.
export function call(id, body, { type, timestamp, instance_id = null, data }) {
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
  return [
    `{clerk}:session:${data.id}`, `{clerk}:user:${user_id}:sessions`, `{clerk}:user:${user_id}:pending`,
    `{clerk}:user:${user_id}:gone`, "{clerk}:events", "{clerk}:expiry", "{clerk}:partitions",
    id, `${isOpen ? 0 : 1} ${updated_at} ${timestamp} ${RANKS.indexOf(status)} ${id}`, "",
    data.id, user_id, status, live ? 1 : 0, expire_at, created_at,
    Math.max(expire_at - now, 0) + RETENTION_MS, RETENTION_MS, 5000,
    "clerk:sessions", `clerk:sessions:user:${user_id}`, `,${message.slice(1)}`,
    0, hash("sha256", body, "hex").slice(0, 16), "", 1, 1,
  ];
}
