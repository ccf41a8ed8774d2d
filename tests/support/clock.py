"""Time in the tests: frozen, waited for, or measured."""

import bisect
import contextlib
import datetime
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final, TypeVar
from unittest import mock

T = TypeVar("T")


def eventually(check: Callable[[], T], within: float = 60.0) -> T:
    """Return what `check` returns once that is true; for what has no event to wait for."""
    deadline = time.monotonic() + within
    while not (result := check()):
        assert time.monotonic() < deadline, f"still {result!r} after {within} s"
        time.sleep(0.01)
    return result


class Metronome:
    """Tells how far behind this machine is: a busy one keeps everybody waiting, whatever the service does."""

    BEAT_SECONDS: Final = 0.01

    def __init__(self) -> None:
        self._ending = threading.Event()
        self._beats: list[tuple[float, float]] = []

    def run(self) -> None:
        has_ended, began = False, time.monotonic()
        while not has_ended:
            has_ended = self._ending.wait(self.BEAT_SECONDS)
            now = time.monotonic()
            self._beats.append((now, max(0.0, now - began - self.BEAT_SECONDS)))
            began = now

    def delay(self, began: float, ended: float) -> float:
        """Return the longest delay of a beat that ended in or just after this time."""
        longest, index = 0.0, bisect.bisect_left(self._beats, (began,))
        while index < len(self._beats) and (beat := self._beats[index])[0] - beat[1] <= ended:
            longest, index = max(longest, beat[1]), index + 1
        return longest

    def delays(self) -> float:
        """Return the sum of all delays."""
        return sum(late for _, late in self._beats)

    def end(self) -> None:
        self._ending.set()


class Stopwatch:
    """How long something took, without what the machine, busy with others, kept this process waiting.

    What holds the GIL in this process keeps the metronome waiting, too, and is taken for a busy machine: measure what
    another process does, or what waits without the GIL. Code that computes in this process is measured too short.
    """

    seconds = 0.0


@contextlib.contextmanager
def stopwatch() -> Iterator[Stopwatch]:
    """Measure what is done in the block: for limits that hold on a machine which is not busy with something else."""
    measured, metronome = Stopwatch(), Metronome()
    beating = threading.Thread(target=metronome.run)
    beating.start()
    began = time.monotonic()
    try:
        yield measured
    finally:
        took = time.monotonic() - began
        metronome.end()
        beating.join()
        measured.seconds = took - metronome.delays()


@contextlib.contextmanager
def in_time(seconds: float) -> Iterator[None]:
    """Fail if the block takes longer, by a stopwatch."""
    with stopwatch() as measured:
        yield
    assert measured.seconds < seconds


@contextlib.contextmanager
def frozen_svix(now: float) -> Iterator[None]:
    """The svix package also checks the time, with a clock of its own; let it show `now` (Unix seconds)."""

    class Frozen(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> "Frozen":
            return cls.fromtimestamp(now, tz)

    with mock.patch("standardwebhooks.webhooks.datetime", Frozen):
        yield
