"""What is recorded of a request stands below Serve's span and says what the header says; what is
not recorded stays so, and costs nothing."""

import asyncio
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from fastapi import FastAPI
from opentelemetry import context, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import DEFAULT_ON
from opentelemetry.trace import Span, StatusCode
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.batcher import Batcher
from serve.errors import Cancelled, GenerationFailed, MaskRejected
from serve.observing.tracing import (
    NOT_RECORDED,
    current_traceparent,
    follow_callers,
    open_span,
    recorded,
)
from serve.observing.watch import Stopwatch
from tests.scripted import ScriptedBackend, make_request
from tests.test_exposed_requests import local_api
from tests.test_witness import PICTURES

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Trail:
    """What was recorded in this process, and the span that Serve would make of a call."""

    def __init__(self, provider: TracerProvider) -> None:
        self._exporter = InMemorySpanExporter()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        # Made now: it goes on beginning traces after `follow_callers`.
        self._tracer = provider.get_tracer("serve")

    @contextmanager
    def call(self, name: str = "replica_handle_request") -> Iterator[Span]:
        with self._tracer.start_as_current_span(name, context.Context()) as span:
            yield span

    def clear(self) -> None:
        self._exporter.clear()

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        return self._exporter.get_finished_spans()

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    def only(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span


@pytest.fixture(scope="session")
def session_trail() -> Trail:
    # OpenTelemetry takes one provider in the life of a process.
    provider = TracerProvider(sampler=DEFAULT_ON)
    trace.set_tracer_provider(provider)
    return Trail(provider)


@pytest.fixture
def trail(session_trail: Trail) -> Trail:
    session_trail.clear()
    return session_trail


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    span_id: int = span.context.span_id
    return span_id


def ms_of(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e6


def test_stages_in_any_thread_are_below_the_request_and_as_long_as_the_header_says(
    trail: Trail,
) -> None:
    watch = Stopwatch()
    with trail.call() as serves, watch.record("POST /v1/tryon"):
        with watch.stage("decode"):
            pass
        with ThreadPoolExecutor(1) as threads:
            threads.submit(_paste, watch).result()
        header = watch.server_timing()
    request = trail.only("POST /v1/tryon")
    assert parent_of(request) == serves.get_span_context().span_id
    told = dict(re.findall(r"(\w+);dur=([\d.]+)", header))
    for stage in ("decode", "paste"):
        span = trail.only(stage)
        assert parent_of(span) == id_of(request)
        assert ms_of(span) == pytest.approx(float(told[stage]), abs=0.051)
        assert ms_of(span) == pytest.approx(watch.stages_ms[stage], abs=0.001)


def _paste(watch: Stopwatch) -> None:
    with watch.stage("paste"):
        sum(range(100_000))


def test_a_call_that_serve_makes_from_a_stage_is_below_that_stage(trail: Trail) -> None:
    watch = Stopwatch()
    with trail.call(), watch.record("POST /v1/tryon"), watch.stage("expert") as span:
        assert span.traceparent == current_traceparent()


def test_nothing_is_made_where_nobody_records(trail: Trail) -> None:
    watch = Stopwatch()
    with watch.record("GET /v1/models") as request, watch.stage("answer") as stage:
        assert (request, stage) == (NOT_RECORDED, NOT_RECORDED)
        assert open_span("painter") is NOT_RECORDED
        assert current_traceparent() is None
    assert not trail.spans


def test_a_request_that_is_not_recorded_begins_no_trace_with_what_it_calls(trail: Trail) -> None:
    with Stopwatch().record("POST /v1/tryon"):
        called = trace.get_tracer("ray.serve").start_span("route_to_replica")
        assert not called.is_recording()


def test_a_replica_records_what_its_caller_records_and_nothing_else() -> None:
    provider = trace.get_tracer_provider()
    assert isinstance(provider, TracerProvider)
    sampler = provider.sampler
    follow_callers()
    try:
        tracer = provider.get_tracer("a replica")
    finally:
        provider.sampler = sampler
    assert not tracer.start_span("ping", context.Context()).is_recording()
    with recorded("nothing") as nothing:
        assert nothing is NOT_RECORDED


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (MaskRejected("empty"), "mask_rejected", StatusCode.UNSET),
        (Cancelled("the caller left"), "cancelled", StatusCode.UNSET),
        (asyncio.CancelledError(), "cancelled", StatusCode.UNSET),
        (GenerationFailed("black"), "generation_failed", StatusCode.ERROR),
        (ZeroDivisionError(), "internal", StatusCode.ERROR),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_ours_is_an_error_and_what_the_caller_must_change_is_none(
    trail: Trail, error: BaseException, code: str, status: StatusCode
) -> None:
    watch = Stopwatch()
    with pytest.raises(type(error)), trail.call(), watch.record("r"), watch.stage("expert"):
        raise error
    for span in (trail.only("r"), trail.only("expert")):
        assert span.attributes is not None
        assert span.attributes["error.type"] == code
        assert span.status.status_code is status


@pytest.mark.parametrize("traceparent", ["zz-nonsense", "", "00-" + "0" * 32 + "-" + "0" * 16])
def test_a_link_that_says_nothing_is_none(trail: Trail, traceparent: str) -> None:
    with trail.call(), Stopwatch().record("attempt", linked_to=traceparent):
        pass
    assert not trail.only("attempt").links


def test_an_attempt_is_linked_to_what_caused_it_and_not_below_it(trail: Trail) -> None:
    with trail.call(), Stopwatch().record("attempt", linked_to=PARENT):
        pass
    (link,) = trail.only("attempt").links
    assert link.context.trace_id == 0x0AF7651916CD43DD8448EB211C80319C
    assert trail.only("attempt").context.trace_id != link.context.trace_id


def test_members_of_one_pass_keep_their_own_parents_and_all_see_its_steps(trail: Trail) -> None:
    backend = ScriptedBackend()
    with ThreadPoolExecutor(1) as thread:
        batcher = Batcher(thread.submit, backend.generate)
        batcher.submit(make_request("first"))
        assert backend.next_pass() == ["first"]
        callers = []
        for name in ("a", "b"):
            with trail.call(name) as caller:
                member = batcher.submit(make_request(name, num_steps=2), 4)
                callers.append((caller.get_span_context().span_id, member))
        backend.tell("finish")
        assert backend.next_pass() == ["a", "b"]
        callers[1][1].expire()
        backend.tell("step", "step", "finish")
        callers[0][1].answer.result(5)
        batcher.close()
    by_parent = {parent_of(span): span for span in trail.named("painter")}
    assert set(by_parent) == {span_id for span_id, _ in callers}, "nobody records the first"
    painted = by_parent[callers[0][0]]
    assert [event.name for event in painted.events] == ["pass", "step", "step"]
    assert painted.attributes is not None
    assert painted.attributes["sm4ll.batch_size"] == 2
    late = by_parent[callers[1][0]]
    assert [event.name for event in late.events] == ["pass"]
    assert late.attributes is not None
    assert late.attributes["error.type"] == "deadline_exceeded"


class _Serve:
    """The span that Serve makes around the application."""

    def __init__(self, app: ASGIApp, trail: Trail) -> None:
        self._app = app
        self._trail = trail

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with self._trail.call():
            await self._app(scope, receive, send)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    return local_api(tmp_path_factory.mktemp("configs"))


@pytest.fixture(scope="module")
def http(api: FastAPI, session_trail: Trail) -> Iterator[TestClient]:
    with TestClient(_Serve(api, session_trail), raise_server_exceptions=False) as client:
        yield client


def test_a_request_in_an_experiment_says_so_on_its_span(http: TestClient, trail: Trail) -> None:
    answer = http.post("/v1/tryon", data={"expert": "top", "unit": "4711"}, files=PICTURES)
    assert answer.status_code == 200, answer.text
    span = trail.only("POST /v1/tryon")
    attributes = dict(span.attributes or {})
    assert attributes["sm4ll.experiment"] == answer.headers["Sm4ll-Experiment"] == "shirts"
    assert attributes["sm4ll.arm"] == answer.headers["Sm4ll-Arm"]
    assert attributes["sm4ll.version"] == answer.headers["Sm4ll-Version"]
    assert attributes["sm4ll.tenant"] == "local"
    assert answer.headers["traceresponse"].split("-")[2] == f"{id_of(span):016x}"
    assert parent_of(trail.only("send")) == id_of(span)


def test_an_answer_of_an_unexpected_failure_has_its_timing_and_its_span_an_error(
    api: FastAPI, http: TestClient, trail: Trail
) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    api.add_api_route("/boom", fail)
    answer = http.get("/boom")
    assert answer.status_code == 500
    assert answer.headers["Server-Timing"]
    assert trail.only("GET /boom").status.status_code is StatusCode.ERROR


def test_what_is_said_of_a_span_after_its_end_is_said_to_nobody(
    trail: Trail, caplog: pytest.LogCaptureFixture
) -> None:
    """A thread goes on for a request whose deadline has come; OpenTelemetry warns of each."""
    with trail.call():
        span = open_span("painter")
        span.end()
        span.note({"sm4ll.batch_size": 1})
        span.event("pass", {"sm4ll.batch_size": 1})
        span.fail_with(GenerationFailed("too late"))
    assert not trail.only("painter").attributes
    assert not caplog.records


def test_a_stage_may_end_while_the_header_is_written() -> None:
    watch = Stopwatch()

    class Meanwhile(float):
        """Written while another thread ends a stage."""

        def __mul__(self, other: float) -> "Meanwhile":
            return self

        __radd__ = __mul__

        def __format__(self, _: str) -> str:
            watch.add("paste", 0.001)
            return "1.0"

        def __round__(self, _: int | None = None) -> float:  # type: ignore[override]
            watch.add("encode", 0.001)
            return 1.0

    watch.add("decode", Meanwhile())
    assert watch.server_timing().startswith("decode;dur=1.0, total")
    assert watch.stages_ms == {"decode": 1.0, "paste": 1.0}
