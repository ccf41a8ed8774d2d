"""What an event of Clerk's says about a session: docs/contract.md, sections 6 and 7. Does no I/O."""

import hashlib
from typing import Any, Final

import orjson
from clerk_session_feed import models
from clerk_session_feed.models import OPEN_STATUSES, Event, Session, SessionActivity, SessionTask, Status

from service.clerk import events as clerk
from service.clerk import ordinary
from service.clerk.users import DELETED, UserEvent
from service.models import OPEN, RANKS, TERMINAL, OrderKey, SessionChange, Unusable, UserEnding

DAY_MS: Final = 86_400_000
"""How far in the future `updated_at` may lie."""
_TERMINAL_TYPES: Final[dict[str, Status]] = {
    "session.ended": "ended",
    "session.removed": "removed",
    "session.revoked": "revoked",
}


def normalize(
    event: clerk.SessionEvent | ordinary.OrdinaryEvent, *, message_id: str, now_ms: int
) -> SessionChange | Unusable:
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
    return SessionChange(
        event=_event(event, message_id, occurred_at),
        session=_session(data, status, updated_at, now_ms),
        order=OrderKey(
            OPEN if status in OPEN_STATUSES else TERMINAL, updated_at, occurred_at, RANKS.index(status), message_id
        ),
    )


def ending(event: UserEvent, *, message_id: str, now_ms: int, with_request: bool = False) -> UserEnding:
    """Return what an event about a user says about all sessions of that user: docs/contract.md, section 10."""
    occurred_at = _past(event.timestamp, now_ms) or now_ms
    is_deleted = event.type == DELETED
    return UserEnding(
        user_id=event.data.id,
        status="removed" if is_deleted else "revoked",
        event=other_event("clerk", event.type, message_id, occurred_at, event.instance_id, with_request=with_request),
        at_ms=occurred_at if is_deleted else _past(event.data.updated_at, now_ms) or occurred_at,
    )


def reported(
    data: clerk.SessionData,
    *,
    answered_at_ms: int,
    instance_id: str,
    is_first: bool,
    now_ms: int,
    with_request: bool = False,
) -> SessionChange | Unusable:
    """Return what an answer of Clerk's Backend API says about a session: docs/contract.md, section 10.

    Args:
        data: the session; its status is set.
        answered_at_ms: when Clerk answered, in Unix milliseconds.
        instance_id: of the Clerk instance.
        is_first: nothing is stored of the session.
        now_ms: Unix milliseconds.
        with_request: PUBLISH_HTTP_REQUEST.
    """
    status = data.status
    if status is None:
        return Unusable("session.created", "invalid_status", "status: missing")
    is_open = status in OPEN_STATUSES
    type_ = "session.created" if is_open and is_first else f"session.{status}"
    known = (data.updated_at, data.last_active_at, data.created_at)
    updated_at = next((time_ms for time_ms in known if time_ms is not None), answered_at_ms)
    if updated_at > now_ms + DAY_MS:
        return Unusable(type_, "invalid_updated_at", "updated_at: over a day in the future")
    session = _session(data, status, updated_at, now_ms)
    digest = hashlib.sha256(orjson.dumps([session, answered_at_ms])).hexdigest()
    event = other_event(
        "clerk-api", type_, f"api_{digest[:32]}", answered_at_ms, instance_id, with_request=with_request
    )
    first = max(updated_at, answered_at_ms) if is_open else updated_at
    order = OrderKey(OPEN if is_open else TERMINAL, first, answered_at_ms, RANKS.index(status), event.id)
    return SessionChange(event, session, order)


def other_event(
    source: str, type_: str, id_: str, occurred_at_ms: int, instance_id: str | None, *, with_request: bool = False
) -> Event:
    """Return an event that no request of a user's caused."""
    common: dict[str, Any] = {
        "id": id_,
        "type": type_,
        "occurred_at": occurred_at_ms,
        "instance_id": instance_id,
        "source": source,
    }
    return models.EventWithRequest(**common, http_request=None) if with_request else Event(**common)


def _session(
    data: clerk.SessionData | ordinary.OrdinaryData, status: Status, updated_at_ms: int, now_ms: int
) -> Session:
    expire_at = data.expire_at
    return Session(
        id=data.id,
        user_id=data.user_id,
        client_id=data.client_id,
        actor=data.actor,
        status=status,
        live=status == "active" and (expire_at is None or expire_at > now_ms),
        last_active_organization_id=data.last_active_organization_id,
        last_active_at=data.last_active_at,
        latest_activity=None if data.latest_activity is None else _activity(data.latest_activity),
        expire_at=expire_at,
        abandon_at=data.abandon_at,
        updated_at=updated_at_ms,
        created_at=data.created_at,
        tasks=tuple(SessionTask(key=task.key) for task in data.tasks) if data.tasks else (),
    )


def _activity(data: clerk.Activity | ordinary.Activity) -> SessionActivity:
    return SessionActivity(
        object=data.object,
        id=data.id,
        device_type=data.device_type,
        is_mobile=data.is_mobile,
        browser_name=data.browser_name,
        browser_version=data.browser_version,
        ip_address=data.ip_address,
        city=data.city,
        country=data.country,
    )


def _past(time_ms: int | None, now_ms: int) -> int | None:
    """Return a time, or None if it lies over a day in the future."""
    return None if time_ms is None or time_ms > now_ms + DAY_MS else time_ms


def _event(event: clerk.SessionEvent | ordinary.OrdinaryEvent, message_id: str, occurred_at_ms: int) -> Event:
    if isinstance(event, clerk.SessionEventWithRequest):
        request = event.event_attributes.http_request if event.event_attributes else None
        return models.EventWithRequest(
            id=message_id,
            type=event.type,
            occurred_at=occurred_at_ms,
            instance_id=event.instance_id,
            source="clerk",
            http_request=models.HttpRequest(**vars(request)) if request else None,
        )
    return Event(
        id=message_id, type=event.type, occurred_at=occurred_at_ms, instance_id=event.instance_id, source="clerk"
    )
