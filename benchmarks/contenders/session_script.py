"""What the two contenders in Python have in common: an event to the script's arguments.

Left out, that the service does: checking any field's type, length or value (an odd one is published as it
came, or is a 500), the other spelling of names, times in seconds, the type that outranks an open status, dead
letters, fields to omit, PUBLISH_HTTP_REQUEST, WAIT for replicas, partitions, several secrets.
"""

import hashlib
import time
from pathlib import Path
from typing import Any

import orjson

SCRIPT = (Path(__file__).parents[2] / "service" / "store" / "apply_session.lua").read_text()

RANKS = ("pending", "active", "abandoned", "expired", "replaced", "removed", "ended", "revoked")
FIELDS = (
    *("object", "id", "user_id", "client_id", "actor", "status", "live", "last_active_organization_id"),
    *("last_active_at", "latest_activity", "expire_at", "abandon_at", "updated_at", "created_at", "tasks"),
)
RETENTION_MS = 7 * 86_400_000


def call(message_id: str, body: bytes, event: dict[str, Any]) -> tuple[list[str], list[Any]]:
    """Return KEYS and ARGV of apply_session.lua for one event about a session."""
    data = event["data"]
    now_ms = time.time_ns() // 1_000_000
    status, user_id, session_id = data["status"], data["user_id"], data["id"]
    expire_at, updated_at, occurred_at = data["expire_at"], data["updated_at"], event["timestamp"]
    is_open = status in {"active", "pending"}
    data["live"] = live = status == "active" and expire_at > now_ms
    data.setdefault("tasks", [])
    message = {
        "event": {
            "id": message_id,
            "type": event["type"],
            "occurred_at": occurred_at,
            "instance_id": event.get("instance_id"),
            "source": "clerk",
        },
        "session": {name: data.get(name) for name in FIELDS},
    }
    user_key = f"{{clerk}}:user:{user_id}"
    keys = [
        *(f"{{clerk}}:session:{session_id}", f"{user_key}:sessions", f"{user_key}:pending", f"{user_key}:gone"),
        *("{clerk}:events", "{clerk}:expiry", "{clerk}:partitions"),
    ]
    order = f"{int(not is_open)} {updated_at} {occurred_at} {RANKS.index(status)} {message_id}"
    ttl_ms = max(expire_at - now_ms, 0) + RETENTION_MS
    return keys, [
        *(message_id, order, "", session_id, user_id, status, int(live), expire_at, data["created_at"]),
        *(ttl_ms, RETENTION_MS, 5000),
        *("clerk:sessions", f"clerk:sessions:user:{user_id}", b"," + orjson.dumps(message)[1:]),
        *(0, hashlib.blake2b(body, digest_size=8).hexdigest(), "", 1, 1),
    ]
