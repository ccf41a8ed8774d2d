"""The state of a session as readers get it: as it is stored, but live only if it has not run out by now."""

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Self

from clerk_session_feed import lenient_json
from clerk_session_feed.models import OPEN_STATUSES
from clerk_session_feed.updates import now_ms

from service.errors import StoreUnavailableError
from service.store.partitions import Partition

_SHOWN_FIELDS: Final = ("state", "status", "live", "_expire_at", "cursor", "user_id")
_IS_LIVE: Final = b',"live":true,"last_active_organization_id":'
"""So every message of the relay has it. What comes behind it, text aside, is the relay's own."""


class UnreadableStateError(StoreUnavailableError):
    """Neither this version of the relay nor another has written what is stored of a session."""


class Shown(NamedTuple):
    """The state of a session, as it is answered."""

    message: bytes
    """JSON, as it was published; but `live` is as of now."""
    status: str
    is_live: bool
    """Whether it is active, and has not run out by now."""
    expire_at_ms: float
    """Unix milliseconds; infinite without an end."""
    cursor: str
    user_id: str

    @property
    def is_over(self) -> bool:
        """Whether it ended, or has run out, though the expiry worker may not have said so yet."""
        return self.status not in OPEN_STATUSES or self.expire_at_ms <= now_ms()

    @property
    def over_as(self) -> str:
        """The status of a session that is over."""
        return "expired" if self.status in OPEN_STATUSES else self.status

    @classmethod
    def read(cls, values: Sequence[bytes | None], now: int) -> Self | None:
        """Read the fields of a session's hash; None if nothing is stored.

        Args:
            values: of _SHOWN_FIELDS.
            now: Unix milliseconds.

        Raises:
            UnreadableStateError: Something else was written there.
        """
        state, status, live, expire_at, cursor, user_id = values
        if state is None or status is None:
            return None
        try:
            end = _end(state, expire_at)
            is_live = live == b"1" and end > now
            message = state if is_live or live != b"1" else _not_live(state)
        except (ValueError, KeyError, TypeError) as error:
            raise UnreadableStateError("What is stored of this session can't be read.") from error
        return cls(message, status.decode(), is_live, end, (cursor or b"").decode(), (user_id or b"").decode())


def shown_command(partition: Partition, session_id: str) -> tuple[Any, ...]:
    """Return the command whose reply `Shown.read` takes."""
    return ("HMGET", partition.keys.session(session_id), *_SHOWN_FIELDS)


def _end(state: bytes, expire_at: bytes | None) -> float:
    """Return when a session runs out, in Unix milliseconds."""
    if expire_at is None:  # another version's: only `state` is promised to have it
        end: float | None = lenient_json.loads(state)["session"]["expire_at"]
        return math.inf if end is None else end
    return int(expire_at) if expire_at else math.inf


def _not_live(state: bytes) -> bytes:
    """Return a message whose session is live no more, because it has run out."""
    before, found, after = state.rpartition(_IS_LIVE)
    if found:
        return before + _IS_LIVE.replace(b"true", b"false") + after
    message: Any = lenient_json.loads(state)  # another version's
    message["session"]["live"] = False
    return lenient_json.dumps(message).encode()
