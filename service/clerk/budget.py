"""How many requests Clerk's Backend API may get from here: a sliding window.

Clerk counts all requests of an instance together: https://clerk.com/docs/guides/how-clerk-works/system-limits. What is
taken here is missing for the customer's own calls.

The window is the only limit: within it, requests are sent as fast as they are answered. To spread them would give the
customer's calls nothing, since at least 80 % of every window is theirs either way, and would make short runs slow.
"""

import asyncio
import collections
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, Self

PRODUCTION_REQUESTS: Final = 1000
"""Requests that Clerk takes in 10 s for a production instance."""
DEVELOPMENT_REQUESTS: Final = 100
"""Requests that Clerk takes in 10 s for any other instance."""
SHARE: Final = 5
"""A fifth of Clerk's limit is used here."""
WINDOW_SECONDS: Final = 10.0
CLOCK_TOLERANCE_SECONDS: Final = 0.01
"""By this much, Clerk's clock may be slow in one window: twice what NTP may slew it (500 parts in a million)."""


class Budget:
    """At most this many requests reach Clerk in any window of so many seconds, however long the network takes.

    A request holds one of `requests` slots, and the slot is free again a window after its *response*. Clerk counted the
    request at some moment before the response, and counts the slot's next one after it is sent, so the two are a window
    apart. In any window, each slot stands for one request at most.

    One instance belongs to one event loop.
    """

    def __init__(
        self,
        requests: int,
        seconds: float = WINDOW_SECONDS,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """Take how many requests each window has, and its length.

        Args:
            requests: at least 1.
            seconds: the length of the window.
            clock: returns monotonic seconds.
            sleep: waits for so many of the clock's seconds, or a little less.
        """
        self.requests: Final = requests
        self.clock: Final = clock
        self.sleep: Final = sleep
        self._hold_seconds = seconds + CLOCK_TOLERANCE_SECONDS
        self._resume_at = clock()
        self._turn = asyncio.Lock()  # lets those who wait through in the order in which they came
        self._free_at = collections.deque([self._resume_at] * requests)
        """When each slot that no request holds is free again, the earliest first."""
        self._not_held = asyncio.Semaphore(requests)

    @classmethod
    def of_key(cls, secret_key: str) -> Self:
        """Return the budget for a secret key, whose prefix tells production (`sk_live_`) from everything else."""
        limit = PRODUCTION_REQUESTS if secret_key.startswith("sk_live_") else DEVELOPMENT_REQUESTS
        return cls(limit // SHARE)

    @contextlib.asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a slot, and hold it from before a request is sent until after its response came."""
        await self._take()
        try:
            yield
        finally:
            self._free_at.append(self.clock() + self._hold_seconds)
            self._not_held.release()

    async def _take(self) -> None:
        async with self._turn:
            await self._not_held.acquire()
            free_at = self._free_at.popleft()
            try:
                while (seconds := max(free_at, self._resume_at) - self.clock()) > 0:  # timers may fire early
                    await self.sleep(seconds)
            except BaseException:
                self._free_at.appendleft(free_at)
                self._not_held.release()
                raise

    def pause(self, seconds: float) -> None:
        """Let no request begin for so many seconds, as Clerk asks for with a 429."""
        self._resume_at = max(self._resume_at, self.clock() + seconds)

    def spent(self) -> int:
        """Return how many slots are not free: held by a request, or by one that was answered within the window."""
        now = self.clock()
        return self.requests - sum(free_at <= now for free_at in self._free_at)

    def preload(self, count: int) -> None:
        """Let so many slots be free a window from now at the earliest: another process spent them just before."""
        free_at = self.clock() + self._hold_seconds
        for _ in range(min(count, len(self._free_at))):
            self._free_at.popleft()
            self._free_at.append(free_at)
