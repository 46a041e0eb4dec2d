"""One trace from the client's span to each denoising step, and it says what the header and the
receipt say."""

import re
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

import httpx2 as httpx
import pytest

from serve.client import Client
from serve.demo.cases import demo_cases
from serve.telemetry import ATTRIBUTES, EVENTS, SPANS, STAGES
from tests.otlp import Span
from tests.up import Up

pytestmark = pytest.mark.ray

CLIENT_SPAN = "b7ad6b7169203331"
NUM_TRIES = 5
SEEN_ELSEWHERE = {"sm4ll.experiment"}  # tests/test_tracing.py


@pytest.fixture(scope="module")
def token(up: Up) -> str:
    """Of a tenant of whose pictures nothing is remembered yet."""
    return up.open_tenant("traced")


@pytest.fixture(scope="module")
def http(up: Up, token: str) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
    with httpx.Client(base_url=up.url, headers=headers, timeout=60) as client:
        yield client


def new_trace(flags: str = "01") -> tuple[str, dict[str, str]]:
    trace_id = secrets.token_hex(16)
    return trace_id, {"traceparent": f"00-{trace_id}-{CLIENT_SPAN}-{flags}"}


def post(http: httpx.Client, path: str = "/v1/tryon", **more: Any) -> httpx.Response:
    case = next(case for case in demo_cases() if case.expert == "top")
    files = {"person": case.person_path.read_bytes(), "product": case.product_path.read_bytes()}
    data = {"expert": "top", "version": "noop", **more.pop("data", {})}
    return http.post(path, data=data, files=files, **more)


def only(spans: Sequence[Span], name: str) -> Span:
    (span,) = (span for span in spans if span.name == name)
    return span


def path_of(spans: Sequence[Span], span: Span) -> list[str]:
    """The names above it, from itself up; at the end the id of what nobody here recorded."""
    by_id = {one.span_id: one for one in spans}
    names = [span.name]
    while span.parent_id in by_id:
        span = by_id[span.parent_id]
        names.append(span.name)
    return [*names, span.parent_id]


def check_names(spans: Sequence[Span]) -> None:
    for span in (span for span in spans if span.scope == "sm4ll"):
        assert span.name in SPANS or re.fullmatch(r"[A-Z]+ (/\S*|unmatched)", span.name)
        assert span.attributes.keys() <= ATTRIBUTES.keys(), span.name
        for event in span.events:
            assert event.name in EVENTS
            assert event.attributes.keys() <= ATTRIBUTES.keys(), event.name


def tryon(up: Up, http: httpx.Client, *names: str) -> tuple[httpx.Response, list[Span]]:
    """An answer, and its trace once these are in it: every process sends its own."""
    trace_id, headers = new_trace()
    answer = post(http, headers=headers)
    assert answer.status_code == 200, answer.text
    wanted = {"POST /v1/tryon", "painter", *names}
    spans = up.traces.wait_for(
        trace_id, lambda spans: {s.name for s in spans} >= wanted and all_there(spans)
    )
    return answer, spans


def all_there(spans: Sequence[Span]) -> bool:
    """Every parent as well, up to the client's."""
    ids = {span.span_id for span in spans}
    return {span.parent_id for span in spans if span.parent_id not in ids} == {CLIENT_SPAN}


def test_a_tryon_is_one_tree_from_the_clients_span_to_each_step(up: Up, http: httpx.Client) -> None:
    answer, spans = tryon(up, http, "segmenter")
    check_names(spans)
    request = only(spans, "POST /v1/tryon")
    above = path_of(spans, request)
    assert above[-1] == CLIENT_SPAN
    assert all("Router" in name for name in above[1:-1])
    assert request.resource["service.name"] == "sm4ll-serve"
    assert answer.headers["traceresponse"].split("-")[1:3] == [request.trace_id, request.span_id]
    stages = [span for span in spans if span.parent_id == request.span_id]
    assert {span.name for span in stages} == STAGES.keys() - {"fetch"} | {"send"}
    for name, stage, method in (
        ("segmenter", "segment", "Segmenter-classical segment"),
        ("painter", "expert", "Expert-top@noop generate"),
    ):
        assert path_of(spans, only(spans, name))[1:4] == [
            f"replica_handle_request {method}",
            f"route_to_replica {method}",
            stage,
        ]
    painter = only(spans, "painter")
    assert [event.name for event in painter.events] == ["pass", *["step"] * 4]
    steps = [event.attributes for event in painter.events[1:]]
    assert steps == [{"sm4ll.step": step, "sm4ll.num_steps": 4} for step in (1, 2, 3, 4)]
    receipt = answer.json()["receipt"]
    assert {**request.attributes} == {
        "http.request.method": "POST",
        "http.route": "/v1/tryon",
        "http.response.status_code": 200,
        "gen_ai.operation.name": "image_generation",
        "gen_ai.request.model": "top@noop",
        "gen_ai.request.seed": receipt["seed"],
        "sm4ll.request_id": answer.headers["X-Request-Id"],
        "sm4ll.tenant": "traced",
        "sm4ll.expert": "top",
        "sm4ll.version": "top@noop",
        "sm4ll.arm": "explicit",
    }
    segment = only(spans, "segment")
    assert segment.attributes == {"sm4ll.masker": receipt["masker"], "sm4ll.cached": False}


def test_stages_are_the_request_and_say_what_header_and_receipt_say(
    up: Up, http: httpx.Client
) -> None:
    """Of several: on a machine that does other things, one may wait anywhere."""
    covers = []
    for _ in range(NUM_TRIES):
        answer, spans = tryon(up, http)
        request = only(spans, "POST /v1/tryon")
        stages_ms: dict[str, float] = {}
        for span in spans:
            if span.parent_id == request.span_id:
                stages_ms[span.name] = stages_ms.get(span.name, 0.0) + span.ms
        covers.append(sum(stages_ms.values()) / request.ms)
        del stages_ms["send"]  # what says how long the others took is in it
        found = re.findall(r"(\w+);dur=([\d.]+)", answer.headers["Server-Timing"])
        header = {name: float(ms) for name, ms in found if name != "total"}
        assert stages_ms == pytest.approx(header, abs=0.06)
        timings = answer.json()["receipt"]["timings_ms"]
        assert {"decode", "queue", "expert", "paste", "prove"} <= timings.keys() - {"total"}
        for name in timings.keys() - {"total"}:
            assert stages_ms[name] == pytest.approx(timings[name], abs=0.005)
        if covers[-1] >= 0.95:
            return
    pytest.fail(f"stages cover {covers} of their requests")


def test_a_failure_of_ours_is_an_error_in_every_process(up: Up, http: httpx.Client) -> None:
    trace_id, headers = new_trace()
    answer = post(http, headers=headers, data={"version": "doomed"})
    assert answer.status_code == 500
    assert "expert;dur=" in answer.headers["Server-Timing"]
    spans = up.traces.wait_for(
        trace_id, lambda spans: {s.name for s in spans} >= {"POST /v1/tryon", "painter", "expert"}
    )
    check_names(spans)
    for name in ("POST /v1/tryon", "expert", "painter"):
        span = only(spans, name)
        assert span.is_error
        assert span.attributes["error.type"] == answer.json()["code"] == "generation_failed"


def test_a_job_is_linked_to_the_request_that_made_it(
    up: Up, http: httpx.Client, token: str
) -> None:
    trace_id, headers = new_trace()
    job_id = post(http, "/v1/jobs", headers=headers).json()["id"]
    with Client(up.url, token) as client:
        list(client.job_events(job_id))
        receipt = client.job(job_id).receipt
    assert receipt is not None
    attempt = up.traces.find(lambda span: span.attributes.get("sm4ll.job") == job_id)
    spans = up.traces.wait_for(
        attempt.trace_id, lambda spans: {s.name for s in spans} >= {"painter", "answer"}
    )
    check_names(spans)
    made = up.traces.wait_for(
        trace_id, lambda spans: any(span.name == "POST /v1/jobs" for span in spans)
    )
    assert attempt.name == "attempt"
    assert attempt.links == ((trace_id, only(made, "POST /v1/jobs").span_id),)
    assert attempt.trace_id != trace_id
    assert attempt.attributes["sm4ll.tenant"] == "traced"
    assert only(spans, "expert").parent_id == attempt.span_id
    assert [event.name for event in only(spans, "painter").events].count("step") == 4


def test_a_trace_that_its_caller_does_not_record_is_recorded_nowhere(
    up: Up, http: httpx.Client
) -> None:
    trace_id, headers = new_trace(flags="00")
    answer = post(http, headers=headers)
    assert answer.status_code == 200
    assert "traceresponse" not in answer.headers
    tryon(up, http)  # what was recorded before it has mostly come, when this has
    request_id = answer.headers["X-Request-Id"]
    assert not up.traces.of(trace_id)
    assert not [span for span in up.traces.spans if request_id in span.attributes.values()]


@pytest.mark.parametrize(
    "value", [b"zz-nonsense", b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01", b"\xff\xfe"]
)
def test_a_traceparent_that_is_none_changes_nothing(http: httpx.Client, value: bytes) -> None:
    answer = http.get("/v1/models", headers=[(b"traceparent", value)])
    assert answer.status_code == 200
    assert answer.headers["traceresponse"].startswith("00-")


def test_all_that_the_table_names_was_recorded(up: Up) -> None:
    spans = [span for span in up.traces.spans if span.scope == "sm4ll"]
    names = {span.name for span in spans}
    assert names >= SPANS.keys() - {"request"}
    events = [event for span in spans for event in span.events]
    assert {event.name for event in events} == EVENTS.keys()
    said = {key for span in spans for key in span.attributes}
    said |= {key for event in events for key in event.attributes}
    assert said | SEEN_ELSEWHERE == ATTRIBUTES.keys()
