"""What is measured wrongly is told once, and fails nothing."""

import logging
import threading

import pytest
from ray.serve import metrics

from serve.beginnings import expect_tryons
from serve.exposition import parse_exposition
from serve.objectives import FAILURES
from serve.observing.meter import MemoryMeter, Meter, NoMeter
from serve.ray_meter import RayMeter


@pytest.mark.parametrize("kind", [NoMeter, MemoryMeter, RayMeter])
def test_every_meter_takes_what_the_table_has(kind: type[Meter]) -> None:
    meter = kind()
    meter.add("sm4ll_refusals_total", route="/v1/tryon", code="overloaded")
    meter.add("sm4ll_gpu_seconds_total", 0.0, expert="eye", version="eye@1")
    meter.set("sm4ll_jobs", 3, state="queued", **{"class": "batch"})
    meter.observe("sm4ll_tenant_tryon_duration_seconds", 0.25, tenant="acme")


def test_what_cannot_be_recorded_is_told_once_and_fails_no_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    meter = RayMeter()
    with caplog.at_level(logging.ERROR, "ray.serve"):
        for _ in range(3):
            meter.add("sm4ll_unheard_of_total")
            meter.set("sm4ll_permits", 1.0)  # of which version?
            meter.observe("sm4ll_refusals_total", 1.0, route="/", code="overloaded")
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        f"{name} is not recorded"
        for name in ("sm4ll_unheard_of_total", "sm4ll_permits", "sm4ll_refusals_total")
    ]


def test_a_memory_meter_adds_up_by_the_labels_that_are_asked_for() -> None:
    meter = MemoryMeter()
    for code in ("overloaded", "overloaded", "rate_limited"):
        meter.add("sm4ll_refusals_total", route="/v1/tryon", code=code)
    meter.add("sm4ll_refusals_total", 4, route="/v1/jobs", code="overloaded")
    assert meter.total("sm4ll_refusals_total") == 7
    assert meter.total("sm4ll_refusals_total", code="overloaded") == 6
    assert meter.total("sm4ll_refusals_total", route="/v1/tryon", code="overloaded") == 2
    assert meter.total("sm4ll_webhooks_total") == 0


def test_what_is_expected_is_there_from_the_start_and_adds_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rates see no first value of a series: the first failures would burn nobody's budget."""
    told: dict[str, float] = {}

    def tell(_: metrics.Counter, value: float, tags: dict[str, str]) -> None:
        assert value > 0, "Ray refuses it"
        told[tags["code"]] = told.get(tags["code"], 0.0) + value

    monkeypatch.setattr(metrics.Counter, "inc", tell)
    monkeypatch.setattr(RayMeter, "_start_telling", lambda self: None)
    meter = RayMeter()
    expect_tryons(meter, "top@1")
    meter.flush()
    assert told.keys() == {"ok", *FAILURES}
    lines = [f'ray_sm4ll_tryons_total{{code="{code}"}} {told[code]}\n' for code in told]
    assert set(parse_exposition("".join(lines)).values()) == {0.0}
    of = {"expert": "top", "version": "top@1", "way": "request"}
    meter.add("sm4ll_tryons_total", code="generation_failed", **of)
    meter.flush()
    assert told["generation_failed"] == 1.0


def test_ray_is_told_sums_and_every_observation(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, float, dict[str, str]]] = []
    for kind, verb in ((metrics.Counter, "inc"), (metrics.Histogram, "observe")):
        monkeypatch.setattr(
            kind, verb, lambda self, value, tags: told.append((self._name, value, tags))
        )
    monkeypatch.setattr(RayMeter, "_start_telling", lambda self: None)
    meter = RayMeter()
    for code in ("overloaded", "overloaded", "rate_limited"):
        meter.add("sm4ll_refusals_total", route="/v1/tryon", code=code)
        meter.observe("sm4ll_pass_duration_seconds", 0.5, version="top@1")
    assert not told
    meter.flush()
    route = {"route": "/v1/tryon"}
    once = ("sm4ll_pass_duration_seconds", 0.5, {"version": "top@1"})
    sums = [
        ("sm4ll_refusals_total", 2.0, {**route, "code": "overloaded"}),
        ("sm4ll_refusals_total", 1.0, {**route, "code": "rate_limited"}),
    ]
    assert told == [*sums, once, once, once]
    meter.flush()
    assert len(told) == 5


def test_a_series_has_one_value_however_its_labels_are_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[float] = []
    monkeypatch.setattr(metrics.Gauge, "set", lambda self, value, tags: told.append(value))
    monkeypatch.setattr(RayMeter, "_start_telling", lambda self: None)
    meter = RayMeter()
    meter.set("sm4ll_jobs", 1.0, **{"state": "queued", "class": "batch"})
    meter.set("sm4ll_jobs", 2.0, **{"class": "batch", "state": "queued"})
    meter.flush()
    assert told == [2.0]
    meter.forget("sm4ll_jobs", **{"class": "batch", "state": "queued"})
    meter.flush()
    assert told == [2.0]


def test_what_records_while_it_is_destroyed_waits_for_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(RayMeter, "_start_telling", lambda self: None)
    meter = RayMeter()

    class Replica(float):
        """Destroyed by whatever allocates, also in the middle of a record."""

        def __radd__(self, other: float) -> float:
            meter.add("sm4ll_store_errors_total")
            meter.set("sm4ll_http_requests_in_progress", 0.0)
            return other + 1.0

    thread = threading.Thread(
        target=meter.add, args=("sm4ll_exposures_lost_total", Replica(1.0)), daemon=True
    )
    thread.start()
    thread.join(5.0)
    assert not thread.is_alive()
