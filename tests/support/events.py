"""Bodies of deliveries: samples from files, and events about one session."""

import json
from typing import Any, Final
from unittest import mock

from service.dev import simulator
from support.constants import DAY_MS, NOW_MS, PAYLOADS

ABSENT: Final = mock.sentinel.ABSENT
"""A value that stands for a field left out."""

IGNORED: Final = b'{"type":"user.created"}'
"""The body of a delivery that Redis has no part in."""


def payload(name: str) -> Any:
    return json.loads((PAYLOADS / f"{name}.json").read_bytes())


EVENT_PATHS: Final = (
    *("object", "type", "instance_id", "timestamp", "event_attributes", "event_attributes.http_request"),
    *(f"data.{name}" for name in payload("session.created")["data"]),
    *(f"data.latest_activity.{name}" for name in payload("session.created")["data"]["latest_activity"]),
    *("data.tasks", "data"),
)


def event(values: dict[str, Any] | None = None, sample: str = "session.created") -> Any:
    """Return a sample with values set by dotted path; ABSENT removes one."""
    body = payload(sample)
    for path, value in (values or {}).items():
        *parents, last = path.split(".")
        target = body
        for name in parents:
            target = target[name]
        if value is ABSENT:
            target.pop(last, None)
        else:
            target[last] = value
    return body


def clerk_event(
    status: str | None = "active",
    *,
    type_: str | None = None,
    session_id: str = "sess_1",
    user_id: str = "user_1",
    updated_at: int = NOW_MS - 1000,
    occurred_at: int | None = None,
    expire_at: int | None = NOW_MS + DAY_MS,
    **data: Any,
) -> dict[str, Any]:
    """Return the body of a delivery about one session. Times: Unix milliseconds."""
    event = simulator.sample(
        type_ or {"active": "session.created"}.get(str(status), f"session.{status}"),
        session_id=session_id,
        user_id=user_id,
        now_ms=updated_at,
    )
    event["timestamp"] = updated_at if occurred_at is None else occurred_at
    event["data"] |= {"status": status, "updated_at": updated_at, "expire_at": expire_at, **data}
    return event


def user_event(
    type_: str = "user.deleted", user_id: str = "user_1", *, occurred_at: int | None = NOW_MS - 1000, **data: Any
) -> dict[str, Any]:
    """Return the body of a delivery about a user who is deleted or banned. Times: Unix milliseconds."""
    says = {"deleted": True} if type_ == "user.deleted" else {"banned": True, "updated_at": NOW_MS - 1500}
    event = {"object": "event", "type": type_, "instance_id": "ins_1", "timestamp": occurred_at}
    return event | {"data": {"object": "user", "id": user_id} | says | data}


def sample_body(session_id: str = "sess_1", **values: Any) -> bytes:
    event = simulator.sample(session_id=session_id, user_id="user_1")
    return simulator.encode(simulator.with_values(event, values))
