"""The state of a session as Redis has it, and the states that the relay makes of it to end it. Does no I/O."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Final, Self

import orjson
from clerk_session_feed import lenient_json
from clerk_session_feed.models import ID, OPEN_STATUSES, SCHEMA_VERSION, STATUSES, Event, Status

from service.models import OPEN, TERMINAL, NewState, OrderKey

STORED_FIELDS: Final = ("state", "cursor", "status", "user_id", "_expire_at", "_order")
"""Fields of a session's hash that `StoredState.read` takes."""


@dataclasses.dataclass(frozen=True, slots=True)
class StoredState:
    """The state of one session."""

    session_id: str
    user_id: str
    status: Status
    cursor: str
    expire_at_ms: int | None
    order: OrderKey
    _state: bytes = dataclasses.field(repr=False)

    @classmethod
    def read(cls, session_id: str, values: Sequence[bytes | None]) -> Self | None:
        """Read the values of STORED_FIELDS; return None if nothing is stored.

        Raises:
            ValueError: They were not written by this version of the relay; the text says what is wrong.
        """
        if not ID.fullmatch(session_id):
            raise ValueError("it is not an id of a session")
        if all(value is None for value in values):
            return None
        state, cursor, status, user_id, expire_at, order_key = values
        if state is None or cursor is None or status is None or user_id is None or order_key is None:
            raise ValueError("fields of its hash are missing")
        try:
            order = OrderKey.read(order_key.decode())
        except ValueError:
            raise ValueError("its order can't be read") from None
        return cls(
            session_id=session_id,
            user_id=user_id.decode(),
            status=status.decode(),  # type: ignore[arg-type]
            cursor=cursor.decode(),
            expire_at_ms=int(expire_at) if expire_at else None,
            order=order,
            _state=state,
        )

    @property
    def is_open(self) -> bool:
        """Whether it is active or pending; it may have passed its `expire_at`.

        Of a status that only a later version knows, which was here before a rollback, the order tells.
        """
        return self.status in OPEN_STATUSES or (self.status not in STATUSES and self.order.terminal == OPEN)

    @property
    def is_final(self) -> bool:
        """Whether nothing but a later end can follow it."""
        return self.order.terminal >= TERMINAL

    def message(self) -> dict[str, Any]:
        """Return the message that was published.

        Raises:
            ValueError: It is of another version of the relay.
        """
        message = _loads(self._state)
        try:
            if message["schema_version"] == SCHEMA_VERSION and message["session"]["id"] == self.session_id:
                return message  # type: ignore[no-any-return]
        except (KeyError, TypeError) as error:
            raise ValueError(f"its state is not a message: {type(error).__name__}") from error
        raise ValueError("its state is of another schema, or of another session")

    def ended(self, status: Status, event: Event, order: OrderKey, omitted: frozenset[str] = frozenset()) -> NewState:
        """Return the state that ends the session, if this one is stored still.

        Args:
            status: the new one, a terminal one.
            event: what ends the session; without an instance, it gets the one of the stored event.
            order: the place of the new state.
            omitted: fields that are null from now on, even if they were published before.

        Raises:
            ValueError: See `message`.
        """
        message = self.message()
        try:
            instance_id = event.instance_id or message["event"]["instance_id"]
            # asdict copies each value, which takes longer than all the rest here.
            published = {each.name: getattr(event, each.name) for each in dataclasses.fields(event)}
            published["instance_id"] = instance_id
            if "http_request" in message["event"]:
                published["http_request"] = None
            session = _without(message["session"], omitted) | {"status": status, "live": False}
            created_at = session["created_at"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"its state is not a message: {type(error).__name__}") from error
        return NewState(
            session_id=self.session_id,
            user_id=self.user_id,
            status=status,
            live=False,
            expire_at_ms=self.expire_at_ms,
            created_at_ms=created_at,
            message_id=event.id,
            order=order,
            message=orjson.dumps({"event": published, "session": session}),
            base=self.order if self.is_open else None,
            from_cursor=self.cursor,
        )


def _loads(state: bytes) -> Any:
    """Return the value of JSON; raise ValueError if it is none."""
    try:
        message = orjson.loads(state)
        if message["session"]["actor"] is None:
            return message
    except (ValueError, KeyError, TypeError):
        pass
    # An actor may have integers that orjson would round, or what it refuses.
    return lenient_json.loads(state)


def _without(session: dict[str, Any], omitted: frozenset[str]) -> dict[str, Any]:
    for name in omitted:
        field, _, inner = name.partition(".")
        if not inner:
            session[field] = [] if field == "tasks" else None
        elif session[field] is not None:
            session[field][inner] = None
    if session["actor"] is not None:
        # Its integers may be too large for orjson.
        session["actor"] = orjson.Fragment(lenient_json.dumps(session["actor"]))
    return session
