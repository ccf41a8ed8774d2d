"""Sessions with realistic lives, as deliveries; and the state that each has to end in.

The reference model is `Message.order`: the greatest one among a session's messages is its state
(docs/contract.md, section 6). No line of it is the service's.
"""

import dataclasses
import json
import random
from collections.abc import Iterator, Sequence
from typing import Any, Final

from support.constants import DAY_MS, HOUR_MS

RANKS: Final = ("pending", "active", "abandoned", "expired", "replaced", "removed", "ended", "revoked")
OPEN: Final = {"pending", "active"}
PUBLISHED: Final = (
    "object", "id", "user_id", "client_id", "actor", "last_active_organization_id", "last_active_at",
    "latest_activity", "expire_at", "abandon_at", "updated_at", "created_at", "tasks",
)  # fmt: skip

Order = tuple[bool, int, int, int, bytes]


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """One event, as its sender keeps it: the same id and the same bytes with each attempt."""

    id: str
    body: bytes
    order: Order
    session: dict[str, Any]
    """As it has to be published, `live` aside: that depends on the clock."""
    sent_from_ms: int

    @property
    def session_id(self) -> str:
        return str(self.session["id"])

    @property
    def status(self) -> str:
        return str(self.session["status"])


def lives(deliveries: int, sessions: int, seed: int, now_ms: int) -> list[Message]:
    """Return the messages of so many sessions in the order in which they happened.

    now_ms: the only thing besides the seed that they depend on; what they tell happened in the hour before.
    """
    chance = random.Random(seed)
    lengths = [2] * sessions
    for _ in range(deliveries - sum(lengths)):
        lengths[chance.randrange(sessions)] += 1
    return [
        message
        for number, length in enumerate(lengths)
        for message in _life(chance, f"{seed}_{number}", f"user_{seed}_{chance.randrange(sessions)}", length, now_ms)
    ]


def demanded(messages: Sequence[Message]) -> dict[str, Message]:
    """Return the message that is the state of each session."""
    greatest: dict[str, Message] = {}
    for message in messages:
        stored = greatest.get(message.session_id)
        if stored is None or message.order > stored.order:
            greatest[message.session_id] = message
    return greatest


def _life(chance: random.Random, name: str, user_id: str, length: int, now_ms: int) -> Iterator[Message]:
    at = now_ms - chance.randrange(HOUR_MS // 2, HOUR_MS)
    session: dict[str, Any] = {
        "object": "session",
        "id": f"sess_{name}",
        "user_id": user_id,
        "user": {"id": user_id, "first_name": "Sunniva", "private_metadata": {"plan": "x" * 400}},
        "client_id": f"client_{name}",
        "actor": None,
        "last_active_organization_id": None,
        "last_active_at": at,
        "latest_activity": {
            "object": "session_activity",
            "id": f"sess_activity_{name}",
            "device_type": "desktop",
            "is_mobile": False,
            "browser_name": "Firefox",
            "browser_version": "145.0",
            "ip_address": "192.0.2.44",
            "city": "Bergen",
            "country": "NO",
        },
        # Some are over by the clock already.
        "expire_at": chance.choice([now_ms + 7 * DAY_MS, now_ms + 7 * DAY_MS, None, at + 1]),
        "abandon_at": now_ms + 28 * DAY_MS,
        "created_at": at,
        "tasks": [],
    }
    has_ended = False
    for number in range(length):
        type_, reported, status = _step(chance, number, has_ended)
        has_ended = has_ended or status not in OPEN
        # Ties, as between `created` and `ended` in Clerk's own examples; and an event about an earlier time.
        at += chance.choice([0, 0, 1, 1000, 60_000, -1000])
        if chance.random() < 0.05:
            session["user_id"] = f"{user_id}_merged"
        occurred_at = at + chance.choice([0, 0, 1, 50])
        in_seconds = chance.random() < 0.1
        yield _message(
            f"msg_{name}_{chance.randrange(1000):03}_{number}",
            type_,
            session | {"updated_at": at, "tasks": [{"key": "choose-organization"}] if status == "pending" else []},
            reported,
            status,
            occurred_at // 1000 if in_seconds else occurred_at,
            occurred_at // 1000 * 1000 if in_seconds else occurred_at,
            now_ms,
        )


def _step(chance: random.Random, number: int, has_ended: bool) -> tuple[str, str | None, str]:
    """Return an event's type, the status it reports, and the one that it means."""
    if number == 0:
        return chance.choice([("session.created", "active", "active"), ("session.pending", "pending", "pending")])
    if has_ended or chance.random() < 0.4:
        status = chance.choice(["ended", "ended", "removed", "revoked", "replaced", "active"])
        if status in {"ended", "removed", "revoked"}:
            # The type outranks a status that still says otherwise.
            return f"session.{status}", chance.choice([status, status, "active", None]), status
        return "session.updated", status, status
    status = chance.choice(["active", "active", "pending"])
    return "session.pending" if status == "pending" else "session.updated", status, status


def _message(
    message_id: str,
    type_: str,
    session: dict[str, Any],
    reported: str | None,
    status: str,
    timestamp: int,
    occurred_at_ms: int,
    now_ms: int,
) -> Message:
    event = {
        "object": "event",
        "type": type_,
        "instance_id": "ins_1",
        "timestamp": timestamp,
        "event_attributes": {"http_request": {"client_ip": "192.0.2.44", "user_agent": "Mozilla/5.0"}},
        "data": session | {"status": reported},
    }
    return Message(
        message_id,
        json.dumps(event, separators=(",", ":")).encode(),
        (status not in OPEN, session["updated_at"], occurred_at_ms, RANKS.index(status), message_id.encode()),
        {name: session[name] for name in PUBLISHED} | {"status": status},
        now_ms,
    )
