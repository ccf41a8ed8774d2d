"""The promise to consumers: what is published, kept and answered (schema version 1).

Plain frozen dataclasses, in the order in which the JSON has its keys. Times are integer Unix milliseconds.
"""

import dataclasses
import re
from typing import Final, Literal, get_args

import orjson

SCHEMA_VERSION: Final = 1

Status = Literal["active", "pending", "ended", "removed", "revoked", "replaced", "expired", "abandoned"]
OpenStatus = Literal["active", "pending"]
STATUSES: Final[frozenset[str]] = frozenset(get_args(Status))
OPEN_STATUSES: Final[frozenset[str]] = frozenset(get_args(OpenStatus))

ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
"""Ids of sessions, users, clients, organizations, instances and messages; for `fullmatch`."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SessionActivity:
    object: str | None
    id: str | None
    device_type: str | None
    is_mobile: bool | None
    browser_name: str | None
    browser_version: str | None
    ip_address: str | None
    city: str | None
    country: str | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SessionTask:
    key: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A session as Clerk reported it, normalized. `*_at`: Unix milliseconds."""

    object: Literal["session"] = "session"
    id: str
    user_id: str
    client_id: str | None
    actor: orjson.Fragment | None
    """The impersonator, as JSON: carried whole, never looked into."""
    status: Status
    live: bool
    """Active and not past `expire_at`, at the moment of publishing."""
    last_active_organization_id: str | None
    last_active_at: int | None
    latest_activity: SessionActivity | None
    expire_at: int | None
    abandon_at: int | None
    updated_at: int | None
    """Null only if OMIT_FIELDS says so."""
    created_at: int | None
    tasks: tuple[SessionTask, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """Where the user's request came from; published only with PUBLISH_HTTP_REQUEST."""

    client_ip: str | None
    user_agent: str | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    id: str
    """The Svix message id: the same for every retry."""
    type: str
    occurred_at: int
    instance_id: str | None
    source: Literal["clerk", "synthetic"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EventWithRequest(Event):
    http_request: HttpRequest | None


# What an operator may leave out of what is published. The rest is what the state is found and read by.
_ALWAYS_PUBLISHED: Final = {"object", "id", "user_id", "status", "live"}
OMITTABLE_FIELDS: Final[frozenset[str]] = frozenset(
    {field.name for field in dataclasses.fields(Session)} - _ALWAYS_PUBLISHED
    | {f"latest_activity.{field.name}" for field in dataclasses.fields(SessionActivity)}
)


def omit(session: Session, fields: frozenset[str]) -> Session:
    """Return the session with these fields (dotted names out of OMITTABLE_FIELDS) null, `tasks` empty."""
    changes: dict[str, object] = {name: None for name in fields if "." not in name}
    if "tasks" in changes:
        changes["tasks"] = ()
    inner = {name.partition(".")[2]: None for name in fields if "." in name}
    if inner and session.latest_activity is not None and "latest_activity" not in changes:
        changes["latest_activity"] = dataclasses.replace(session.latest_activity, **inner)
    return dataclasses.replace(session, **changes)  # type: ignore[arg-type]  # names are checked at the start


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a genuine delivery: the body of its 2xx answer."""

    outcome: Literal["applied", "duplicate", "stale", "ignored", "dead_lettered"]
    session_id: str | None = None
    cursor: str | None = None
    """The id of the event's stream entry."""
    revision: int | None = None
    """How many states were applied to the session; null for a stale event."""
    reason: str | None = None
    """Why the event could not be read, if dead-lettered; `other_body` for a duplicate with another body.

    That is for the operator, and no part of the answer: the sender can do nothing about it.
    """

    @property
    def status(self) -> int:
        return 202 if self.outcome == "dead_lettered" else 200

    def body(self) -> dict[str, object]:
        match self.outcome:
            case "ignored":
                return {"outcome": self.outcome}
            case "dead_lettered":
                return {"outcome": self.outcome, "reason": self.reason}
            case _:
                return {
                    "outcome": self.outcome,
                    "session_id": self.session_id,
                    "cursor": self.cursor,
                    "revision": self.revision,
                }
