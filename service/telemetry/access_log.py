"""What became of each delivery: a line in the log, and counts in the metrics."""

import collections
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Final

import structlog

from service.errors import RelayError
from service.models import DeliveryInfo, Outcome
from service.telemetry import metrics
from service.telemetry.log import batched

log = structlog.get_logger("service.access")

ADVICE_SECONDS: Final = 60
"""Seconds until the same advice is logged again: anyone can send a request that asks for it."""
_AT_CLERK: Final = "at Clerk's Dashboard, Webhooks, your endpoint"
_ADVICE: Final = {
    "not_found": f"A signed delivery came to another path: {_AT_CLERK}, let the URL end in /webhooks/clerk.",
    "invalid_signature": "No secret in CLERK_WEBHOOK_SIGNING_SECRET matches a delivery. If Clerk sent it, copy the "
    f"Signing Secret that is {_AT_CLERK}: each endpoint has its own.",
    "timestamp_out_of_tolerance": "A delivery was signed more than 5 minutes before or after this machine's time. "
    "If Clerk sent it, set this machine's clock, by NTP.",
}
"""By the problem's code, what to do if deliveries of Clerk are refused."""

_Entry = tuple[DeliveryInfo, float, str, str | None, int | None]
"""Arguments of `_write`."""


class AccessLog:
    """Writes entries in batches where deliveries arrive together, which halves the cost. Thread-safe."""

    def __init__(self) -> None:
        self.schedule: Callable[[Callable[[], None]], object] = lambda write: write()
        """Calls its argument, now or later; `serve` replaces it."""
        self._entries: collections.deque[_Entry] = collections.deque()
        self._is_scheduled = False
        self.next_advice: dict[str, float] = {}
        """When advice about a problem's code may be logged again, by the monotonic clock."""

    def record(self, info: DeliveryInfo, seconds: float, result: Outcome | RelayError) -> None:
        """Record what became of a delivery.

        Args:
            info: what is known of the delivery.
            seconds: how long it took, from the complete request.
            result: its outcome, or why there is none.
        """
        if isinstance(result, RelayError):
            self._entries.append((info, seconds, metrics.outcome_of(result.status), result.code, None))
        else:
            self._entries.append((info, seconds, result.outcome, result.reason, result.sessions))
        if not self._is_scheduled:
            self._is_scheduled = True
            self.schedule(self.write)

    def write(self) -> None:
        """Write all entries that are not written yet."""
        self._is_scheduled = False
        with batched():
            for entry in self._take():
                _write(*entry)
                if entry[2] == "rejected":
                    self.advise(entry[3])

    def advise(self, code: str | None) -> None:
        """Warn, once a minute for each code, of what is probably to be corrected at Clerk or here."""
        now = time.monotonic()
        if code in _ADVICE and now >= self.next_advice.get(code, 0.0):
            self.next_advice[code] = now + ADVICE_SECONDS
            log.warning("check_endpoint", reason=code, advice=_ADVICE[code])

    def _take(self) -> Iterator[_Entry]:
        with contextlib.suppress(IndexError):  # another thread may take the last one
            while True:
                yield self._entries.popleft()


def _write(info: DeliveryInfo, seconds: float, outcome: str, reason: str | None, sessions: int | None) -> None:
    metrics.count_delivery(outcome, reason)
    metrics.DURATION.observe(seconds)
    if outcome == "applied" and info.occurred_at_ms is not None:
        metrics.observe_lag(time.time() - info.occurred_at_ms / 1000)
    for field in info.nulled:
        metrics.NULLED_FIELDS.labels(field).inc()
    needs_a_look = outcome in {"failed", "dead_lettered"} or reason == "other_body"
    (log.warning if needs_a_look else log.info)(
        "delivery",
        outcome=outcome,
        reason=reason,
        type=info.type,
        session_id=info.session_id,
        user_id=info.user_id,
        message_id=info.message_id,
        duration_ms=round(seconds * 1000, 3),
        **{} if sessions is None else {"sessions": sessions},
    )
