"""Spans through OpenTelemetry, whose only user this is.

Serve owns the tracer provider of each replica, extracts the caller's `traceparent` and carries the
context to the replicas it calls; what is made here stands below the spans it makes. Nothing is made
where a request's trace is not recorded.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import context, trace
from opentelemetry.trace import Span

Attribute = str | bool | int | float

TRACER = "sm4ll"


def recording_span() -> Span | None:
    """The span of what runs now, where its trace is recorded."""
    span = trace.get_current_span()
    return span if span.is_recording() else None


@contextmanager
def child_span(
    parent: Span | None, name: str, started_unix_ns: int, **attributes: Attribute
) -> Iterator[Span | None]:
    """A span below the parent and the current one inside the block; nothing without a parent.

    The parent is passed: threads that do parts of a request know nothing of its context.
    Whoever opens it ends it, with the time that its own clock measured.
    """
    if parent is None:
        yield None
        return
    span = trace.get_tracer(TRACER).start_span(
        name, trace.set_span_in_context(parent), attributes=attributes, start_time=started_unix_ns
    )
    token = context.attach(trace.set_span_in_context(span))
    try:
        yield span
    finally:
        context.detach(token)


def set_attributes(span: Span | None, attributes: Mapping[str, Attribute | None]) -> None:
    """Those that have a value."""
    if span is not None:
        span.set_attributes({k: v for k, v in attributes.items() if v is not None})
