"""The pace of a mass expiry: what the slowest follower has time for, however many workers there are."""

from typing import Final

import pytest

from service.workers.expiry_pace import LARGEST_BATCH, LASTS_SECONDS, SLOWEST, Pace
from service.workers.expiry_watch import BLOCK_SECONDS, LOOK_SECONDS, POLL_SECONDS

MAXLEN: Final = 5000
"""The default of STREAM_MAXLEN."""
STEP: Final = 0.01
"""Seconds of the simulated clock."""


class Stream:
    """A stream that workers write to, on a clock of its own, as fast as they may."""

    def __init__(self, workers: int, *, maxlen: int = MAXLEN, counts: bool = True) -> None:
        self.now = 100.0
        self.written: list[float] = []  # when
        self.expired = [0] * workers
        self._counts = counts
        self._own = [0] * workers
        self._paces = [Pace(maxlen, lambda: self.now) for _ in range(workers)]

    def run(self, seconds: float, deliveries_per_step: int = 0) -> None:
        end = self.now + seconds
        while self.now < end:
            self.written += [self.now] * deliveries_per_step
            for number, pace in enumerate(self._paces):
                pace.record(self._own[number], len(self.written) if self._counts else None)
                self._own[number] = 0
                if not pace.pause():
                    self.written += [self.now] * pace.batch
                    self.expired[number] += pace.batch
                    self._own[number] = pace.batch
            self.now += STEP

    def shortest_life(self, maxlen: int = MAXLEN) -> float:
        """Return how many seconds the entry lasted that was removed the soonest."""
        lives = zip(self.written, self.written[maxlen:], strict=False)
        return min(later - earlier for earlier, later in lives)


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_however_many_expire_at_once_and_whoever_expires_them_an_entry_outlasts_a_slow_follower(workers: int) -> None:
    stream = Stream(workers)

    stream.run(60)

    # A follower that takes 1 ms for each update is behind by half of it, at most.
    assert stream.shortest_life() > 10


@pytest.mark.parametrize("workers", [1, 4])
def test_the_pace_is_not_slower_than_it_has_to_be(workers: int) -> None:
    stream = Stream(workers)

    stream.run(60)

    assert len(stream.written) >= 60 * MAXLEN / LASTS_SECONDS


def test_a_few_hundred_expire_without_a_pause() -> None:
    stream = Stream(1)

    stream.run(10 * STEP)

    assert len(stream.written) >= 4 * LARGEST_BATCH


def test_after_a_pause_of_its_own_a_stream_takes_as_much_again() -> None:
    stream = Stream(1)
    stream.run(30)
    before = len(stream.written)
    stream.now += LASTS_SECONDS

    stream.run(10 * STEP)

    assert len(stream.written) - before >= 4 * LARGEST_BATCH


def test_a_stream_that_deliveries_alone_fill_leaves_a_share_to_each_worker() -> None:
    stream = Stream(2)
    stream.run(20, deliveries_per_step=20)
    before = list(stream.expired)

    stream.run(60, deliveries_per_step=20)

    least = 60 * MAXLEN / LASTS_SECONDS / 10
    assert [now - then > 0.9 * least for now, then in zip(stream.expired, before, strict=True)] == [True, True]


def test_deliveries_count_too() -> None:
    stream = Stream(1)
    stream.run(20, deliveries_per_step=2)

    assert stream.shortest_life() > 10


def test_a_short_stream_slows_nobody_to_less_than_a_hundred_a_second() -> None:
    stream = Stream(1, maxlen=1)

    stream.run(20)

    assert len(stream.written) >= 20 * SLOWEST * 0.9


def test_a_batch_is_a_small_part_of_a_short_stream() -> None:
    assert Pace(300).batch == 15


def test_where_redis_does_not_count_a_worker_paces_itself() -> None:
    stream = Stream(1, counts=False)

    stream.run(60)

    assert stream.shortest_life() > 10


def test_another_stream_in_its_place_is_no_flood() -> None:
    stream = Stream(1)
    stream.run(20)
    stream.written.clear()

    stream.run(20)

    assert len(stream.written) >= 20 * MAXLEN / LASTS_SECONDS - MAXLEN / 10


@pytest.mark.parametrize("wait", [0, 1], ids=["", "with WAIT, for REDIS_MIN_REPLICAS"])
def test_an_idle_worker_sends_at_most_100_000_commands_in_30_days(wait: int) -> None:
    reads_of_stream = 1 / BLOCK_SECONDS
    looks = (1 + wait) / LOOK_SECONDS
    polls = (1 + wait) / POLL_SECONDS

    assert max(reads_of_stream + looks, polls) * 30 * 86_400 <= 100_000
