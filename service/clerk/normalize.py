"""Clerk's event to the contract's state, and its place in the order of all events of the session. Pure."""

from typing import Final, Literal

from clerk_session_feed.models import (
    OPEN_STATUSES,
    Event,
    EventWithRequest,
    HttpRequest,
    Session,
    SessionActivity,
    SessionTask,
    Status,
)

from service.clerk import events as clerk
from service.models import RANKS, OrderKey, SessionChange, Unusable

DAY_MS: Final = 86_400_000


_TERMINAL_TYPES: Final[dict[str, Status]] = {
    "session.ended": "ended",
    "session.removed": "removed",
    "session.revoked": "revoked",
}


def normalize(event: clerk.SessionEvent, *, message_id: str, now_ms: int) -> SessionChange | Unusable:
    data = event.data
    status = _status(event.type, data.status)
    if status is None:
        return Unusable(event.type, "invalid_status", "data.status: missing")
    for updated_at in (data.updated_at, event.timestamp, data.last_active_at, data.created_at):
        if updated_at is not None:
            break
    else:
        return Unusable(
            event.type, "invalid_updated_at", "data.updated_at: missing, and no other time is there"
        )
    if updated_at > now_ms + DAY_MS:
        return Unusable(event.type, "invalid_updated_at", "data.updated_at: over a day in the future")
    occurred_at = updated_at if event.timestamp is None else event.timestamp
    return SessionChange(
        event=_event(event, message_id, occurred_at),
        session=Session(
            id=data.id,
            user_id=data.user_id,
            client_id=data.client_id,
            actor=data.actor,
            status=status,
            live=status == "active" and (data.expire_at is None or data.expire_at > now_ms),
            last_active_organization_id=data.last_active_organization_id,
            last_active_at=data.last_active_at,
            latest_activity=SessionActivity(**vars(data.latest_activity)) if data.latest_activity else None,
            expire_at=data.expire_at,
            abandon_at=data.abandon_at,
            updated_at=updated_at,
            created_at=data.created_at,
            tasks=tuple(SessionTask(key=task.key) for task in data.tasks),
        ),
        order=OrderKey(status not in OPEN_STATUSES, updated_at, occurred_at, RANKS.index(status), message_id),
    )


def _status(type_: str, reported: Status | None) -> Status | None:
    """The type outranks an open status: a `session.revoked` that still says `active` is a revocation."""
    if type_ in _TERMINAL_TYPES and (reported is None or reported in OPEN_STATUSES):
        return _TERMINAL_TYPES[type_]
    return reported


def _event(event: clerk.SessionEvent, message_id: str, occurred_at_ms: int) -> Event:
    source: Literal["clerk"] = "clerk"
    if not isinstance(event, clerk.SessionEventWithRequest):
        return Event(
            id=message_id,
            type=event.type,
            occurred_at=occurred_at_ms,
            instance_id=event.instance_id,
            source=source,
        )
    request = event.event_attributes.http_request if event.event_attributes else None
    return EventWithRequest(
        id=message_id,
        type=event.type,
        occurred_at=occurred_at_ms,
        instance_id=event.instance_id,
        source=source,
        http_request=HttpRequest(**vars(request)) if request else None,
    )
