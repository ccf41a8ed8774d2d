"""Data that is divided into partitions: made by the relay, and described whatever their number is."""

import re
from typing import Any, Final

from clerk_session_feed.keys import Keys, partition_of

from service.models import Outcome
from service.store import revokes
from support.constants import DAY_MS, NOW_MS
from support.events import clerk_event, user_event
from support.redis_clients import client_of
from support.relay import Relay, run_relay

USERS: Final = 24
_KEY: Final = re.compile(r"\{clerk(?::\d+)?\}:(user:.*|session:.*)")


def take_some(redis_url: str, partitions: int) -> None:
    """Store 20 live sessions, of a user each, and a dead letter."""
    with run_relay(redis_url, partitions=partitions) as relay:
        for number in range(20):
            relay.take(clerk_event(session_id=f"sess_{number}", user_id=f"user_{number}"), f"msg_{number}")
        relay.take({"type": "session.unreadable"}, "msg_unreadable")


_Dump = tuple[str, int, bytes]
"""A key, the milliseconds that it has to live (0: for ever), and what DUMP says of it."""
_FILLED: Final[dict[tuple[str, int], list[_Dump]]] = {}


def fill(redis_url: str, partitions: int) -> None:
    """Store sessions of every kind, by the relay itself, of users in every partition.

    What it stored in an empty Redis is restored there the next time: the relay takes fifty times as long.
    """
    if not redis_url.startswith("redis://"):
        _fill(redis_url, partitions)
        return
    with client_of(redis_url, decode_responses=False) as client:
        if client.dbsize():
            _fill(redis_url, partitions)
        elif dumps := _FILLED.get((redis_url, partitions)):
            with client.pipeline(transaction=False) as pipeline:
                for key, ttl_ms, dump in dumps:
                    pipeline.restore(key, ttl_ms, dump)
                pipeline.execute()
        else:
            _fill(redis_url, partitions)
            keys = client.keys("*")
            _FILLED[redis_url, partitions] = [(key, max(0, client.pttl(key)), client.dump(key)) for key in keys]


def _fill(redis_url: str, partitions: int) -> None:
    with run_relay(redis_url, partitions=partitions) as relay:
        assert relay.take_all((event, message_id) for message_id, event in _events()) == {"applied", "stale"}
        end_users(relay)
        for number in range(USERS):
            revokes.add(relay.store.partition_of(f"user_{number}"), [f"sess_{number}_revoked"], NOW_MS + number)
        revokes.add(relay.store.partitions[0], ["sess_of_nobody"], NOW_MS)
        assert relay.take({"type": "session.unreadable"}, "msg_unreadable").outcome == "dead_lettered"


def end_users(relay: Relay) -> None:
    for number, type_ in enumerate(("user.deleted", "user.updated")):
        outcome = relay.take(user_event(type_, f"user_gone_{number}"), f"msg_gone_{number}")
        assert outcome == Outcome("applied", sessions=1)


def _events() -> list[tuple[str, dict[str, Any]]]:
    events = []
    for number in range(USERS):
        user: dict[str, Any] = {"user_id": f"user_{number}"}
        name = f"sess_{number}"
        events += [
            (f"msg_live_{number}", clerk_event(session_id=f"{name}_live", **user)),
            (f"msg_endless_{number}", clerk_event(session_id=f"{name}_endless", expire_at=None, **user)),
            (f"msg_pending_{number}", clerk_event("pending", session_id=f"{name}_pending", **user)),
            (f"msg_revoked_{number}", clerk_event("revoked", session_id=f"{name}_revoked", **user)),
            (f"msg_late_{number}", clerk_event(session_id=f"{name}_revoked", updated_at=NOW_MS - 9000, **user)),
            (
                f"msg_long_{number}",
                clerk_event(session_id=f"{name}_long", expire_at=NOW_MS + (number + 2) * DAY_MS, **user),
            ),
        ]
    for number in range(2):
        gone: dict[str, Any] = {
            "session_id": f"sess_gone_{number}",
            "user_id": f"user_gone_{number}",
            "created_at": NOW_MS - 5000,
        }
        events.append((f"msg_open_{number}", clerk_event(updated_at=NOW_MS - 5000, **gone)))
    return events


def portrait(client: Any) -> tuple[dict[str, Any], dict[str, int]]:
    """Return what is stored of sessions and users, without their partitions; and TTLs, in milliseconds."""
    stored: dict[str, Any] = {"expiry": {}, "revokes": {}}
    ttls = {}
    for key in client.scan_iter("*"):
        if match := _KEY.fullmatch(key):
            name = match[1]
            assert name not in stored, f"{name} is there twice"
            if client.type(key) == "hash":
                stored[name] = client.hgetall(key)
                if user_key := stored[name].get("_user_key"):
                    stored[name]["_user_key"] = _KEY.fullmatch(user_key)[1]  # type: ignore[index]
            else:
                stored[name] = dict(client.zrange(key, 0, -1, withscores=True))
            ttls[name] = client.pttl(key)
        elif (kind := key.rpartition(":")[2]) in {"expiry", "revokes"}:
            stored[kind] |= dict(client.zrange(key, 0, -1, withscores=True))
    return stored, ttls


def misplaced(client: Any, partitions: int) -> list[str]:
    """Return the keys that are not where the relay looks for them with so many partitions."""
    parts = Keys().split(partitions)
    right = {name for part in parts for name in (part.events, part.expiry, part.revokes)}
    right |= {*client.scan_iter("*:partitions")} | {"{clerk}:dead-letters"}
    wrong = []
    for key in client.scan_iter("*"):
        if ":user:" in key:
            user_id = key.split(":user:")[1].partition(":")[0]
        elif ":session:" in key:
            user_id = client.hget(key, "user_id")
            keys = parts[partition_of(user_id, partitions)]
            if client.hget(key, "_user_key") != keys.user_sessions(user_id):
                wrong.append(f"_user_key of {key}")
        else:
            wrong += [key] if key not in right else []
            continue
        if not key.startswith(parts[partition_of(user_id, partitions)].prefix + ":"):
            wrong.append(key)
    return wrong
