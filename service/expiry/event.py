"""The one event that is not Clerk's: a session ran out. Made from the state that is held of it. Pure."""

from collections.abc import Sequence
from typing import Any, Final

import orjson
from clerk_session_feed import lenient_json
from clerk_session_feed.models import ID, OPEN_STATUSES, SCHEMA_VERSION

from service.models import RANKS, Expiry, OrderKey

HELD_FIELDS: Final = ("state", "cursor", "status", "user_id", "_expire_at", "_order")
"""What has to be known of a session's hash."""


def expiry_of(
    session_id: str, held: Sequence[bytes | None], now_ms: int, omitted: frozenset[str] = frozenset()
) -> Expiry | None:
    """Return what ends a session, or None if nothing is held of it, or it did not run out.

    held: the HELD_FIELDS of its hash. omitted: fields that are not published (any more).
    Raises ValueError if that is no state, or no session's id, of this version of the relay's.
    """
    if not ID.fullmatch(session_id):
        raise ValueError("it is no id of a session")
    state, cursor, status, user_id, expire_at, order = (
        None if value is None else value.decode() for value in held
    )
    if status not in OPEN_STATUSES or not expire_at or int(expire_at) > now_ms:
        return None
    if state is None or cursor is None or user_id is None or order is None:
        raise ValueError("fields of its hash are missing")
    key = _order_after(OrderKey.read(order), session_id, int(expire_at))
    try:
        message = lenient_json.loads(state.encode())
        if message["schema_version"] != SCHEMA_VERSION or message["session"]["id"] != session_id:
            raise ValueError("its state is of another schema, or of another session")
        event = {
            "id": key.message_id,
            "type": "session.expired",
            "occurred_at": int(expire_at),
            "instance_id": message["event"]["instance_id"],
            "source": "synthetic",
        }
        if "http_request" in message["event"]:
            event["http_request"] = None
        published = orjson.dumps({"event": event, "session": _expired(message["session"], omitted)})
    except (KeyError, TypeError) as error:
        raise ValueError(f"its state is no message: {type(error).__name__}") from error
    return Expiry(session_id, user_id, int(expire_at), key, published, cursor)


def _order_after(held: OrderKey, session_id: str, expire_at: int) -> OrderKey:
    """After the open state that is held, and before all that Clerk says later: CONTRACT, section 6."""
    return OrderKey(
        terminal=False,
        updated_at_ms=max(expire_at, held.updated_at_ms),
        occurred_at_ms=max(expire_at, held.occurred_at_ms),
        rank=RANKS.index("expired"),
        message_id=f"exp_{session_id}_{expire_at}",
    )


def _expired(session: dict[str, Any], omitted: frozenset[str]) -> dict[str, Any]:
    session |= {"status": "expired", "live": False}
    for name in omitted:
        field, _, inner = name.partition(".")
        if not inner:
            session[field] = [] if field == "tasks" else None
        elif session[field] is not None:
            session[field][inner] = None
    if session["actor"] is not None:
        # Its integers may be of any size, which orjson's are not.
        session["actor"] = orjson.Fragment(lenient_json.dumps(session["actor"]))
    return session
