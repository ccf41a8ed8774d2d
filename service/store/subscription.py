"""One reader of what is applied, in this process: what waits for it, in memory, up to a bound.

Everything here happens on the loop of the hub.
"""

import asyncio
import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple

MAX_NOTICES: Final = 1_000
"""Notices that may wait for a reader; one that lets more wait is cut off."""
MAX_BYTES: Final = 1_048_576
"""Bytes of messages that may wait for a reader."""


class Notice(NamedTuple):
    """Something to tell a reader."""

    kind: Literal["applied", "resync", "position", "heartbeat", "end"]
    """`resync`: something between the reader's position and this one is gone. `position`: nothing for this reader came
    before it. `end`: nothing more comes."""
    position: str = ""
    """Where the reader is with this notice: `positions`. Of a heartbeat, and of an end, empty."""
    message: bytes = b""
    """Of what was applied: JSON, as it was published."""
    said: Mapping[str, Any] = MappingProxyType({})
    """Of `resync` and `end`: the reason, and what belongs to it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Scope:
    """What a reader gets, and for how long."""

    user_id: str | None = None
    """Only what is applied to sessions of this user."""
    session_id: str | None = None
    """Only what is applied to this session. It ends with that session."""
    seconds: float | None = None
    """It ends after so many."""

    @property
    def key(self) -> tuple[str, str]:
        """What an entry is looked up by, to find the readers with such a scope."""
        if self.session_id is not None:
            return "session", self.session_id
        return ("user", self.user_id) if self.user_id is not None else ("all", "")


class Subscription:
    """What waits for a reader; `get` is the reader's, the rest is the hub's.

    Attributes:
        scope: what the reader gets.
        cursors: how far it was told, by partition, if it begins behind a position and has not caught up with the hub.
        has_joined: whether it is told of what comes, as it comes.
        is_over: whether nothing more will come, but what waits.
        told_at: the tick of the hub at which it was told something last.
        seen: how many entries the hub had seen when the reader last got a position.
        timers: what will happen to it later.
        task: what brings it up to the hub.
    """

    __slots__ = (
        *("scope", "cursors", "has_joined", "is_over", "told_at", "seen", "timers", "task"),
        *("_wake", "_is_due", "_queued", "_bytes", "_waiter", "_room"),
    )

    def __init__(self, scope: Scope, cursors: list[str] | None, wake: Callable[["Subscription"], None]) -> None:
        """Begin with nothing. wake: is called when there is something for a reader who waits."""
        self.scope = scope
        self.cursors = cursors
        self.has_joined = False
        self.is_over = False
        self.told_at = 0
        self.seen = 0
        self.timers: list[asyncio.TimerHandle] = []
        self.task: asyncio.Task[None] | None = None
        self._wake = wake
        self._is_due = False
        self._queued: list[Notice] = []
        self._bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None

    async def get(self) -> list[Notice]:
        """Return what waits, as soon as there is something; nothing if it is over."""
        if not self._queued and not self.is_over:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        taken, self._queued, self._bytes = self._queued, [], 0
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        return taken

    def put(self, notice: Notice) -> None:
        """Tell the reader something; cut it off if it leaves too much unread."""
        if self.is_over:
            return
        self._queued.append(notice)
        self._bytes += len(notice.message)
        if len(self._queued) > MAX_NOTICES or self._bytes > MAX_BYTES:
            self.close()
        else:
            self._call_reader()

    def finish(self, reason: str, **said: object) -> None:
        """Tell the reader that nothing more comes, and why."""
        self.put(Notice("end", said={"reason": reason, **said}))
        self._end()

    def close(self) -> None:
        """End at once; what waits is dropped."""
        self._queued, self._bytes = [], 0
        self._end()

    def has_room_for(self, notices: int, size: int) -> bool:
        """Tell whether so much more, with so many bytes, leaves room for as much again."""
        return len(self._queued) + notices <= MAX_NOTICES // 2 and self._bytes + size <= MAX_BYTES // 2

    async def room(self) -> None:
        """Wait until the reader has taken what waits, unless that is little."""
        while not self.is_over and not self.has_room_for(1, 0):
            self._room = asyncio.get_running_loop().create_future()
            try:
                await self._room
            finally:
                self._room = None

    def _call_reader(self) -> None:
        if self._waiter is not None and not self._is_due:
            self._is_due = True
            self._wake(self)

    def resume(self) -> None:
        """Let a reader who waits take what there is."""
        self._is_due = False
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _end(self) -> None:
        self.is_over = True
        for each in self.timers:
            each.cancel()
        self.timers.clear()
        if self.task is not None and self.task is not asyncio.current_task():
            self.task.cancel()
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        self._call_reader()
