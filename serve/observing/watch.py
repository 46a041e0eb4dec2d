"""The clock of one request: milliseconds per stage, each a span where the trace is recorded."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from serve.observing.tracing import (
    NOT_RECORDED,
    Attributes,
    Recording,
    child_span,
    outermost_span,
)
from serve.telemetry import STAGES


class Stopwatch:
    """Stages may be timed in any thread; one that is entered twice adds up."""

    def __init__(self) -> None:
        self._span = NOT_RECORDED
        self._started_s = time.perf_counter()
        self._started_unix_ns = time.time_ns()
        self._stages_ms: dict[str, float] = {}

    @contextmanager
    def record(self, name: str, linked_to: str | None = None) -> Iterator[Recording]:
        """A span of all that is timed here, from the clock's start to the block's end.

        Args:
            linked_to: see `outermost_span`.
        """
        with outermost_span(name, self._started_unix_ns, linked_to) as span:
            self._span = span
            try:
                yield span
            except BaseException as exc:
                span.fail_with(exc)  # before its end: nothing is written on a span afterwards
                raise
            finally:
                span.end(self._unix_ns(time.perf_counter()))

    def stage(self, name: str) -> AbstractContextManager[Recording]:
        if name not in STAGES:
            raise KeyError(name)
        return _Stage(self, name) if self._span is NOT_RECORDED else self._recorded(name)

    @contextmanager
    def _recorded(self, name: str) -> Iterator[Recording]:
        started_s = time.perf_counter()
        with child_span(self._span, name, self._unix_ns(started_s)) as span:
            try:
                yield span
            except BaseException as exc:
                span.fail_with(exc)
                raise
            finally:
                ended_s = time.perf_counter()
                self.add(name, ended_s - started_s)
                span.end(self._unix_ns(ended_s))

    def add(self, name: str, elapsed_s: float) -> None:
        self._stages_ms[name] = self._stages_ms.get(name, 0.0) + elapsed_s * 1e3

    def note(self, attributes: Attributes) -> None:
        """Say it of the whole request."""
        self._span.note(attributes)

    def _unix_ns(self, now_s: float) -> int:
        # One clock for all: what the spans say is what the header says.
        return self._started_unix_ns + int((now_s - self._started_s) * 1e9)

    @property
    def stages_ms(self) -> dict[str, float]:
        # Copied first: the thread of a request whose deadline has come may end a stage meanwhile.
        return {name: round(value, 3) for name, value in self._stages_ms.copy().items()}

    @property
    def total_ms(self) -> float:
        return round((time.perf_counter() - self._started_s) * 1e3, 3)

    def server_timing(self) -> str:
        """The `Server-Timing` header's value (W3C Server Timing, 2023-04)."""
        entries = [f"{name};dur={value:.1f}" for name, value in self._stages_ms.copy().items()]
        return ", ".join([*entries, f"total;dur={self.total_ms:.1f}"])


class _Stage:
    """One stage that nobody records: 1 us instead of 6, sixteen times a request."""

    __slots__ = ("_name", "_started_s", "_watch")

    def __init__(self, watch: Stopwatch, name: str) -> None:
        self._watch = watch
        self._name = name

    def __enter__(self) -> Recording:
        self._started_s = time.perf_counter()
        return NOT_RECORDED

    def __exit__(self, *_: object) -> None:
        self._watch.add(self._name, time.perf_counter() - self._started_s)
