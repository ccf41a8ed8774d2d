"""What rooms hand to each other: a delivery, what it says, and what became of it. No I/O, no framework.

What is promised to consumers (`Session`, `Event`, `SessionMessage`) is in `clerk_session_feed.models`.
"""

import dataclasses
from typing import Final, Literal, NamedTuple, Self

from clerk_session_feed.models import Event, Session, SessionActivity, Status


@dataclasses.dataclass(frozen=True, slots=True)
class Delivery:
    """A delivery whose signature was right."""

    id: str
    """The Svix message id: the same for every retry."""
    sent_at: int
    """Unix seconds: when this attempt was signed."""
    body: bytes = dataclasses.field(repr=False)
    """Valid UTF-8. Not in the repr, which error trackers take along."""


@dataclasses.dataclass(slots=True)
class DeliveryInfo:
    """What is known of a delivery so far, whatever becomes of it; fit for the log."""

    message_id: str | None = None
    type: str | None = None
    """None if it does not look like one of Clerk's: any text can stand there."""
    session_id: str | None = None
    user_id: str | None = None
    occurred_at_ms: int | None = None
    """Unix milliseconds."""
    nulled: list[str] = dataclasses.field(default_factory=list)
    """Odd fields that were read as null; each as often as it was."""


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
    """A genuine session event that can't be turned into state."""

    type: str
    reason: Reason
    detail: str
    """Names the field and what is wrong with it; never a value."""


RANKS: Final[tuple[Status, ...]] = (
    "pending",
    "active",
    "abandoned",
    "expired",
    "replaced",
    "removed",
    "ended",
    "revoked",
)


class OrderKey(NamedTuple):
    """The greatest one among a session's events is its state, whatever order they come in.

    Message ids are ASCII, so Python's order of strings is the order of bytes.
    """

    terminal: bool
    updated_at_ms: int
    occurred_at_ms: int
    rank: int
    message_id: str

    def __str__(self) -> str:
        """As the session's hash holds it; `read` is the way back."""
        terminal, updated_at, occurred_at, rank, message_id = self
        return f"{terminal:d} {updated_at} {occurred_at} {rank} {message_id}"

    @classmethod
    def read(cls, text: str) -> Self:
        """Raises ValueError if it is none."""
        terminal, updated_at, occurred_at, rank, message_id = text.split(" ")
        return cls(terminal == "1", int(updated_at), int(occurred_at), int(rank), message_id)


@dataclasses.dataclass(frozen=True, slots=True)
class SessionChange:
    """What one event says about a session."""

    event: Event
    session: Session
    order: OrderKey


@dataclasses.dataclass(frozen=True, slots=True)
class Expiry:
    """The end of a session that ran out."""

    session_id: str
    user_id: str
    expire_at: int
    """Unix milliseconds."""
    order: OrderKey
    message: bytes
    """What is published: JSON, an object with `event` and `session`."""
    cursor: str
    """Of the state that it was made from."""


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
