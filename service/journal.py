"""What became of deliveries: for each a line in the log, and its place in the metrics."""

import collections
import contextlib
import time
from collections.abc import Callable, Iterator

import structlog

from service import metrics
from service.contract import Outcome
from service.errors import RelayError
from service.ingest import Trace
from service.log import together

log = structlog.get_logger("service.app")


class Journal:
    """Thread-safe. Written a few deliveries at a time, which halves its cost."""

    def __init__(self) -> None:
        self.soon: Callable[[Callable[[], None]], object] = lambda write: write()
        """Calls what it is given: at once, or once the deliveries at hand are answered."""
        self._entries: collections.deque[tuple[Trace, float, Outcome | RelayError]] = collections.deque()
        self._will_write = False

    def note(self, trace: Trace, started: float, result: Outcome | RelayError) -> None:
        """started: of `time.perf_counter`."""
        self._entries.append((trace, time.perf_counter() - started, result))
        if not self._will_write:
            self._will_write = True
            self.soon(self.write)

    def write(self) -> None:
        self._will_write = False
        with together():
            self._write()

    def _write(self) -> None:
        now_ms = time.time() * 1000
        counts: collections.Counter[tuple[str, str | None]] = collections.Counter()
        durations: list[float] = []
        lags: list[float] = []
        for trace, duration, result in self._taken():
            outcome, reason = _outcome_and_reason(result)
            counts[outcome, reason] += 1
            durations.append(duration)
            if outcome == "applied" and trace.occurred_at_ms is not None:
                lags.append((now_ms - trace.occurred_at_ms) / 1000)
            for field in trace.nulled:
                metrics.NULLED_FIELDS.labels(field).inc()
            needs_a_look = outcome in {"failed", "dead_lettered"} or reason == "other_body"
            (log.warning if needs_a_look else log.info)(
                "delivery",
                outcome=outcome,
                reason=reason,
                type=trace.type,
                session_id=trace.session_id,
                user_id=trace.user_id,
                message_id=trace.message_id,
                duration_ms=round(duration * 1000, 3),
            )
        for outcome_and_reason, times in counts.items():
            metrics.count_deliveries(*outcome_and_reason, times)
        metrics.DURATION.observe_many(durations)
        metrics.LAG.observe_many(lags)

    def _taken(self) -> Iterator[tuple[Trace, float, Outcome | RelayError]]:
        with contextlib.suppress(IndexError):  # another thread may have taken the last one
            while True:
                yield self._entries.popleft()


def _outcome_and_reason(result: Outcome | RelayError) -> tuple[str, str | None]:
    if isinstance(result, RelayError):
        return metrics.outcome_of(result.status), result.code
    return result.outcome, result.reason
