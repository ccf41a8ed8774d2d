"""Both feeds of `clerk_session_feed.testing` behind the face of support.feeds."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from clerk_session_feed.testing import AsyncMemorySessionFeed, MemorySessionFeed

from support.feeds import AsyncFeed, Feed


class MemoryFeed(Feed):
    def __init__(self, **settings: Any) -> None:
        self.feed: Any = MemorySessionFeed(**settings)

    def wait_until_idle(self, *arguments: Any) -> None:
        self.do(self.feed.wait_until_idle, *arguments)


class AsyncMemoryFeed(MemoryFeed, AsyncFeed):
    def __init__(self, **settings: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.feed = AsyncMemorySessionFeed(**settings)

    def do(self, method: Callable[..., Any], *arguments: Any) -> Any:
        return AsyncFeed.do(self, method, *arguments)


MEMORY_KINDS: dict[str, type[MemoryFeed]] = {"MemorySessionFeed": MemoryFeed, "AsyncMemorySessionFeed": AsyncMemoryFeed}


@contextlib.contextmanager
def memory_feeds(kind: type[MemoryFeed]) -> Iterator[Callable[..., MemoryFeed]]:
    """Open feeds of that kind; all are closed in the end."""
    with contextlib.ExitStack() as stack:

        def open_feed(**settings: Any) -> MemoryFeed:
            feed = kind(**settings)
            stack.callback(feed.end)
            return feed

        yield open_feed
