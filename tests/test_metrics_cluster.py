"""What a running cluster was asked is what its metrics say, summed over its processes."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serve import __version__
from serve.telemetry import METRIC_PREFIX, METRICS
from tests.pictures import box_mask, encoded, photo
from tests.tenants import bearer
from tests.up import Up

pytestmark = pytest.mark.ray

GIVE_UP_S = 40.0
FILES = {
    "person": encoded(photo()),
    "product": encoded(photo(64, 64, seed=1)),
    "mask": encoded(box_mask()),
}
NOOP = {"expert": "top", "version": "noop"}
TENANT = "of-the-metrics"
NUM_TRYONS, NUM_BAD = 6, 2
AT_REST_S = 6.0
"""Longer than a router takes to tell Ray, and Ray to tell its agent."""
TOLD = ("sm4ll_tryons_total", "sm4ll_refusals_total", "sm4ll_job_attempts_total")
Series = Mapping[str, Mapping[frozenset[tuple[str, str]], float]]
OTHERS = {"Component", "NodeAddress", "SessionName", "Version", "WorkerId", "le"}
OTHERS |= {"application", "deployment", "replica"}
"""Labels that Ray and Serve add."""


def read(up: Up) -> Series:
    """Every series of ours, by its labels."""
    found: dict[str, dict[frozenset[tuple[str, str]], float]] = {}
    text = httpx2.get(up.metrics_url, timeout=10).text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith(f"{METRIC_PREFIX}sm4ll_"):
                name = sample.name.removeprefix(METRIC_PREFIX)
                found.setdefault(name, {})[frozenset(sample.labels.items())] = sample.value
    return found


def total(series: Series, name: str, **labels: str) -> float:
    wanted = labels.items()
    return sum(value for has, value in series.get(name, {}).items() if wanted <= dict(has).items())


def read_at_rest(up: Up) -> Series:
    """When all that was asked before is told: routers, Ray and its agent each take a while."""
    give_up_s = time.monotonic() + GIVE_UP_S
    seen, since_s = read(up), time.monotonic()
    while time.monotonic() - since_s < AT_REST_S:
        time.sleep(0.5)
        now = read(up)
        if any(total(now, name) != total(seen, name) for name in TOLD):
            seen, since_s = now, time.monotonic()
        assert time.monotonic() < give_up_s, "something asks this cluster all the time"
    return seen


def ask(up: Up, key: str) -> Iterator[int]:
    with httpx2.Client(base_url=up.url, headers=bearer(key), timeout=30) as http:
        for _ in range(NUM_TRYONS):
            yield http.post("/v1/tryon", data=NOOP, files=FILES).status_code
        for _ in range(NUM_BAD):
            bad = {**FILES, "person": b"no picture"}
            yield http.post("/v1/tryon", data=NOOP, files=bad).status_code
        yield http.get("/v1/jobs/job_unknown").status_code
        yield http.post("/v1/jobs", data=NOOP, files=FILES).status_code


def test_what_was_asked_is_what_the_metrics_say(up: Up) -> None:
    key = up.open_tenant(TENANT)
    before = read_at_rest(up)
    asked = Counter(ask(up, key))
    assert asked == {200: NUM_TRYONS, 422: NUM_BAD, 404: 1, 202: 1}
    by = {"expert": "top", "version": "top@noop"}
    expected = [
        ("sm4ll_http_requests_total", {"route": "/v1/tryon", "status": "200"}, NUM_TRYONS),
        ("sm4ll_http_request_duration_seconds_count", {"route": "/v1/jobs"}, 1),
        ("sm4ll_refusals_total", {"route": "/v1/tryon", "code": "invalid_image"}, NUM_BAD),
        ("sm4ll_refusals_total", {"route": "/v1/jobs/{job_id}", "code": "not_found"}, 1),
        ("sm4ll_tryons_total", {**by, "way": "request", "code": "ok"}, NUM_TRYONS),
        ("sm4ll_tryons_total", {**by, "way": "request", "code": "invalid_image"}, NUM_BAD),
        ("sm4ll_tryons_total", {**by, "way": "job", "code": "ok"}, 1),
        ("sm4ll_images_total", by, NUM_TRYONS + 1),
        ("sm4ll_tryon_duration_seconds_count", {**by, "way": "request"}, NUM_TRYONS),
        ("sm4ll_stage_duration_seconds_count", {"stage": "expert"}, NUM_TRYONS + 1),
        ("sm4ll_queue_wait_seconds_count", {"version": "top@noop"}, NUM_TRYONS + 1),
        ("sm4ll_job_attempts_total", {"outcome": "succeeded"}, 1),
    ]
    levels = [  # in two routers
        ("sm4ll_replicas", {"version": "top@noop"}, 2 * 2),
        ("sm4ll_permits_in_use", {"version": "top@noop"}, 0),
        ("sm4ll_queue_depth", {"version": "top@noop"}, 0),
        ("sm4ll_http_requests_in_progress", {}, 0),
        ("sm4ll_jobs", {"state": "running"}, 0),
    ]
    give_up_s = time.monotonic() + GIVE_UP_S
    while True:
        now = read(up)
        seen = [
            *(
                (what, total(now, what[0], **what[1]) - total(before, what[0], **what[1]))
                for what in expected
            ),
            *((what, total(now, what[0], **what[1])) for what in levels),
        ]
        wrong = [(what, value) for what, value in seen if what[2] != value]
        if not wrong:
            break
        assert time.monotonic() < give_up_s, wrong
        time.sleep(0.5)
    # 0.1 s of the no-op's pass each, and as much charged to the tenants, by whatever label.
    for name in ("sm4ll_gpu_seconds_total", "sm4ll_tenant_gpu_seconds_total"):
        assert total(now, name) - total(before, name) == pytest.approx(0.7, abs=0.3)
    assert total(now, "sm4ll_outside_violations_total") == 0
    assert_processes_are_seen(now)


def assert_processes_are_seen(now: Series) -> None:
    assert total(now, "sm4ll_build_info", build=__version__) >= 3
    for deployment in ("Router", "JobRunner"):
        assert total(now, "sm4ll_event_loop_lag_seconds_count", deployment=deployment) > 10
        assert total(now, "sm4ll_replica_memory_bytes", deployment=deployment) > 50e6
    # Whatever else was asked of this cluster: no name or label that the table does not have.
    for name, series in now.items():
        ends = [name, *(name.removesuffix(end) for end in ("_bucket", "_count", "_sum"))]
        metric = next(METRICS[each] for each in ends if each in METRICS)
        for labels in series:
            ours = {label for label, _ in labels if not label.startswith("otel_")} - OTHERS
            assert ours == set(metric.labels), name
