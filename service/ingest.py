"""The way of one delivery, after its signature. Knows no HTTP, so it can replay dead letters too."""

import collections
import time
from collections.abc import Callable
from concurrent.futures import Future

from service.clerk import Ignored, Unusable, parse
from service.contract import Outcome
from service.normalize import normalize
from service.signature import Delivery
from service.store import SessionStore


class Ingest:
    def __init__(
        self,
        store: SessionStore,
        *,
        publish_http_request: bool = False,
        count_nulled: Callable[[str, int], None] = lambda *_: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """count_nulled: is told which odd fields were read as null, and how often. clock: Unix seconds."""
        self._store = store
        self._publish_http_request = publish_http_request
        self._count_nulled = count_nulled
        self._clock = clock

    def __call__(self, delivery: Delivery) -> Future[Outcome]:
        """Turn a genuine delivery into state; once the future has an outcome, Redis has the state.

        Raises MalformedEventError; StoreUnavailableError, here or in the future.
        """
        now_ms = int(self._clock() * 1000)
        nulled: list[str] = []
        event = parse(delivery.body, nulled.append)
        for field, times in collections.Counter(nulled).items():
            self._count_nulled(field, times)
        if isinstance(event, Ignored):
            return done(Outcome("ignored"))
        if isinstance(event, Unusable):
            return self._store.keep_dead_letter(delivery, event, now_ms)
        change = normalize(
            event, message_id=delivery.id, now_ms=now_ms, publish_http_request=self._publish_http_request
        )
        if isinstance(change, Unusable):
            return self._store.keep_dead_letter(delivery, change, now_ms)
        return self._store.apply(change, delivery.body, now_ms)


def done(outcome: Outcome) -> Future[Outcome]:
    future: Future[Outcome] = Future()
    future.set_result(outcome)
    return future
