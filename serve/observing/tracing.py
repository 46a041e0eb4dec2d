"""Spans through OpenTelemetry, whose only user this is.

Serve owns the tracer provider of each replica, extracts the caller's `traceparent` and carries the
context to the replicas it calls; what is made here stands below the spans it makes. Nothing is made
where a request's trace is not recorded.
"""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache

from opentelemetry import context, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import DEFAULT_OFF
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    Status,
    StatusCode,
    Tracer,
)
from opentelemetry.trace import TracerProvider as AnyTracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from serve.errors import Sm4llError

Attribute = str | bool | int | float
Attributes = Mapping[str, Attribute | None]
"""By the names of `serve.telemetry.ATTRIBUTES`; what is None is left out."""

TRACER = "sm4ll"
TRACEPARENT = "traceparent"
FIRST_STATUS_OF_OURS = 500
_W3C = TraceContextTextMapPropagator()


class Recording:
    """One span, from any thread; where nobody records it, everything here does nothing."""

    __slots__ = ("_span",)

    def __init__(self, span: Span | None) -> None:
        self._span = span

    @property
    def span(self) -> Span | None:
        return self._span

    @property
    def traceparent(self) -> str | None:
        """As W3C Trace Context writes it; None where it is not recorded."""
        return None if self._span is None else _write(self._span)

    def note(self, attributes: Attributes) -> None:
        """Nothing after the end, as in `event`."""
        if self._span is not None and self._span.is_recording():
            self._span.set_attributes({k: v for k, v in attributes.items() if v is not None})

    def event(self, name: str, attributes: Mapping[str, Attribute]) -> None:
        """Nothing after the end: a pass goes on for others when one's deadline has come."""
        if self._span is not None and self._span.is_recording():
            self._span.add_event(name, attributes)

    def rename(self, name: str) -> None:
        if self._span is not None:
            self._span.update_name(name)

    def fail(self, code: str, *, is_ours: bool) -> None:
        """
        Args:
            is_ours: what the caller must change is no failure of the service (OpenTelemetry HTTP
                conventions: a server's span has the status ERROR from 500 on).
        """
        if self._span is not None and self._span.is_recording():
            self._span.set_attribute("error.type", code)
            if is_ours:
                self._span.set_status(Status(StatusCode.ERROR, code))

    def fail_with(self, exc: BaseException) -> None:
        if self._span is None:
            return
        if isinstance(exc, Sm4llError):
            self.fail(exc.code, is_ours=exc.status >= FIRST_STATUS_OF_OURS)
        elif isinstance(exc, asyncio.CancelledError | GeneratorExit):
            self.fail("cancelled", is_ours=False)
        else:
            self.fail(Sm4llError.code, is_ours=True)

    def end(self, unix_ns: int | None = None) -> None:
        if self._span is not None:
            self._span.end(unix_ns)


NOT_RECORDED = Recording(None)


def recording_span() -> Span | None:
    """The span of what runs now, where its trace is recorded."""
    span = trace.get_current_span()
    return span if span.is_recording() else None


def current_ids() -> tuple[str, str] | None:
    """The trace's id and the span's, in hexadecimal, where the trace is recorded."""
    span = recording_span()
    if span is None:
        return None
    context = span.get_span_context()
    return trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)


def current_traceparent() -> str | None:
    """Of what runs now; see `Recording.traceparent`."""
    return Recording(recording_span()).traceparent


def open_span(
    name: str, attributes: Attributes | None = None, *, parent: Recording | None = None
) -> Recording:
    """Below the parent, but not what runs now: for what goes on elsewhere. Who opens it ends it.

    Args:
        parent: what runs now, when absent.
    """
    above = recording_span() if parent is None else parent.span
    if above is None:
        return NOT_RECORDED
    span = Recording(_tracer().start_span(name, trace.set_span_in_context(above)))
    span.note(attributes or {})
    return span


@contextmanager
def recorded(name: str, attributes: Attributes | None = None) -> Iterator[Recording]:
    """As `open_span`, ended by the block's end; it fails with what the block raises."""
    span = open_span(name, attributes)
    try:
        yield span
    except BaseException as exc:
        span.fail_with(exc)
        raise
    finally:
        span.end()


@contextmanager
def child_span(parent: Recording, name: str, started_unix_ns: int) -> Iterator[Recording]:
    """Below the parent, and what runs now inside the block.

    The parent is passed: threads that do parts of a request know nothing of its context.
    Whoever opens it ends it, with the time that its own clock measured.
    """
    if parent.span is None:
        yield NOT_RECORDED
        return
    with _current(_start(parent.span, name, started_unix_ns)) as span:
        yield span


@contextmanager
def outermost_span(
    name: str, started_unix_ns: int, linked_to: str | None = None
) -> Iterator[Recording]:
    """The first span of ours in a process, below the one that Serve made of the call.

    Where that one is not recorded, nothing inside the block is: Serve itself forgets it, and would
    begin a trace with every call to another deployment (2.60, `TraceContextManager.__enter__`).

    Args:
        linked_to: the `traceparent` of what this is the consequence of, without waiting for it.
    """
    parent = recording_span()
    if parent is not None:
        with _current(_start(parent, name, started_unix_ns, linked_to)) as span:
            yield span
        return
    if not isinstance(trace.get_tracer_provider(), TracerProvider):
        yield NOT_RECORDED  # there is no tracing
        return
    token = context.attach(trace.set_span_in_context(_unsampled()))
    try:
        yield NOT_RECORDED
    finally:
        context.detach(token)


def follow_callers() -> None:
    """Have this process record what its caller records, and nothing else.

    For replicas that are called by ours only, before their first span: Serve tells them nothing of
    a trace that is not recorded, and they would sample each call anew.
    """
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        provider.sampler = DEFAULT_OFF


def _tracer() -> Tracer:
    return _tracer_of(trace.get_tracer_provider())


@lru_cache(maxsize=1)
def _tracer_of(provider: AnyTracerProvider) -> Tracer:
    return provider.get_tracer(TRACER)  # a third of a span's cost, where each asks


def _write(span: Span) -> str:
    carrier: dict[str, str] = {}
    _W3C.inject(carrier, trace.set_span_in_context(span))
    return carrier[TRACEPARENT]


def _start(parent: Span, name: str, started_unix_ns: int, linked_to: str | None = None) -> Span:
    return _tracer().start_span(
        name,
        trace.set_span_in_context(parent),
        links=_link(linked_to),
        start_time=started_unix_ns,
    )


def _link(traceparent: str | None) -> list[Link]:
    if traceparent is None:
        return []
    span = trace.get_current_span(_W3C.extract({TRACEPARENT: traceparent}, context.Context()))
    found = span.get_span_context()
    return [Link(found)] if found.is_valid else []


@contextmanager
def _current(span: Span) -> Iterator[Recording]:
    token = context.attach(trace.set_span_in_context(span))
    try:
        yield Recording(span)
    finally:
        context.detach(token)


def _unsampled() -> NonRecordingSpan:
    ids = RandomIdGenerator()
    return NonRecordingSpan(SpanContext(ids.generate_trace_id(), ids.generate_span_id(), False))
