"""What an event of Clerk's says about a session: docs/contract.md, sections 6 and 7. Does no I/O."""

from typing import Any, Final

from clerk_session_feed import models
from clerk_session_feed.models import OPEN_STATUSES, Event, Session, Status

from service.clerk import events as clerk
from service.models import RANKS, OrderKey, SessionChange, Unusable

DAY_MS: Final = 86_400_000
"""How far in the future `updated_at` may lie."""
_TERMINAL_TYPES: Final[dict[str, Status]] = {
    "session.ended": "ended",
    "session.removed": "removed",
    "session.revoked": "revoked",
}


def normalize(event: clerk.SessionEvent, *, message_id: str, now_ms: int) -> SessionChange | Unusable:
    """Return the state that an event gives its session, and the event's place in the session's order.

    A session is live if it is active and `expire_at` is later than `now_ms`, in Unix milliseconds.
    """
    data = event.data
    status = data.status
    if event.type in _TERMINAL_TYPES and (status is None or status in OPEN_STATUSES):
        status = _TERMINAL_TYPES[event.type]  # outranks what the event reports
    if status is None:
        return Unusable(event.type, "invalid_status", "data.status: missing")
    for updated_at in (data.updated_at, event.timestamp, data.last_active_at, data.created_at):
        if updated_at is not None:
            break
    else:
        return Unusable(event.type, "invalid_updated_at", "data.updated_at: missing, and no other time is set")
    if updated_at > now_ms + DAY_MS:
        return Unusable(event.type, "invalid_updated_at", "data.updated_at: over a day in the future")
    occurred_at = updated_at if event.timestamp is None else event.timestamp
    session: dict[str, Any] = vars(data) | {
        "object": "session",
        "status": status,
        "live": status == "active" and (data.expire_at is None or data.expire_at > now_ms),
        "latest_activity": models.SessionActivity(**vars(data.latest_activity)) if data.latest_activity else None,
        "updated_at": updated_at,
    }
    return SessionChange(
        event=_event(event, message_id, occurred_at),
        session=Session(**session),
        order=OrderKey(status not in OPEN_STATUSES, updated_at, occurred_at, RANKS.index(status), message_id),
    )


def _event(event: clerk.SessionEvent, message_id: str, occurred_at_ms: int) -> Event:
    common: dict[str, Any] = {
        "id": message_id,
        "type": event.type,
        "occurred_at": occurred_at_ms,
        "instance_id": event.instance_id,
        "source": "clerk",
    }
    if not isinstance(event, clerk.SessionEventWithRequest):
        return Event(**common)
    request = event.event_attributes.http_request if event.event_attributes else None
    return models.EventWithRequest(**common, http_request=models.HttpRequest(**vars(request)) if request else None)
