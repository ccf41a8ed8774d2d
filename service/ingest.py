"""One genuine delivery, from its body to its outcome. It knows no HTTP, so dead letters can be replayed."""

import re
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from service.clerk.events import parse
from service.clerk.normalize import ending, normalize
from service.clerk.users import UserEvent
from service.models import Delivery, DeliveryInfo, Ignored, Outcome, SessionChange, Unusable, UserEnding
from service.store.partitions import WRITE_SECONDS
from service.store.sessions import SessionStore
from service.store.users import end_sessions
from service.waiting import Steps, complete, read_body

_TYPE: Final = re.compile(r"[a-z_]{1,40}(\.[a-z_]{1,40}){1,3}", re.IGNORECASE | re.ASCII)
"""`user.created`, `organizationMembership.deleted`: https://clerk.com/docs/webhooks/overview"""


class Ingest:
    """Turns genuine deliveries into session state."""

    def __init__(
        self, store: SessionStore, *, publish_http_request: bool = False, clock: Callable[[], float] = time.time
    ) -> None:
        """Take the setting PUBLISH_HTTP_REQUEST, and a clock that returns Unix seconds."""
        self._store = store
        self._publish_http_request = publish_http_request
        self._clock = clock

    def __call__(self, delivery: Delivery, info: DeliveryInfo | None = None) -> Outcome:
        """Turn a genuine delivery into state; when this returns, Redis has it.

        Args:
            delivery: from the verifier, or from a dead letter.
            info: filled in with what the delivery says, even if this raises.

        Raises:
            MalformedEventError: The body is not an event.
            StoreUnavailableError: Redis did not take it in time.
            TimeoutError: The body is large, and no thread was free to read it in time.
        """
        return complete(self.steps(delivery, info or DeliveryInfo()), WRITE_SECONDS)

    def steps(self, delivery: Delivery, info: DeliveryInfo) -> Steps[Outcome]:
        """Do the same in steps, for who must not block."""
        event = read_body(delivery.body, self._read, delivery, info)
        if isinstance(event, Ignored):
            return Outcome("ignored")
        if isinstance(event, SessionChange):
            return (yield from self._store.apply(event, delivery.body, self._now_ms()))
        outcome: Outcome
        if isinstance(event, UserEnding):
            outcome = yield partial(end_sessions, self._store, event, self._now_ms())
        else:
            outcome = yield partial(self._store.keep_dead_letter, delivery, event, self._now_ms())
        return outcome

    def _read(self, delivery: Delivery, info: DeliveryInfo) -> SessionChange | UserEnding | Ignored | Unusable:
        """Parse and normalize a body."""
        event = parse(delivery.body, info.nulled.append, with_request=self._publish_http_request)
        info.type = event.type if _TYPE.fullmatch(event.type) else None
        if isinstance(event, Ignored | Unusable):
            return event
        if isinstance(event, UserEvent):
            info.user_id = event.data.id
            with_request = self._publish_http_request
            return ending(event, message_id=delivery.id, now_ms=self._now_ms(), with_request=with_request)
        info.session_id, info.user_id = event.data.id, event.data.user_id
        change = normalize(event, message_id=delivery.id, now_ms=self._now_ms())
        if not isinstance(change, Unusable):
            info.occurred_at_ms = change.event.occurred_at
        return change

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)
