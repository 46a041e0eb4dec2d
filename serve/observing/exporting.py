"""Where spans go: over OTLP/HTTP to the collector that the environment names.

Serve calls `span_processors` in every replica (`RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH`, which
`serve.settings.export_tracing` sets). A collector that is away costs spans, and nothing else.
"""

import logging
from collections.abc import Sequence

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from serve.settings import Settings, export_tracing

# They tell of every batch, and of every span that finds the queue full.
TALKATIVE = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.sdk._shared_internal",
)


def span_processors() -> list[SpanProcessor]:
    """For Serve, before it makes the tracer provider.

    What is not said in `OTEL_*` is OpenTelemetry's default or, for a name, a delay and a time limit
    that suit replicas, ours (`serve.settings.TRACING_FLAGS`).
    """
    export_tracing(Settings())
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return [BatchSpanProcessor(QuietExporter(OTLPSpanExporter()))]


class QuietExporter(SpanExporter):
    """Logs when delivery begins to fail and when it works again, not every batch between."""

    def __init__(self, exporter: SpanExporter, logger: logging.Logger | None = None) -> None:
        self._exporter = exporter
        self._logger = logger or logging.getLogger(__name__)
        self._num_lost = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if result is not SpanExportResult.SUCCESS:
            if not self._num_lost:
                self._logger.warning("spans are not delivered: the collector does not take them")
            self._num_lost += len(spans)
        elif self._num_lost:
            self._logger.warning("spans are delivered again, after %d were lost", self._num_lost)
            self._num_lost = 0
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)
