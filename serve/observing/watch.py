"""The clock of one request: milliseconds per stage, each a span where the trace is recorded."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry.trace import Span

from serve.observing.tracing import Attribute, child_span, set_attributes
from serve.telemetry import STAGES


class Stopwatch:
    """Stages may be timed in any thread; one that is entered twice adds up."""

    def __init__(self, span: Span | None = None) -> None:
        """
        Args:
            span: of the whole request; None where nobody records it.
        """
        self._span = span
        self._started_s = time.perf_counter()
        self._started_unix_ns = time.time_ns()
        self._stages_ms: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, **attributes: Attribute) -> Iterator[Span | None]:
        if name not in STAGES:
            raise KeyError(name)
        started_s = time.perf_counter()
        started_unix_ns = self._unix_ns(started_s)
        with child_span(self._span, name, started_unix_ns, **attributes) as span:
            try:
                yield span
            finally:
                ended_s = time.perf_counter()
                elapsed_ms = (ended_s - started_s) * 1e3
                self._stages_ms[name] = self._stages_ms.get(name, 0.0) + elapsed_ms
                if span is not None:
                    span.end(self._unix_ns(ended_s))

    def note(self, attributes: Mapping[str, Attribute | None]) -> None:
        """Say it of the whole request."""
        set_attributes(self._span, attributes)

    def _unix_ns(self, now_s: float) -> int:
        # One clock for all: what the spans say is what the header says.
        return self._started_unix_ns + int((now_s - self._started_s) * 1e9)

    @property
    def stages_ms(self) -> dict[str, float]:
        return {name: round(value, 3) for name, value in self._stages_ms.items()}

    @property
    def total_ms(self) -> float:
        return round((time.perf_counter() - self._started_s) * 1e3, 3)

    def server_timing(self) -> str:
        """The `Server-Timing` header's value (W3C Server Timing, 2023-04)."""
        entries = [f"{name};dur={value:.1f}" for name, value in self._stages_ms.items()]
        return ", ".join([*entries, f"total;dur={self.total_ms:.1f}"])
