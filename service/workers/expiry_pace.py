"""How fast sessions may expire, so that followers keep up when very many expire at once. Does no I/O.

Redis removes the stream's oldest entries when it is full. A follower that had not read them yet has to begin anew. So
what expires is slowed down to what a slow follower meets, by what the stream got, from anyone. That is why the workers
of one partition share a pace, and don't know of each other.
"""

import math
import time
from collections.abc import Callable
from typing import Final

LASTS_SECONDS: Final = 15.0
"""Seconds in which no more expiry events are added than the stream keeps. With the default STREAM_MAXLEN, a follower
that takes 3 ms for each update keeps up, and one that takes 1 ms has two thirds of its time left for other events."""
SLOWEST: Final = 100.0
"""Sessions a second that may expire in any case: nobody follows a stream that is too short for that."""
AT_ONCE: Final = 0.1
"""Part of the stream that may be added at once, without any pause."""
LARGEST_BATCH: Final = 128
"""Sessions that are expired at once, at most: a few round trips of the store's pipeline."""
BATCHES: Final = 20
"""Batches that fill a stream, at least: several workers may write one each at the same time."""
LEAST_SHARE: Final = 0.1
"""Part of the pace that a worker has in any case. Else a stream that deliveries alone fill would stop it. So more than
ten workers of one partition exceed the pace."""


class Pace:
    """Tells when the next batch may be written to one stream.

    A bucket that fills by what the stream gets, and leaks at the allowed rate.

    Attributes:
        rate: sessions a second, for all workers of the partition together.
        batch: how many sessions to expire at once, at most.
    """

    def __init__(self, stream_maxlen: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Take STREAM_MAXLEN, and a clock in seconds that never goes back."""
        self.rate: Final = max(stream_maxlen / LASTS_SECONDS, SLOWEST)
        self.batch: Final = max(1, min(LARGEST_BATCH, stream_maxlen // BATCHES))
        self._free = stream_maxlen * AT_ONCE
        self._most = float(stream_maxlen)
        self._clock = clock
        self._level, self._at = 0.0, clock()
        self._added: int | None = None
        self._own_at = -math.inf

    def record(self, written: int, added: int | None) -> None:
        """Record what this worker wrote, and what the stream has got.

        Args:
            written: entries that this worker has added since the last call.
            added: entries that the stream ever got, from anyone; None if Redis does not say. Then only those that
                this worker writes count.
        """
        now = self._clock()
        if written:
            self._own_at = now
        new = written
        if added is not None:
            new = max(0, added - (added if self._added is None else self._added))  # fewer: it is another stream
        self._added = added
        self._level = min(max(0.0, self._level + new - self.rate * (now - self._at)), self._most)
        self._at = now

    def pause(self) -> float:
        """Return the seconds until a batch may be written, from the last `record` on."""
        shared = (self._level - self._free) / self.rate
        alone = self._own_at + self.batch / (self.rate * LEAST_SHARE) - self._at
        return max(0.0, min(shared, alone))
