"""The way of one delivery, after its signature. Knows no HTTP, so it can replay dead letters too."""

import dataclasses
import re
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final

from service.clerk import Ignored, Unusable, parse
from service.contract import Outcome
from service.normalize import normalize
from service.signature import Delivery
from service.store import SessionStore

_TYPE: Final = re.compile(r"[a-z_]{1,40}(\.[a-z_]{1,40}){1,3}", re.IGNORECASE | re.ASCII)
"""`user.created`, `organizationMembership.deleted`: https://clerk.com/docs/webhooks/overview"""


@dataclasses.dataclass(slots=True)
class Trace:
    """What is known of a delivery so far, whatever becomes of it; fit for the log."""

    message_id: str | None = None
    type: str | None = None
    """None if it does not look like one of Clerk's: any text can stand there."""
    session_id: str | None = None
    user_id: str | None = None
    occurred_at_ms: int | None = None
    nulled: list[str] = dataclasses.field(default_factory=list)
    """Odd fields that were read as null; each as often as it was."""


class Ingest:
    def __init__(
        self,
        store: SessionStore,
        *,
        publish_http_request: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """clock: Unix seconds."""
        self._store = store
        self._publish_http_request = publish_http_request
        self._clock = clock

    def __call__(self, delivery: Delivery, trace: Trace | None = None) -> Future[Outcome]:
        """Turn a genuine delivery into state; once the future has an outcome, Redis has the state.

        trace: is filled in.
        Raises MalformedEventError; StoreUnavailableError, here or in the future.
        """
        trace = trace or Trace()
        now_ms = int(self._clock() * 1000)
        event = parse(delivery.body, trace.nulled.append, with_request=self._publish_http_request)
        trace.type = event.type if _TYPE.fullmatch(event.type) else None
        if isinstance(event, Ignored):
            return done(Outcome("ignored"))
        if isinstance(event, Unusable):
            return self._store.keep_dead_letter(delivery, event, now_ms)
        trace.session_id, trace.user_id = event.data.id, event.data.user_id
        change = normalize(event, message_id=delivery.id, now_ms=now_ms)
        if isinstance(change, Unusable):
            return self._store.keep_dead_letter(delivery, change, now_ms)
        trace.occurred_at_ms = change.event.occurred_at
        return self._store.apply(change, delivery.body, now_ms)


def done(outcome: Outcome) -> Future[Outcome]:
    future: Future[Outcome] = Future()
    future.set_result(outcome)
    return future
