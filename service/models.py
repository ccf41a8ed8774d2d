"""What the packages of the service hand to each other: a delivery, what it says, and what became of it.

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
    """A genuine event that says nothing about a session."""

    type: str


@dataclasses.dataclass(frozen=True, slots=True)
class Unusable:
    """A genuine session event that can't be turned into state: it becomes a dead letter."""

    type: str
    reason: Reason
    detail: str
    """Names the field and says what is wrong with it, without its value."""
    kept: bytes | None = dataclasses.field(default=None, repr=False)
    """What the dead letter keeps in place of the delivery's body; None for the whole body."""


RANKS: Final = ("pending", "active", "abandoned", "expired", "replaced", "removed", "ended", "revoked")
"""Statuses from the weakest to the strongest: docs/contract.md, section 6."""


OPEN: Final = 0
TERMINAL: Final = 1
ORDERED: Final = 2
"""The first parts of an order key: of an open state, of one that Clerk ended, and of one that `revoke` ended."""


class OrderKey(NamedTuple):
    """The place of an event among its session's events. The greatest one is the state.

    The rule is in docs/contract.md, section 6. Message ids are ASCII, so comparing strings compares bytes.
    """

    terminal: int
    """OPEN, TERMINAL or ORDERED."""
    updated_at_ms: int
    occurred_at_ms: int
    rank: int
    """Index in RANKS."""
    message_id: str

    def __str__(self) -> str:
        """Return the text that the session's hash stores; `read` is the way back."""
        terminal, updated_at, occurred_at, rank, message_id = self
        return f"{terminal} {updated_at} {occurred_at} {rank} {message_id}"

    @classmethod
    def read(cls, text: str) -> Self:
        """Read what `str` wrote; raise ValueError if it is something else."""
        terminal, updated_at, occurred_at, rank, message_id = text.split(" ")
        return cls(int(terminal), int(updated_at), int(occurred_at), int(rank), message_id)


@dataclasses.dataclass(frozen=True, slots=True)
class SessionChange:
    """What one event says about a session."""

    event: Event
    session: Session
    order: OrderKey


@dataclasses.dataclass(frozen=True, slots=True)
class UserEnding:
    """What one event says about all sessions of a user: they end."""

    user_id: str
    status: Literal["removed", "revoked"]
    event: Event
    at_ms: int
    """Unix milliseconds. If the status is `revoked`, sessions created later stay as they are."""

    def ends(self, created_at_ms: int | None) -> bool:
        """Tell whether an open session of the user ends, by when it was created."""
        return self.status == "removed" or created_at_ms is None or created_at_ms <= self.at_ms

    @property
    def order(self) -> OrderKey:
        """The place of such an end among the events of a session."""
        return OrderKey(TERMINAL, self.at_ms, self.event.occurred_at, RANKS.index(self.status), self.event.id)


class NewState(NamedTuple):
    """A state for a session, as it is written to Redis unless a newer one is stored."""

    session_id: str
    user_id: str
    status: Status
    live: bool
    expire_at_ms: int | None
    created_at_ms: int | None
    message_id: str
    order: OrderKey
    message: bytes
    """What is published: JSON, an object with `event` and `session`."""
    body_digest: str = ""
    """Hexadecimal digest of the delivery's body; empty for what is no delivery."""
    base: OrderKey | None = None
    """The order key of the open state that this one was made from, if the relay ended that itself."""
    from_cursor: str = ""
    """The cursor of the only stored state that this one may replace; ABSENT if none may be stored; empty for any."""
    keeps_stale: bool = True
    """Whether it is kept in the stream, and its message id remembered, if it comes too late."""


ABSENT: Final = "absent"


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
    sessions: int | None = None
    """How many sessions this delivery ended, if it is about a user."""

    @property
    def status(self) -> int:
        """The HTTP status of the response."""
        return 202 if self.outcome == "dead_lettered" else 200

    def body(self) -> dict[str, object]:
        """Return the response's JSON: docs/contract.md, section 3."""
        body: dict[str, object] = {"outcome": self.outcome}
        if self.outcome == "dead_lettered":
            body["reason"] = self.reason
        elif self.sessions is not None:
            body["sessions"] = self.sessions
        elif self.session_id is not None:
            body |= {"session_id": self.session_id, "cursor": self.cursor, "revision": self.revision}
        return body
