"""The mirrors of both feeds behind one face."""

import contextlib
import inspect
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from clerk_session_feed import mirror, mirror_reading, transport

from support.clock import eventually
from support.feeds import AsyncFeed, Feed, refuse


class Mirror:
    """A mirror that is asked from a thread. A lost connection ends it, unless `on_reconnect` is given."""

    def __init__(self, feed: Feed, **options: Any) -> None:
        self._feed = feed
        options = {"on_reconnect": refuse} | options
        self.mirror: Any = (
            feed.do(_begin, feed, options) if isinstance(feed, AsyncFeed) else feed.feed.mirror(**options)
        )

    def status(self, *arguments: Any) -> str:
        status: str = self._get(self.mirror.status, *arguments)
        return status

    def user_id(self, session_id: str) -> str | None:
        user_id: str | None = self._get(self.mirror.user_id, session_id)
        return user_id

    def is_live(self, session_id: str) -> bool:
        is_live: bool = self._get(self.mirror.is_live, session_id)
        return is_live

    def wait(self, timeout: float | None = 30.0) -> "Mirror":
        self._feed.do(self.mirror.wait_until_ready, timeout)
        return self

    def catch_up(self) -> None:
        """Wait until it knows all that has happened by now."""
        now = transport.clock()
        eventually(lambda: self.mirror._reading.known_at > now)

    def close(self) -> None:
        self._feed.do(self.mirror.close)

    def _get(self, method: Callable[..., Any], *arguments: Any) -> Any:
        result = method(*arguments)
        if not inspect.isawaitable(result):
            return result

        async def wait() -> Any:
            return await result

        return self._feed.do(wait)


async def _begin(feed: Feed, options: dict[str, Any]) -> Any:
    return feed.feed.mirror(**options)


@contextlib.contextmanager
def mirrored(feed: Feed, **options: Any) -> Iterator[Mirror]:
    """Return a mirror that is ready."""
    mirror = Mirror(feed, **options)
    try:
        yield mirror.wait()
    finally:
        mirror.close()


def set_clock(monkeypatch: pytest.MonkeyPatch, now_ms: int) -> None:
    """Let feeds and mirrors take this for the time of day."""
    monkeypatch.setattr(time, "time_ns", lambda: now_ms * 1_000_000)
    for module in (mirror, mirror_reading):
        monkeypatch.setattr(module, "time", lambda: now_ms / 1000)


def pass_time(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let mirrors believe that so much time has passed since they last looked, as if the process had slept."""
    monkeypatch.setattr(mirror, "clock", lambda: transport.clock() + seconds)
