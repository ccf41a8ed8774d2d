"""Both feeds behind one face, so that a test says once what both do. Whatever waits, waits elsewhere."""

import asyncio
import contextlib
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import pytest
from clerk_session_feed import AsyncSessionFeed, SessionFeed, SessionUpdate, transport

T = TypeVar("T")

PATIENCE = 30.0
"""Seconds after which a test that waits has failed."""


class EndedError(Exception):
    """The iterator ended."""


def refuse(error: Exception) -> None:
    raise error


class Updates:
    """An iterator of updates; each is asked for in a thread."""

    def __init__(self, updates: Iterator[SessionUpdate]) -> None:
        self._updates: Any = updates

    def begin(self, count: int = 1) -> "Future[list[SessionUpdate]]":
        """Ask for so many, without waiting for them."""
        future: Future[list[SessionUpdate]] = Future()

        def take() -> None:
            try:
                taken = list(itertools.islice(self._updates, count))
                future.set_exception(EndedError()) if len(taken) < count else future.set_result(taken)
            except BaseException as error:  # noqa: BLE001  # raised where the result is taken
                future.set_exception(error)

        threading.Thread(target=take, daemon=True).start()
        return future

    def take(self, count: int) -> list[SessionUpdate]:
        return self.begin(count).result(PATIENCE)

    def next(self) -> SessionUpdate:
        (update,) = self.take(1)
        return update

    def leave(self) -> None:
        """Leave the loop, as `break` does."""
        self._updates.close()


class AsyncUpdates(Updates):
    def __init__(self, updates: AsyncIterator[SessionUpdate], loop: asyncio.AbstractEventLoop) -> None:
        self._updates = updates
        self._loop = loop

    def begin(self, count: int = 1) -> "Future[list[SessionUpdate]]":
        async def take() -> list[SessionUpdate]:
            try:
                return [await anext(self._updates) for _ in range(count)]
            except StopAsyncIteration:
                raise EndedError from None

        return asyncio.run_coroutine_threadsafe(take(), self._loop)

    def leave(self) -> None:
        asyncio.run_coroutine_threadsafe(self._updates.aclose(), self._loop).result(PATIENCE)


class Feed:
    """A SessionFeed. A lost connection is an error, unless `on_reconnect` is given."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.feed: Any = SessionFeed.from_url(url, **settings)

    def get(self, *arguments: str) -> SessionUpdate | None:
        update: SessionUpdate | None = self.do(self.feed.get, *arguments)
        return update

    def state(self, session_id: str = "sess_1") -> SessionUpdate:
        """Return what is held of a session, which is there."""
        update = self.get(session_id)
        assert update is not None
        return update

    def is_live(self, *arguments: str) -> bool:
        is_live: bool = self.do(self.feed.is_live, *arguments)
        return is_live

    def live_ids(self, user_id: str = "user_1") -> list[str]:
        return [update.session.id for update in self.do(self.feed.live_sessions, user_id)]

    def history(self, *arguments: str) -> list[SessionUpdate]:
        updates: list[SessionUpdate] = self.do(self.feed.history, *arguments)
        return updates

    def now(self) -> dict[int, str]:
        cursors: dict[int, str] = self.do(self.feed.now)
        return cursors

    def follow(self, after: Any = None, **options: Any) -> Updates:
        return self.iterate(self.feed.follow(after, **{"on_reconnect": refuse} | options))

    def consume(self, group: str = "group", name: str = "name", **options: Any) -> Updates:
        return self.iterate(self.feed.consume(group, name, **{"on_reconnect": refuse} | options))

    def subscribe(self, *arguments: str, **options: Any) -> Updates:
        return self.iterate(self.feed.subscribe(*arguments, **{"on_reconnect": refuse} | options))

    def close(self) -> None:
        self.do(self.feed.close)

    def end(self) -> None:
        """Close it, and whatever it runs in."""
        self.close()

    def do(self, method: Callable[..., Any], *arguments: Any) -> Any:
        return method(*arguments)

    def side_by_side(self, count: int, method: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Return the results of so many calls at once."""
        results: list[Any] = []

        def call() -> None:
            try:
                results.append(method(*arguments))
            except Exception as error:  # noqa: BLE001  # the test looks at it
                results.append(error)

        threads = [threading.Thread(target=call) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        return results

    def iterate(self, updates: Any) -> Updates:
        return Updates(updates)


class AsyncFeed(Feed):
    """An AsyncSessionFeed, in an event loop in a thread of its own."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.feed = AsyncSessionFeed.from_url(url, **settings)

    def end(self) -> None:
        try:
            self.close()
            self._run(self._end())
        finally:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(PATIENCE)
            self.loop.close()

    async def _end(self) -> None:
        await self.loop.shutdown_asyncgens()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        if rest:
            _, left = await asyncio.wait(rest, timeout=PATIENCE)
            assert not left, "the closed feed left tasks behind"
        await self.loop.shutdown_default_executor()

    def do(self, method: Callable[..., Any], *arguments: Any) -> Any:
        return self._run(method(*arguments))

    def side_by_side(self, count: int, method: Callable[..., Any], *arguments: Any) -> list[Any]:
        async def gather() -> Sequence[Any]:
            return await asyncio.gather(*(method(*arguments) for _ in range(count)), return_exceptions=True)

        return list(self._run(gather()))

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(PATIENCE)

    def iterate(self, updates: Any) -> Updates:
        return AsyncUpdates(updates, self.loop)


KINDS: dict[str, type[Feed]] = {"SessionFeed": Feed, "AsyncSessionFeed": AsyncFeed}
OpenFeed = Callable[..., Feed]


@contextlib.contextmanager
def feeds(kind: type[Feed]) -> Iterator[OpenFeed]:
    """Open feeds of that kind; all are closed in the end."""
    with contextlib.ExitStack() as stack:

        def open_feed(url: str, **settings: Any) -> Feed:
            feed = kind(url, **settings)
            stack.callback(feed.end)
            return feed

        yield open_feed


class Reconnects:
    """Collects why, and has each new try soon; ends a test that would try for ever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at_most: int = 1000) -> None:
        monkeypatch.setattr(transport, "FIRST_PAUSE", 0.02)
        monkeypatch.setattr(transport, "LONGEST_PAUSE", 0.05)
        monkeypatch.setattr(transport, "LONGEST_REFUSED_PAUSE", 0.05)
        self._at_most = at_most
        self.errors: list[Exception] = []
        self.first = threading.Event()

    def __call__(self, error: Exception) -> None:
        self.errors.append(error)
        self.first.set()
        assert len(self.errors) < self._at_most


def block_shortly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what waits at Redis look around after 50 ms, and give a silent connection up soon after."""
    monkeypatch.setattr(transport, "BLOCK_MS", 50)
