"""One event of a session, as the live feed shows it: the same values in the page and in what the script gets."""

import time
from typing import Any, Final, NamedTuple, Self

import orjson
from clerk_session_feed import lenient_json
from clerk_session_feed.models import OPEN_STATUSES

from service.app.console.words import moment, place_of, utc

SOURCES: Final = {"synthetic": "expiry worker", "clerk-api": "Clerk's API", "relay": "revoked here"}
"""What is said of an event that is not one of Clerk's webhooks."""


class Entry(NamedTuple):
    """An entry of the stream. Its message is read only if it is shown: most are counted only, when many come."""

    partition: int
    cursor: str
    outcome: str
    session_id: str
    user_id: str
    message: bytes

    @classmethod
    def read(cls, partition: int, cursor: bytes, fields: list[bytes]) -> Self:
        """Read what Redis sends: names and values in turns; what is missing is empty."""
        named = dict(zip(fields[::2], fields[1::2], strict=False))
        outcome, session_id, user_id = (
            named.get(name, b"").decode(errors="replace") for name in (b"outcome", b"session_id", b"user_id")
        )
        return cls(partition, cursor.decode(), outcome, session_id, user_id, named.get(b"message", b""))

    @property
    def at_ms(self) -> int:
        """When Redis took it, in Unix milliseconds."""
        return int(self.cursor.partition("-")[0])


class Filter(NamedTuple):
    """What the feed is narrowed to; an empty text stands for all."""

    user: str = ""
    type: str = ""
    outcome: str = ""

    def wants(self, entry: Entry) -> bool:
        """Tell whether an entry is wanted."""
        return (
            self.user in {"", entry.user_id}
            and self.outcome in {"", entry.outcome}
            and (not self.type or self._is_of_type(entry))
        )

    def _is_of_type(self, entry: Entry) -> bool:
        # Most entries are told apart without reading them: the relay writes its JSON without white space.
        wanted = b'"type":%b' % orjson.dumps(self.type)
        return wanted in entry.message and loads(entry.message)["event"].get("type") == self.type


def loads(message: bytes) -> dict[str, Any]:
    """Return a message of the relay; what another program has written there, as an empty one."""
    try:
        value = orjson.loads(message)
    except ValueError:  # integers of an actor may be too large for orjson
        try:
            value = lenient_json.loads(message)
        except ValueError:
            value = None
    is_message = isinstance(value, dict) and all(isinstance(value.get(each), dict) for each in ("event", "session"))
    return value if is_message else {"event": {}, "session": {}}


def row(entry: Entry) -> dict[str, Any]:
    """Return what the feed shows of an entry: text only, and nothing that is not in the message."""
    message = loads(entry.message)
    session, event = message["session"], message["event"]
    status, previous = str(session.get("status") or ""), message.get("previous_status")
    return {
        "cursor": entry.cursor,
        "at": moment(entry.at_ms, time.time() * 1000),
        "utc": utc(entry.at_ms),
        "at_ms": entry.at_ms,
        "outcome": entry.outcome,
        "type": str(event.get("type") or "unreadable"),
        "from": SOURCES.get(str(event.get("source")), ""),
        "previous": str(previous or ""),
        "status": status,
        "tone": tone(status, live=bool(session.get("live")), outcome=entry.outcome),
        "session": entry.session_id,
        "user": entry.user_id,
        "revision": message.get("revision") or "",
        "actor": bool(session.get("actor")),
        "place": place_of(session.get("latest_activity")),
    }


def tone(status: str, *, live: bool, outcome: str = "applied") -> str:
    """Return how a state is coloured: its words say the same."""
    if outcome != "applied":
        return "stale"
    if live:
        return "live"
    return "pending" if status in OPEN_STATUSES else "revoked" if status in {"revoked", "removed"} else "over"
