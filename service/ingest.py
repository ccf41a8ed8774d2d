"""One genuine delivery, from its body to its outcome. Knows no HTTP, so it can replay dead letters too."""

import dataclasses
import re
import time
from collections.abc import Callable
from typing import Final

from service.clerk import Ignored, Unusable, parse
from service.contract import Outcome
from service.normalize import SessionChange, normalize
from service.signature import Delivery
from service.store import SessionStore

Event = SessionChange | Ignored | Unusable
"""What a delivery says."""

_TYPE: Final = re.compile(r"[a-z_]{1,40}(\.[a-z_]{1,40}){1,3}", re.IGNORECASE | re.ASCII)
"""`user.created`, `organizationMembership.deleted`: https://clerk.com/docs/webhooks/overview"""


@dataclasses.dataclass(slots=True)
class DeliveryInfo:
    """What is known of a delivery so far, whatever becomes of it; fit for the log."""

    message_id: str | None = None
    type: str | None = None
    """None if it does not look like one of Clerk's: any text can stand there."""
    session_id: str | None = None
    user_id: str | None = None
    occurred_at_ms: int | None = None
    """Unix milliseconds."""
    nulled: list[str] = dataclasses.field(default_factory=list)
    """Odd fields that were read as null; each as often as it was."""


class Ingest:
    """Makes state of deliveries: `read` computes, `store` waits for Redis; `ingest(delivery)` does both."""

    def __init__(
        self,
        store: SessionStore,
        *,
        publish_http_request: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Args:
        clock: returns Unix seconds.

        """
        self._store = store
        self._publish_http_request = publish_http_request
        self._clock = clock

    def __call__(self, delivery: Delivery) -> Outcome:
        """Turn a genuine delivery into state; when this returns, Redis has it.

        Raises:
            MalformedEventError: The body is no event.
            StoreUnavailableError: Redis did not take it.

        """
        return self.store(delivery, self.read(delivery, DeliveryInfo()))

    def read(self, delivery: Delivery, info: DeliveryInfo) -> Event:
        """Read a genuine delivery, and fill in what is known of it. Does no I/O.

        Raises:
            MalformedEventError: The body is no event.

        """
        event = parse(delivery.body, info.nulled.append, with_request=self._publish_http_request)
        info.type = event.type if _TYPE.fullmatch(event.type) else None
        if isinstance(event, Ignored | Unusable):
            return event
        info.session_id, info.user_id = event.data.id, event.data.user_id
        change = normalize(event, message_id=delivery.id, now_ms=self._now_ms())
        if not isinstance(change, Unusable):
            info.occurred_at_ms = change.event.occurred_at
        return change

    def store(self, delivery: Delivery, event: Event) -> Outcome:
        """Put what `read` returned into Redis.

        Raises:
            StoreUnavailableError: Redis did not take it.

        """
        if isinstance(event, Ignored):
            return Outcome("ignored")
        if isinstance(event, Unusable):
            return self._store.keep_dead_letter(delivery, event, self._now_ms())
        return self._store.apply(event, delivery.body, self._now_ms())

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)
