"""The ordinary event about a session, read from its bytes in one step.

Nearly every event has exactly the fields and types that Clerk documents. For those, msgspec takes a quarter of the time
of orjson and pydantic, since it makes no objects of what is not read: the embedded user, most of a body. It tells only
whether an event is ordinary. Any other one is read by the models in `events`, which define what is accepted, and what
becomes of the rest. tests/unit/test_clerk_ordinary.py compares both.
"""

from typing import Annotated, Final, Literal

import msgspec
from clerk_session_feed.models import ID, MAX_TEXT, Status
from msgspec import Meta

from service.clerk.fields import MAX_TIME, SECONDS_BELOW

_Id = Annotated[str, Meta(pattern=rf"\A{ID.pattern}\Z")]
_Text = Annotated[str, Meta(max_length=MAX_TEXT)]
_Time = Annotated[int, Meta(ge=SECONDS_BELOW, le=MAX_TIME)]
"""Unix milliseconds."""
_Type = Literal["session.created", "session.pending", "session.ended", "session.removed", "session.revoked"]


# The names in mixed case are those that Clerk's SDKs write. An event with a value there is not ordinary.
# `gc=False`: none of these objects can be part of a cycle of references.


class Task(msgspec.Struct, frozen=True, gc=False):
    """See `clerk_session_feed.models.SessionTask`."""

    key: _Text


class Activity(msgspec.Struct, frozen=True, gc=False):
    """See `events.Activity`."""

    object: _Text | None = None
    id: _Text | None = None
    device_type: _Text | None = None
    is_mobile: bool | None = None
    browser_name: _Text | None = None
    browser_version: _Text | None = None
    ip_address: _Text | None = None
    city: _Text | None = None
    country: _Text | None = None
    deviceType: None = None  # noqa: N815
    isMobile: None = None  # noqa: N815
    browserName: None = None  # noqa: N815
    browserVersion: None = None  # noqa: N815
    ipAddress: None = None  # noqa: N815


class OrdinaryData(msgspec.Struct, frozen=True, gc=False):
    """See `events.SessionData`. Sessions of impersonators are not ordinary."""

    id: _Id
    user_id: _Id
    object: Literal["session"] | None = None
    client_id: _Id | None = None
    actor: None = None
    status: Status | None = None
    last_active_organization_id: _Id | None = None
    last_active_at: _Time | None = None
    latest_activity: Activity | None = None
    expire_at: _Time | None = None
    abandon_at: _Time | None = None
    updated_at: _Time | None = None
    created_at: _Time | None = None
    tasks: tuple[Task, ...] | None = None
    userId: None = None  # noqa: N815
    clientId: None = None  # noqa: N815
    lastActiveOrganizationId: None = None  # noqa: N815
    lastActiveAt: None = None  # noqa: N815
    latestActivity: None = None  # noqa: N815
    expireAt: None = None  # noqa: N815
    abandonAt: None = None  # noqa: N815
    updatedAt: None = None  # noqa: N815
    createdAt: None = None  # noqa: N815


class OrdinaryEvent(msgspec.Struct, frozen=True, gc=False):
    """See `events.SessionEvent`. Times: Unix milliseconds."""

    type: _Type
    data: OrdinaryData
    timestamp: _Time | None = None
    instance_id: _Id | None = None
    instanceId: None = None  # noqa: N815


_decode: Final = msgspec.json.Decoder(OrdinaryEvent).decode


def read(body: bytes) -> OrdinaryEvent | None:
    """Return the event of a body that is an ordinary one; None for any other body, whatever is in it."""
    try:
        return _decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):  # before 0.21, the first was no kind of the second
        return None
