"""The promise to consumers: what is published, kept and answered (schema version 1).

Plain frozen dataclasses, in the order in which the JSON has its keys. Times are integer Unix milliseconds.
`updates.py` validates what is read by these annotations; the relay makes its JSON Schema of them.
"""

import dataclasses
import re
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import Field

SCHEMA_VERSION: Final = 1

Status = Literal["active", "pending", "ended", "removed", "revoked", "replaced", "expired", "abandoned"]
OpenStatus = Literal["active", "pending"]
LiveStatus = Literal["live", "ended", "unknown"]
"""What `SessionFeed.status` tells about a session."""
STATUSES: Final[frozenset[str]] = frozenset(get_args(Status))
OPEN_STATUSES: Final[frozenset[str]] = frozenset(get_args(OpenStatus))

ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
"""Ids of sessions, users, clients, organizations, instances and messages; for `fullmatch`."""

MAX_TEXT: Final = 1024

Id = Annotated[str, Field(strict=True, pattern=f"^{ID.pattern}$")]
Text = Annotated[str, Field(strict=True, max_length=MAX_TEXT)]
UnixMs = Annotated[int, Field(strict=True, ge=0, le=10**14, description="Unix milliseconds.")]
Flag = Annotated[bool, Field(strict=True)]
Cursor = Annotated[str, Field(strict=True, pattern=r"^(0|[1-9][0-9]{0,19})-(0|[1-9][0-9]{0,19})$")]
"""The id of a stream entry: https://redis.io/docs/latest/develop/data-types/streams/#entry-ids"""
Revision = Annotated[int, Field(strict=True, ge=1)]
ExpiryId = Annotated[str, Field(strict=True, pattern=r"^exp_[A-Za-z0-9_-]{1,128}_[0-9]{1,15}$")]
"""The message id of a synthetic expiry: `exp_<session id>_<expire_at>`. It may be longer than other ids."""
Actor = Annotated[
    dict[str, Any], Field(json_schema_extra={"properties": {"sub": {"type": "string"}}, "required": ["sub"]})
]
# Later versions of the relay add to these. Consumers take any text; the schema tells what this version publishes.
AnyStatus = Annotated[str, Field(strict=True, json_schema_extra={"enum": list(get_args(Status))})]
AnyText = Annotated[str, Field(strict=True, json_schema_extra={"maxLength": MAX_TEXT})]
EventType = Annotated[
    str,
    Field(
        strict=True,
        max_length=128,
        json_schema_extra={"anyOf": [{"pattern": r"^session\."}, {"enum": ["user.deleted", "user.updated"]}]},
    ),
]
Source = Annotated[str, Field(strict=True, json_schema_extra={"enum": ["clerk", "synthetic", "clerk-api", "relay"]})]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SessionActivity:
    """Where, and with what, the session was last used. What is not known is null."""

    object: AnyText | None
    id: AnyText | None
    device_type: AnyText | None
    is_mobile: Flag | None
    browser_name: AnyText | None
    browser_version: AnyText | None
    ip_address: AnyText | None
    city: AnyText | None
    country: AnyText | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SessionTask:
    """What the user still has to do."""

    key: AnyText


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A session as Clerk reported it, normalized. `*_at`: Unix milliseconds."""

    object: Literal["session"] = "session"
    id: Id
    user_id: Id
    client_id: Id | None
    # Where the relay writes a Session, this is JSON already, an orjson.Fragment: it never looks into it.
    actor: Actor | None
    """Who impersonates the user: `sub`, and whatever else came with it."""
    status: AnyStatus
    live: Flag
    """Active and not past `expire_at`, at the moment of publishing."""
    last_active_organization_id: Id | None
    last_active_at: UnixMs | None
    latest_activity: SessionActivity | None
    expire_at: UnixMs | None
    abandon_at: UnixMs | None
    updated_at: UnixMs | None
    """Null only if OMIT_FIELDS says so."""
    created_at: UnixMs | None
    tasks: tuple[SessionTask, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """Where the user's request came from; published only with PUBLISH_HTTP_REQUEST."""

    client_ip: AnyText | None
    user_agent: AnyText | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What made the session what it is now."""

    id: Id | ExpiryId
    """The Svix message id, the same for every retry; or an id that the relay made: `exp_…`, `api_…` or `rev_…`."""
    type: EventType
    """`session.…`; or `user.deleted` or `user.updated`: the session ended because its user was deleted or banned."""
    occurred_at: UnixMs
    instance_id: Id | None
    source: Source
    """`clerk`: a webhook of Clerk's; `synthetic`: an expiry that the relay found itself;
    `clerk-api`: a state that the relay read from Clerk's Backend API; `relay`: an end that was ordered at the relay."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EventWithRequest(Event):
    """An event as a relay with PUBLISH_HTTP_REQUEST publishes it."""

    http_request: HttpRequest | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SessionMessage:
    """What is published, and kept as the state of a session."""

    schema_version: Literal[1] = SCHEMA_VERSION
    cursor: Cursor
    """The id of the event's entry in the stream."""
    revision: Revision
    """Counts the states applied to the session."""
    previous_status: AnyStatus | None
    """Null for the session's first state."""
    event: EventWithRequest | Event
    session: Session


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StreamMessage:
    """The `message` of a stream entry, whose id is the cursor. A stale event has no revision."""

    schema_version: Literal[1] = SCHEMA_VERSION
    cursor: None
    revision: Revision | None
    previous_status: AnyStatus | None
    event: EventWithRequest | Event
    session: Session
