"""However many tenants come, a process has a fixed number of series for them, and they are the
busiest tenants'."""

import random

from serve.observing.meter import MemoryMeter
from serve.observing.requests import Requests
from serve.observing.tenants import MIN_COUNT, OTHER, FirstNames, TenantLabels

CODES = (None, "rate_limited", "overloaded")
MAX_NAMED = 20


def ask(requests: Requests, tenant_id: str, code: str | None) -> None:
    requests.began()
    requests.ended(
        route="/v1/tryon",
        method="POST",
        status=200 if code is None else 503,
        elapsed_s=0.1,
        num_body_bytes=0,
        code=code,
        tenant_id=tenant_id,
    )


def test_ten_thousand_tenants_make_no_more_series_than_twenty_and_the_others() -> None:
    meter = MemoryMeter()
    labels = TenantLabels(MAX_NAMED)
    requests = Requests(meter, labels)
    rng = random.Random(6)
    busy = [f"busy-{index}" for index in range(40)]
    crowd = [f"tenant-{index}" for index in range(10_000)]
    calls = [(tenant, code) for tenant in crowd for code in CODES]
    # Each of the forty asks a hundred times as often as one of the crowd.
    calls += [(tenant, rng.choice(CODES)) for tenant in busy for _ in range(300)]
    rng.shuffle(calls)
    for tenant, code in calls:
        ask(requests, tenant, code)
    series = [key for key in meter.counters if key[0] == "sm4ll_tenant_requests_total"]
    assert len(series) <= (MAX_NAMED + 1) * len(CODES)
    named = {dict(has)["tenant"] for _, has in series} - {OTHER}
    assert 10 <= len(named) <= MAX_NAMED
    assert named <= set(busy)
    assert labels.num_named == len(named)
    assert meter.total("sm4ll_tenant_requests_total") == len(calls)
    assert len(labels._counts) <= 10 * MAX_NAMED


def test_twenty_busy_tenants_of_ten_thousand_have_every_series_there_is() -> None:
    meter = MemoryMeter()
    requests = Requests(meter, TenantLabels(MAX_NAMED))
    for round_ in range(2_000):
        for index in range(MAX_NAMED):
            ask(requests, f"busy-{index}", CODES[round_ % 3])
        for index in range(5):
            ask(requests, f"tenant-{5 * round_ + index}", CODES[round_ % 3])
    series = [key for key in meter.counters if key[0] == "sm4ll_tenant_requests_total"]
    assert len(series) == (MAX_NAMED + 1) * len(CODES)


def test_few_tenants_all_have_a_name_soon_and_keep_it() -> None:
    labels = TenantLabels(MAX_NAMED)
    seen = [[labels.of(tenant) for tenant in ("acme", "globex")] for _ in range(MIN_COUNT)]
    assert seen[0] == [OTHER, OTHER]
    assert seen[-1] == ["acme", "globex"]
    for index in range(50_000):
        labels.of(f"tenant-{index}")
    assert labels.of("acme") == "acme"


def test_a_tenant_that_comes_late_and_asks_most_has_a_name_too() -> None:
    labels = TenantLabels(MAX_NAMED)
    for index in range(12):
        for _ in range(1_000):
            labels.of(f"early-{index}")
    said = [labels.of("late") for _ in range(2_000)]
    assert said[-1] == "late"


def test_without_names_all_are_other_and_other_is_nobodys_name() -> None:
    labels = TenantLabels(0)
    assert {labels.of("acme") for _ in range(1_000)} == {OTHER}
    assert {TenantLabels(5).of(OTHER) for _ in range(1_000)} == {OTHER}


def test_first_names_are_given_until_there_is_none() -> None:
    names = FirstNames(2)
    assert [names.of(name) for name in ("a", "b", "c", "a")] == ["a", "b", OTHER, "a"]
