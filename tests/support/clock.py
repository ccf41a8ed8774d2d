"""Time in the tests: frozen, or waited for."""

import contextlib
import datetime
import time
from collections.abc import Callable, Iterator
from typing import TypeVar
from unittest import mock

T = TypeVar("T")


def eventually(check: Callable[[], T], within: float = 10.0) -> T:
    """Return what `check` returns once that is true; for what has no event to wait for."""
    deadline = time.monotonic() + within
    while not (result := check()):
        assert time.monotonic() < deadline, f"still {result!r} after {within} s"
        time.sleep(0.01)
    return result


@contextlib.contextmanager
def frozen_svix(now: float) -> Iterator[None]:
    """The svix package also checks the time, with a clock of its own; let it show `now` (Unix seconds)."""

    class Frozen(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> "Frozen":
            return cls.fromtimestamp(now, tz)

    with mock.patch("standardwebhooks.webhooks.datetime", Frozen):
        yield
