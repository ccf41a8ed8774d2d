"""What became of each delivery: a line in the log, and counts in the metrics."""

import collections
import contextlib
import time
from collections.abc import Callable, Iterator

import structlog

from service.errors import RelayError
from service.models import DeliveryInfo, Outcome
from service.telemetry import metrics
from service.telemetry.log import batched

log = structlog.get_logger("service.access")

_Entry = tuple[DeliveryInfo, float, str, str | None, int | None]
"""Arguments of `_write`."""


class AccessLog:
    """Writes entries in batches where deliveries arrive together, which halves the cost. Thread-safe."""

    def __init__(self) -> None:
        self.schedule: Callable[[Callable[[], None]], object] = lambda write: write()
        """Calls its argument, now or later; `serve` replaces it."""
        self._entries: collections.deque[_Entry] = collections.deque()
        self._is_scheduled = False

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
