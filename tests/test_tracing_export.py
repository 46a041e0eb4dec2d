"""Spans reach the collector that the environment names; one that is away costs spans only."""

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SpanExporter,
    SpanExportResult,
)

from deployments.bundle import load_family
from serve.messages import EXPERTS
from serve.observing.exporting import TALKATIVE, QuietExporter, span_processors
from serve.settings import TRACING_FLAGS, Settings, export_tracing, free_port
from serve.telemetry import ATTRIBUTES
from tests.otlp import receiving

ROOT = Path(__file__).parents[1]
COLLECTOR = ROOT / "k8s/observability/otel-collector.yaml"
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
RATIO = "RAY_SERVE_TRACING_SAMPLING_RATIO"


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Set first, so that what the code sets goes again."""
    for name in (*TRACING_FLAGS, RATIO, ENDPOINT):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    levels = {name: logging.getLogger(name).level for name in TALKATIVE}
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def test_nothing_is_traced_without_an_endpoint() -> None:
    export_tracing(Settings())
    assert not {*TRACING_FLAGS, RATIO} & os.environ.keys()


def test_an_endpoint_turns_tracing_on_and_what_is_said_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(ENDPOINT, "http://collector:4318")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop-vton")
    monkeypatch.setenv("SM4LL_TRACE_RATIO", "0.25")
    export_tracing(Settings())
    assert os.environ["OTEL_SERVICE_NAME"] == "shop-vton"
    assert os.environ[RATIO] == "0.25"
    exporter = os.environ["RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH"]
    assert exporter == f"{span_processors.__module__}:{span_processors.__name__}"


def test_spans_arrive_with_the_services_name_and_version(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving() as traces:
        monkeypatch.setenv(ENDPOINT, traces.url)
        processors = span_processors()
        provider = TracerProvider()  # made after them, as Serve does
        for processor in processors:
            provider.add_span_processor(processor)
        span = provider.get_tracer("sm4ll").start_span("decode", attributes={"n": 7})
        span.end()
        trace_id = f"{span.get_span_context().trace_id:032x}"
        (came,) = traces.wait_for(trace_id, lambda spans: len(spans) == 1)
        provider.shutdown()
    assert (came.name, came.attributes) == ("decode", {"n": 7})
    assert came.resource["service.name"] == "sm4ll-serve"
    assert came.resource["service.version"]


def test_a_collector_that_is_away_is_told_of_once_and_once_more_when_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    span = TracerProvider().get_tracer("sm4ll").start_span("decode")
    span.end()
    assert isinstance(span, ReadableSpan)
    away = OTLPSpanExporter(f"http://127.0.0.1:{free_port()}/v1/traces", timeout=0.1)
    with receiving() as traces:
        exporter = _Switch(away, OTLPSpanExporter(f"{traces.url}/v1/traces"))
        quiet = QuietExporter(exporter)
        for _ in range(3):
            assert quiet.export([span]) is SpanExportResult.FAILURE
        exporter.is_back = True
        assert quiet.export([span]) is SpanExportResult.SUCCESS
        assert quiet.export([span]) is SpanExportResult.SUCCESS
        quiet.shutdown()
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert "not delivered" in told[0]
    assert "after 3 were lost" in told[1]


class _Switch(SpanExporter):
    def __init__(self, away: SpanExporter, back: SpanExporter) -> None:
        self._exporters = (away, back)
        self.is_back = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return self._exporters[self.is_back].export(spans)

    def shutdown(self) -> None:
        for exporter in self._exporters:
            exporter.shutdown()


def test_a_request_does_not_wait_for_a_collector_that_does_not_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It would hang here."""
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    answers = threading.Event()

    class Stuck(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            answers.wait(30)
            return SpanExportResult.SUCCESS

    processor = BatchSpanProcessor(QuietExporter(Stuck()), 8, 1, 4)
    provider = TracerProvider()
    provider.add_span_processor(processor)
    tracer = provider.get_tracer("sm4ll")
    for _ in range(1000):
        tracer.start_span("decode").end()
    assert not answers.is_set()
    answers.set()
    provider.shutdown()
    assert not caplog.records


@pytest.fixture(scope="module")
def collector() -> Any:
    return yaml.safe_load(COLLECTOR.read_text())


def test_every_component_of_the_collector_is_there_and_used(collector: Any) -> None:
    (pipeline,) = collector["service"]["pipelines"].values()
    for kind in ("receivers", "processors", "exporters"):
        assert sorted(pipeline[kind]) == sorted(collector[kind])
    assert sorted(collector["service"]["extensions"]) == sorted(collector["extensions"])
    first, *_, last = pipeline["processors"]
    assert (first, last) == ("memory_limiter", "batch")
    assert collector["exporters"]["otlp_http"]["endpoint"].startswith("${env:")


def test_the_collector_keeps_what_failed_and_what_was_slow_for_its_expert(collector: Any) -> None:
    policies = collector["processors"]["tail_sampling"]["policies"]
    by_type = {policy["type"]: policy for policy in policies}
    assert by_type["status_code"]["status_code"] == {"status_codes": ["ERROR"]}
    assert 0 < by_type["probabilistic"]["probabilistic"]["sampling_percentage"] < 100
    limits_ms: dict[str, float] = {}
    for policy in policies:
        parts = {part["type"]: part for part in policy.get("and", {}).get("and_sub_policy", ())}
        if "latency" in parts:
            chosen = parts["string_attribute"]["string_attribute"]
            assert chosen["key"] == "sm4ll.expert"
            limit_ms = parts["latency"]["latency"]["threshold_ms"]
            limits_ms.update(dict.fromkeys(chosen["values"], limit_ms))
    family, _ = load_family(ROOT / "configs/family.yaml")
    assert limits_ms == {expert: family.slo.of(expert).latency_s * 1e3 for expert in EXPERTS}


def test_every_attribute_the_collector_looks_at_is_in_the_table() -> None:
    keys = {
        line.partition("key: ")[2].partition(",")[0]
        for line in COLLECTOR.read_text().splitlines()
        if "key: " in line
    }
    assert keys
    assert keys <= ATTRIBUTES.keys()
