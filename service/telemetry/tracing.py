"""OpenTelemetry spans for round trips to Redis, where the process has a tracer.

`store.pipeline` uses connections without redis-py's client, so redis-py's instrumentation sees nothing. The
API of OpenTelemetry is used if something else imported it (`opentelemetry-instrument`, for example).
"""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any


def current_context() -> Any:
    """Return the context of the span that is current and recorded, or None."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None or not trace.get_current_span().is_recording():
        return None
    return trace.set_span_in_context(trace.get_current_span())


@contextlib.contextmanager
def round_trip(contexts: Sequence[Any]) -> Iterator[None]:
    """Record a span for the round trip of a batch.

    With one command, the span is a child of the command's span. With several, it is the root of its own trace
    and links to each; a child of each command's span links back.

    Args:
        contexts: for each command, what `current_context` returned when it was submitted.
    """
    traced = [context for context in contexts if context is not None]
    if not traced:
        yield
        return
    trace: Any = sys.modules["opentelemetry.trace"]
    tracer = trace.get_tracer("clerk-session-relay")
    attributes = {"db.system.name": "redis", "db.operation.name": "EVALSHA"}
    if len(contexts) == 1:
        with tracer.start_as_current_span("EVALSHA", traced[0], trace.SpanKind.CLIENT, attributes):
            yield
        return
    shared = attributes | {"db.operation.name": "PIPELINE", "db.operation.batch.size": len(contexts)}
    links = [trace.Link(trace.get_current_span(context).get_span_context()) for context in traced]
    # An empty context, so that the current span of the task that sends is not the parent.
    root = trace.set_span_in_context(trace.INVALID_SPAN)
    with contextlib.ExitStack() as stack:
        batch = stack.enter_context(
            tracer.start_as_current_span("PIPELINE", root, trace.SpanKind.CLIENT, shared, links)
        )
        back = [trace.Link(batch.get_span_context())]
        for context in traced:
            span = tracer.start_span("EVALSHA", context, trace.SpanKind.CLIENT, attributes, back)
            stack.callback(span.end)
        yield
