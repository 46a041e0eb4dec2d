"""What a request leaves in the metrics: the path's template, the problem's code, what it cost; and
nothing that strangers make up."""

import re
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient
from starlette.types import Message

from serve.imaging.proof import OutsideProof
from serve.observing.meter import MemoryMeter
from serve.observing.tryons import MIN_STAGE_S
from serve.telemetry import STAGES
from tests.fakes import build_local_api
from tests.pictures import box_mask, encoded, photo
from tests.tenants import bearer

FILES = {
    "person": encoded(photo()),
    "product": encoded(photo(64, 64, seed=1)),
    "mask": encoded(box_mask()),
}
NOOP = {"expert": "top", "version": "noop", "seed": "3"}
PRICED = """
bundles_dir: experts
pricing: {usd_per_gpu_second: 0.001}
experts:
  - version: top@noop
"""
BUNDLE = """
expert: top
name: noop
title: changes nothing
status: benchmark
licence: {name: none, commercial_use: true}
backend: {kind: noop, seconds: 0.01}
"""
NAME = "sm4ll_http_requests_total"
MAX_RECORDS = 16
"""Of one try-on beside its stages: each takes about 4 us through Ray."""


class CountingMeter(MemoryMeter):
    """How often something was recorded, by name; what a sampler records is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.records: Counter[str] = Counter()

    def add(self, name: str, value: float = 1.0, /, **labels: str) -> None:
        self.records[name] += 1
        super().add(name, value, **labels)

    def observe(self, name: str, value: float, /, **labels: str) -> None:
        if name != "sm4ll_event_loop_lag_seconds":
            self.records[name] += 1
        super().observe(name, value, **labels)


@pytest.fixture(scope="module")
def meter() -> CountingMeter:
    return CountingMeter()


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory, meter: CountingMeter) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("priced")
    (folder / "experts").mkdir()
    (folder / "experts/top.noop.yaml").write_text(BUNDLE)
    (folder / "family.yaml").write_text(PRICED)
    api = build_local_api(folder / "family.yaml", meter=meter)
    with TestClient(api, raise_server_exceptions=False) as client:
        yield client


def test_a_tryon_is_counted_with_its_cost_and_its_stages(
    http: TestClient, meter: CountingMeter
) -> None:
    meter.records.clear()
    response = http.post("/v1/tryon", data=NOOP, files=FILES)
    assert response.status_code == 200, response.text
    records = meter.records.copy()
    by = {"expert": "top", "version": "top@noop"}
    route = {"route": "/v1/tryon"}
    assert meter.total(NAME, **route, method="POST", status="200") == 1
    assert meter.total("sm4ll_tryons_total", **by, way="request", code="ok") == 1
    assert meter.total("sm4ll_images_total", **by) == 1
    gpu_s = meter.total("sm4ll_gpu_seconds_total", **by)
    assert gpu_s > 0
    assert meter.total("sm4ll_cost_usd_total", **by) == pytest.approx(gpu_s / 1000)
    assert meter.total("sm4ll_outside_violations_total") == 0
    (sizes,) = [v for (n, _), v in meter.histograms.items() if n == "sm4ll_http_request_body_bytes"]
    assert sizes == [int(response.request.headers["content-length"])]
    stages = {
        dict(labels)["stage"]: values
        for (name, labels), values in meter.histograms.items()
        if name == "sm4ll_stage_duration_seconds"
    }
    timing = dict(re.findall(r"(\w+);dur=([\d.]+)", response.headers["server-timing"]))
    # What took less than half a millisecond is not recorded; the header has a tenth's precision.
    seen = {name for name in stages if name != "answer"}
    assert {name for name, ms in timing.items() if float(ms) > 0.6} - {"total"} <= seen
    assert seen <= {name for name, ms in timing.items() if float(ms) > 0.4}
    assert "expert" in seen
    assert min(map(min, stages.values())) >= MIN_STAGE_S
    ((total_s,),) = [
        v for (n, _), v in meter.histograms.items() if n == "sm4ll_tryon_duration_seconds"
    ]
    assert sum(map(sum, stages.values())) <= total_s
    waiting = (("class", "interactive"), ("version", "top@noop"))
    assert len(meter.histograms["sm4ll_queue_wait_seconds", waiting]) == 1
    assert records.pop("sm4ll_stage_duration_seconds") == len(stages) < len(STAGES)
    assert sum(records.values()) <= MAX_RECORDS, records


def test_a_refusal_is_counted_by_its_code_at_the_paths_template(
    http: TestClient, meter: CountingMeter
) -> None:
    refusals = [
        # A job's id is in no label, nor what a stranger asks for, nor how.
        ("GET", "/v1/jobs/job_unknown", "/v1/jobs/{job_id}", 404, "not_found"),
        ("GET", "/v1/nothing/4711", "unmatched", 404, "not_found"),
        ("PUT", "/v1/tryon", "/v1/tryon", 405, "method_not_allowed"),
        ("POST", "/v1/tryon", "/v1/tryon", 400, "invalid_request"),
    ]
    for method, path, route, status, code in refusals:
        before = meter.total("sm4ll_refusals_total", route=route, code=code)
        assert http.request(method, path).status_code == status, (method, path)
        assert meter.total("sm4ll_refusals_total", route=route, code=code) == before + 1
        assert meter.total(NAME, route=route, method=method, status=str(status)) >= 1


def test_who_has_no_key_or_a_wrong_one_is_nobodys_request(
    http: TestClient, meter: CountingMeter
) -> None:
    tenants_before = meter.total("sm4ll_tenant_requests_total")
    for index in range(3):
        token = f"sk_{'0' * 25}{index}_{'1' * 64}"
        assert http.get(f"/v1/jobs/{index}", headers=bearer(token)).status_code == 401
    assert meter.total("sm4ll_refusals_total", route="unmatched", code="unauthenticated") == 3
    assert meter.total("sm4ll_tenant_requests_total") == tenants_before


def test_methods_that_strangers_make_up_are_one_series(
    http: TestClient, meter: CountingMeter
) -> None:
    for index in range(20):
        http.request(f"BREW{index}", "/v1/models")
    methods = {dict(labels)["method"] for name, labels in meter.counters if name == NAME}
    assert methods <= {"GET", "POST", "PUT", "DELETE", "other"}
    assert meter.total(NAME, method="other") == 20


def test_what_nobody_foresaw_is_a_500_called_internal(
    http: TestClient, meter: CountingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("not foreseen")

    monkeypatch.setattr("serve.api.tryon.party_of", fail)
    assert http.post("/v1/tryon", data=NOOP, files=FILES).status_code == 500
    assert meter.total(NAME, route="/v1/tryon", status="500") == 1
    assert meter.total("sm4ll_refusals_total", route="/v1/tryon", code="internal") == 1


def test_a_refusal_that_is_answered_again_is_counted_by_its_code_again(
    http: TestClient, meter: CountingMeter
) -> None:
    headers = {"Idempotency-Key": "once"}
    before = meter.total("sm4ll_refusals_total", route="/v1/tryon", code="invalid_request")
    for _ in range(2):
        response = http.post("/v1/tryon", data={"expert": "nobody"}, headers=headers)
        assert response.status_code == 400
    assert response.headers["Idempotent-Replayed"] == "true"
    told = [
        meter.total("sm4ll_refusals_total", route=route, code="invalid_request")
        for route in ("/v1/tryon", "unmatched")
    ]
    assert sum(told) == before + 2


def test_a_tryon_that_fails_is_counted_by_why(http: TestClient, meter: CountingMeter) -> None:
    files = {**FILES, "person": b"no picture"}
    assert http.post("/v1/tryon", data=NOOP, files=files).status_code == 422
    told = {"version": "top@noop", "way": "request", "code": "invalid_image"}
    assert meter.total("sm4ll_tryons_total", **told) == 1


def test_an_answer_that_differs_outside_is_withheld_and_counted(
    http: TestClient, meter: CountingMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prove_nothing(*_: object) -> OutsideProof:
        return OutsideProof(3, num_pixels_changed_inside=1, exact=False, sha256="0" * 64)

    monkeypatch.setattr("serve.steps.prove_outside", prove_nothing)
    response = http.post("/v1/tryon", data=NOOP, files=FILES)
    assert (response.status_code, response.json()["code"]) == (500, "generation_failed")
    by = {"expert": "top", "version": "top@noop"}
    assert meter.total("sm4ll_outside_violations_total", **by) == 1
    assert meter.total("sm4ll_tryons_total", **by, code="generation_failed") == 1
    # A lossy format differs by itself: that is in the receipt, and no violation.
    assert http.post("/v1/tryon", data={**NOOP, "format": "jpeg"}, files=FILES).status_code == 200
    assert meter.total("sm4ll_outside_violations_total") == 1


def test_an_attempt_at_a_job_is_a_tryon_in_another_way(
    http: TestClient, meter: CountingMeter
) -> None:
    created = http.post("/v1/jobs", data=NOOP, files=FILES)
    assert created.status_code == 202, created.text
    url, give_up_s = created.headers["location"], time.monotonic() + 20
    while (state := http.get(url).json()["status"]) not in ("succeeded", "failed"):
        assert time.monotonic() < give_up_s, state
    assert state == "succeeded"
    assert meter.total("sm4ll_tryons_total", version="top@noop", way="job", code="ok") == 1
    durations = {
        dict(labels)["way"]: values
        for (name, labels), values in meter.histograms.items()
        if name == "sm4ll_tryon_duration_seconds"
    }
    assert len(durations["job"]) == 1


def test_gauges_say_who_is_here_and_what_this_process_is(
    http: TestClient, meter: CountingMeter
) -> None:
    from serve import __version__

    assert meter.gauges["sm4ll_build_info", (("build", __version__),)] == 1
    assert meter.gauges["sm4ll_replica_memory_bytes", ()] > 50e6
    assert meter.gauges["sm4ll_named_tenants", ()] >= 0
    assert meter.gauges["sm4ll_http_requests_in_progress", ()] >= 0


@pytest.mark.parametrize(
    ("path", "media_type"),
    [("/v1/tryon", b"multipart/form-data; boundary=b"), ("/v1/outcomes", b"application/json")],
)
def test_who_leaves_in_the_middle_of_a_body_is_no_failure_of_ours(
    http: TestClient, meter: CountingMeter, path: str, media_type: bytes
) -> None:
    told: list[Message] = [
        {"type": "http.request", "body": b"--b\r\n", "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Message:
        return told.pop(0)

    async def send(message: Message) -> None:
        """To nobody."""

    scope = {
        **{"type": "http", "method": "POST", "path": path, "query_string": b"", "root_path": ""},
        "headers": [(b"content-type", media_type)],
    }
    failures = meter.total(NAME, status="500")
    assert http.portal is not None
    http.portal.call(http.app, scope, receive, send)
    assert meter.total(NAME, route=path, status="499") == 1
    assert meter.total(NAME, status="500") == failures
