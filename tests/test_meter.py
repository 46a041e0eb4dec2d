"""What is measured wrongly is told once, and fails nothing."""

import logging

import pytest
from ray.serve import metrics

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
