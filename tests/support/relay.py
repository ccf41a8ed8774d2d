"""The relay in this process, without HTTP."""

import asyncio
import contextlib
import itertools
import json
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from service.config import Settings, load
from service.ingest import Ingest
from service.models import Delivery, Outcome
from service.store.sessions import SessionStore
from service.waiting import Greenlets
from support.constants import NOW_MS, SECRET

T = TypeVar("T")


def make_settings(redis_url: str, **overrides: Any) -> Settings:
    return load(Settings, _env_file=None, redis_url=redis_url, **{"clerk_webhook_signing_secret": SECRET} | overrides)


async def _greenlets(loop: asyncio.AbstractEventLoop) -> Greenlets:
    return Greenlets(loop)  # they belong to the thread that makes them


class Relay:
    """Takes deliveries into a store of its own, at a frozen time."""

    def __init__(self, redis_url: str, *, now_ms: int = NOW_MS, **overrides: Any) -> None:
        self.now_ms = now_ms
        settings = make_settings(redis_url, **overrides)
        self.store = SessionStore(settings)
        self._ingest = Ingest(
            self.store, publish_http_request=settings.publish_http_request, clock=lambda: self.now_ms / 1000
        )

        # As under `serve`: on an event loop, in greenlets.
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._greenlets = asyncio.run_coroutine_threadsafe(_greenlets(self._loop), self._loop).result()
        self.store.bind_loop(self._loop)

    def call(self, function: Callable[..., T], *args: Any) -> Future[T]:
        """Call something that blocks; it began, in the order of the calls, once the loop comes to it."""
        deadline = self._loop.time() + 60
        return asyncio.run_coroutine_threadsafe(self._greenlets.run(deadline, function, *args), self._loop)

    def begin(self, event: object, message_id: str) -> Future[Outcome]:
        body = event if isinstance(event, bytes) else json.dumps(event).encode()
        return self.call(self._ingest, Delivery(message_id, self.now_ms // 1000, body))

    def is_sending(self) -> bool:
        """Tell whether something was sent to Redis, and nothing more waits to be sent."""
        pipelines = self.store._pipelines.values()
        return any(each._stuck_from < math.inf and not each._waiting for each in pipelines)

    def take(self, event: object, message_id: str) -> Outcome:
        return self.begin(event, message_id).result(timeout=30)

    def take_all(self, deliveries: Iterable[tuple[object, str]]) -> set[str | None]:
        """Take many, some at a time, so that each is done within the seconds of a response; return their outcomes."""
        left = iter(deliveries)
        outcomes: set[str | None] = set()
        while begun := [self.begin(*each) for each in itertools.islice(left, 50)]:
            outcomes |= {each.result(timeout=30).outcome for each in begun}
        return outcomes

    def close(self) -> None:
        self.store.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@contextlib.contextmanager
def run_relay(redis_url: str, **options: Any) -> Iterator[Relay]:
    relay = Relay(redis_url, **options)
    try:
        yield relay
    finally:
        relay.close()
