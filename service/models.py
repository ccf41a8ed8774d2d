"""What the rooms of the service hand to each other: a delivery, what it says, and what became of it.

What consumers get (`Session`, `Event`, `SessionMessage`) is in `clerk_session_feed.models`.
"""

import dataclasses
from typing import Any, Final, Literal, NamedTuple, Self

from clerk_session_feed.models import Event, Session, SessionActivity, Status


@dataclasses.dataclass(frozen=True, slots=True)
class Delivery:
    """A delivery whose signature is right."""

    id: str
    """The Svix message id: the same for every retry."""
    sent_at: int
    """Unix seconds at which this attempt was signed."""
    body: bytes = dataclasses.field(repr=False)
    """Valid UTF-8. Left out of the repr, because error trackers record that."""


@dataclasses.dataclass(slots=True)
class DeliveryInfo:
    """What is known of a delivery so far; all of it may be logged."""

    message_id: str | None = None
    type: str | None = None
    """None if it does not look like a type of Clerk's, since it may be any text."""
    session_id: str | None = None
    user_id: str | None = None
    occurred_at_ms: int | None = None
    """Unix milliseconds."""
    nulled: list[str] = dataclasses.field(default_factory=list)
    """Names of the fields that were read as null because their values are invalid; repeated as they occur."""


Reason = Literal[
    "invalid_data",
    "invalid_type",
    "invalid_object",
    "invalid_id",
    "invalid_user_id",
    "invalid_status",
    "invalid_time",
    "invalid_updated_at",
    "invalid_actor",
]


@dataclasses.dataclass(frozen=True, slots=True)
class Ignored:
    """A genuine event about something other than a session."""

    type: str


@dataclasses.dataclass(frozen=True, slots=True)
class Unusable:
    """A genuine session event that can't be turned into state: it becomes a dead letter."""

    type: str
    reason: Reason
    detail: str
    """Names the field and says what is wrong with it, without its value."""


RANKS: Final = ("pending", "active", "abandoned", "expired", "replaced", "removed", "ended", "revoked")
"""Statuses from the weakest to the strongest: docs/contract.md, section 6."""


class OrderKey(NamedTuple):
    """The place of an event among its session's events. The greatest one is the state.

    The rule is in docs/contract.md, section 6. Message ids are ASCII, so comparing strings compares bytes.
    """

    terminal: bool
    updated_at_ms: int
    occurred_at_ms: int
    rank: int
    """Index in RANKS."""
    message_id: str

    def __str__(self) -> str:
        """Return the text that the session's hash stores; `read` is the way back."""
        terminal, updated_at, occurred_at, rank, message_id = self
        return f"{terminal:d} {updated_at} {occurred_at} {rank} {message_id}"

    @classmethod
    def read(cls, text: str) -> Self:
        """Read what `str` wrote; raise ValueError if it is something else."""
        terminal, updated_at, occurred_at, rank, message_id = text.split(" ")
        return cls(terminal == "1", int(updated_at), int(occurred_at), int(rank), message_id)


@dataclasses.dataclass(frozen=True, slots=True)
class SessionChange:
    """What one event says about a session."""

    event: Event
    session: Session
    order: OrderKey


class NewState(NamedTuple):
    """A state for a session, as it is written to Redis unless a newer one is stored."""

    session_id: str
    user_id: str
    status: Status
    live: bool
    expire_at_ms: int | None
    order: OrderKey
    message: bytes
    """What is published: JSON, an object with `event` and `session`."""
    body_digest: str = ""
    """Hexadecimal digest of the delivery's body; empty for an expiry."""
    from_cursor: str = ""
    """Cursor of the stored state that an expiry was made from; empty for a delivery."""


OMITTABLE_FIELDS: Final[frozenset[str]] = frozenset(
    {field.name for field in dataclasses.fields(Session)} - {"object", "id", "user_id", "status", "live"}
    | {f"latest_activity.{field.name}" for field in dataclasses.fields(SessionActivity)}
)
"""What OMIT_FIELDS may name. Consumers find and read sessions by the others."""


def omit(session: Session, fields: frozenset[str]) -> Session:
    """Return the session with these of OMITTABLE_FIELDS null, and `tasks` empty."""
    inner = {name.partition(".")[2]: None for name in fields if "." in name}
    if inner and session.latest_activity is not None:
        activity = dataclasses.replace(session.latest_activity, **inner)
        session = dataclasses.replace(session, latest_activity=activity)
    changes: dict[str, Any] = {name: () if name == "tasks" else None for name in fields if "." not in name}
    return dataclasses.replace(session, **changes)


class Outcome(NamedTuple):
    """What became of a genuine delivery: it gets a 2xx."""

    outcome: Literal["applied", "duplicate", "stale", "ignored", "dead_lettered"]
    session_id: str | None = None
    cursor: str | None = None
    """The id of the event's stream entry."""
    revision: int | None = None
    """How many states were applied to the session by then; None for a stale event."""
    reason: str | None = None
    """Why the event became a dead letter; `other_body` for a duplicate whose first delivery had another body.

    The latter is for the log, not for the response: the sender can do nothing about it.
    """

    @property
    def status(self) -> int:
        """The HTTP status of the response."""
        return 202 if self.outcome == "dead_lettered" else 200

    def body(self) -> dict[str, object]:
        """Return the response's JSON: docs/contract.md, section 3."""
        body: dict[str, object] = {"outcome": self.outcome}
        if self.outcome == "dead_lettered":
            body["reason"] = self.reason
        elif self.outcome != "ignored":
            body |= {"session_id": self.session_id, "cursor": self.cursor, "revision": self.revision}
        return body
