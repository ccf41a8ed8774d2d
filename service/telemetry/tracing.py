"""Spans of OpenTelemetry for round trips to Redis, where the process has a tracer.

Group commit talks to Redis by itself, so the instrumentation of redis-py sees nothing of it. OpenTelemetry's
API is used if it was imported by then (by `opentelemetry-instrument`, say); nothing here imports it.
"""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any


def current_context() -> Any:
    """Return the context of the span that is being recorded here, or None."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None or not trace.get_current_span().is_recording():
        return None
    return trace.set_span_in_context(trace.get_current_span())


@contextlib.contextmanager
def round_trip(contexts: Sequence[Any]) -> Iterator[None]:
    """Record the round trip of a batch.

    One that carries a single command is a span below that command's. One that several share belongs to none
    of them: it is a trace of its own, with a link to each, and each has a span below it that links back.

    Args:
        contexts: for each command, what `current_context` returned when it was submitted.

    """
    traced = [context for context in contexts if context is not None]
    trace: Any = sys.modules.get("opentelemetry.trace")
    if not traced or trace is None:
        yield
        return
    tracer = trace.get_tracer("clerk-session-relay")
    attributes = {"db.system.name": "redis", "db.operation.name": "EVALSHA"}
    if len(contexts) == 1:
        with tracer.start_as_current_span("EVALSHA", traced[0], trace.SpanKind.CLIENT, attributes):
            yield
        return
    shared = attributes | {"db.operation.name": "PIPELINE", "db.operation.batch.size": len(contexts)}
    links = [trace.Link(trace.get_current_span(context).get_span_context()) for context in traced]
    # An empty context: whatever is current in the task that sends is no parent of the batch.
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
