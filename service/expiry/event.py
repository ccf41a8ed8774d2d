"""The expiry event, which the relay makes of a session's stored state once that ran out. Does no I/O."""

from collections.abc import Sequence
from typing import Any, Final

import orjson
from clerk_session_feed import lenient_json
from clerk_session_feed.models import ID, OPEN_STATUSES, SCHEMA_VERSION

from service.models import RANKS, NewState, OrderKey

STORED_FIELDS: Final = ("state", "cursor", "status", "user_id", "_expire_at", "_order")
"""Fields of a session's hash that an expiry event is made from."""


def expiry_of(
    session_id: str, stored: Sequence[bytes | None], now_ms: int, omitted: frozenset[str] = frozenset()
) -> NewState | None:
    """Return the state that ends a session, or None if nothing is stored of it, or it did not run out.

    Args:
        session_id: from the expiry set.
        stored: the values of STORED_FIELDS.
        now_ms: Unix milliseconds.
        omitted: fields that are null from now on, even if they were published in the stored state.

    Raises:
        ValueError: The id or the state was not written by this version of the relay.
    """
    if not ID.fullmatch(session_id):
        raise ValueError("it is not an id of a session")
    state, cursor, status, user_id, expire_at, order = (None if value is None else value.decode() for value in stored)
    if status not in OPEN_STATUSES or not expire_at or int(expire_at) > now_ms:
        return None
    if state is None or cursor is None or user_id is None or order is None:
        raise ValueError("fields of its hash are missing")
    end_ms, stored_order = int(expire_at), OrderKey.read(order)
    # After the stored state, and before Clerk's later events: docs/contract.md, section 6.
    key = OrderKey(
        terminal=False,
        updated_at_ms=max(end_ms, stored_order.updated_at_ms),
        occurred_at_ms=max(end_ms, stored_order.occurred_at_ms),
        rank=RANKS.index("expired"),
        message_id=f"exp_{session_id}_{end_ms}",
    )
    try:
        message = lenient_json.loads(state.encode())
        if message["schema_version"] != SCHEMA_VERSION or message["session"]["id"] != session_id:
            raise ValueError("its state is of another schema, or of another session")
        event = {
            "id": key.message_id,
            "type": "session.expired",
            "occurred_at": end_ms,
            "instance_id": message["event"]["instance_id"],
            "source": "synthetic",
        }
        if "http_request" in message["event"]:
            event["http_request"] = None
        published = orjson.dumps({"event": event, "session": _expired(message["session"], omitted)})
    except (KeyError, TypeError) as error:
        raise ValueError(f"its state is not a message: {type(error).__name__}") from error
    return NewState(session_id, user_id, "expired", False, end_ms, key, published, from_cursor=cursor)


def _expired(session: dict[str, Any], omitted: frozenset[str]) -> dict[str, Any]:
    session |= {"status": "expired", "live": False}
    for name in omitted:
        field, _, inner = name.partition(".")
        if not inner:
            session[field] = [] if field == "tasks" else None
        elif session[field] is not None:
            session[field][inner] = None
    if session["actor"] is not None:
        # Its integers may be too large for orjson.
        session["actor"] = orjson.Fragment(lenient_json.dumps(session["actor"]))
    return session
