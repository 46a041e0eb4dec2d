"""Metrics are read as Prometheus reads them: rates, restarts and quantiles are PromQL's."""

import math

import httpx2
import pytest

from serve.errors import NotFound
from serve.exposition import Reading, parse_exposition, query_prometheus, read_nodes
from serve.interval import Interval, find_quantile
from serve.observing.meter import MemoryMeter
from tests.expositions import write_exposition

ANSWERS = "sm4ll_http_requests_total"
TOOK = "sm4ll_tryon_duration_seconds"
RAYS_OWN = """\
# TYPE ray_object_store_memory gauge
ray_object_store_memory{WorkerId="a"} 7.0
process_start_time_seconds 1000.0
"""


def count_requests(meter: MemoryMeter, num: int, status: str = "200") -> None:
    meter.add(ANSWERS, num, route="/v1/tryon", method="POST", status=status)


def take(meter: MemoryMeter, at_s: float, replica: str = "r1") -> Reading:
    return Reading(at_s, parse_exposition(write_exposition(meter, replica=replica)))


def both(*readings: Reading) -> Reading:
    values = {key: value for one in readings for key, value in one.values.items()}
    return Reading(readings[0].at_s, values)


def test_only_our_metrics_are_kept_with_their_labels() -> None:
    meter = MemoryMeter()
    count_requests(meter, 3)
    values = parse_exposition(RAYS_OWN + write_exposition(meter, otel_scope_name="x", replica="r"))
    labels = {"route": "/v1/tryon", "method": "POST", "status": "200", "replica": "r"}
    assert values == {
        (ANSWERS, frozenset(labels.items())): 3.0,
        ("process_start_time_seconds", frozenset()): 1000.0,
    }


def test_rates_are_summed_over_processes_and_by_label() -> None:
    one, two = MemoryMeter(), MemoryMeter()
    count_requests(one, 5)
    count_requests(two, 100)
    before = both(take(one, 0.0, "r1"), take(two, 0.0, "r2"))
    count_requests(one, 20)
    count_requests(two, 10)
    count_requests(two, 5, status="503")
    interval = Interval(before, both(take(one, 10.0, "r1"), take(two, 10.0, "r2")))
    assert interval.rate(ANSWERS, "status") == {("200",): 3.0, ("503",): 0.5}
    assert interval.rate(ANSWERS, status="503") == {(): 0.5}
    assert interval.total(ANSWERS) == {(): 140.0}


def test_replica_that_began_again_takes_nothing_off() -> None:
    old, survivor, new = MemoryMeter(), MemoryMeter(), MemoryMeter()
    count_requests(old, 1000)
    count_requests(survivor, 50)
    before = both(take(old, 0.0, "r1"), take(survivor, 0.0, "r2"))
    count_requests(new, 4)
    count_requests(survivor, 6)
    # The same series, from nothing: 4 since then. The other counts on.
    now = both(take(new, 10.0, "r1"), take(survivor, 10.0, "r2"))
    assert Interval(before, now).rate(ANSWERS) == {(): 1.0}
    # One of another name: all it has is new, and what is gone counts for nothing.
    now = both(take(new, 10.0, "r3"), take(survivor, 10.0, "r2"))
    assert Interval(before, now).rate(ANSWERS) == {(): 1.0}


def test_gauges_are_parts_or_the_same_whole() -> None:
    one, two = MemoryMeter(), MemoryMeter()
    for meter, depth in ((one, 2), (two, 3)):
        meter.set("sm4ll_queue_depth", depth, **{"version": "top@1", "class": "interactive"})
        meter.set("sm4ll_replicas", 4, version="top@1")
    now = both(take(one, 1.0, "r1"), take(two, 1.0, "r2"))
    interval = Interval(now, now)
    assert interval.total("sm4ll_queue_depth", "version") == {("top@1",): 5.0}
    assert interval.largest("sm4ll_replicas", "version") == {("top@1",): 4.0}


def test_quantiles_are_of_the_interval_only() -> None:
    meter = MemoryMeter()
    labels = {"expert": "top", "version": "top@1", "way": "request"}
    for _ in range(1000):
        meter.observe(TOOK, 20.0, **labels)
    before = take(meter, 0.0)
    for _ in range(100):
        meter.observe(TOOK, 0.2, **labels)
    interval = Interval(before, take(meter, 10.0))
    # All 100 between 0.1 and 0.25 s: linear between the two.
    assert interval.quantile(0.5, TOOK, "version") == {("top@1",): pytest.approx(0.175)}
    assert interval.quantile(0.5, TOOK, version="eye@1") == {}
    assert interval.quantile_ever(0.5, TOOK)[()] > 10
    assert interval.mean(TOOK) == {(): pytest.approx(0.2)}
    assert Interval(before, before).quantile(0.5, TOOK) == {}


@pytest.mark.parametrize(
    ("share", "buckets", "value"),
    [  # what histogram_quantile answers
        (0.5, {1.0: 10, 2.0: 10, math.inf: 10}, 0.5),
        (0.5, {1.0: 5, 2.0: 10, math.inf: 10}, 1.0),
        (0.95, {1.0: 5, 2.0: 10, math.inf: 10}, 1.9),
        (0.99, {1.0: 5, 2.0: 9, math.inf: 10}, 2.0),
        (0.5, {1.0: 4, 2.0: 3, math.inf: 8}, 1.0),  # a bucket that lags
        (0.5, {1.0: 0, math.inf: 0}, None),
        (0.5, {1.0: 3}, None),
        (0.5, {}, None),
    ],
)
def test_quantile_is_linear_within_its_bucket(
    share: float, buckets: dict[float, float], value: float | None
) -> None:
    assert find_quantile(share, buckets) == (None if value is None else pytest.approx(value))


def client(answer: httpx2.Response) -> httpx2.Client:
    return httpx2.Client(transport=httpx2.MockTransport(lambda request: answer))


def test_nodes_are_told_apart_and_the_oldest_says_since_when() -> None:
    meter = MemoryMeter()
    count_requests(meter, 3)
    text = RAYS_OWN + write_exposition(meter, replica="r1")
    with client(httpx2.Response(200, text=text)) as http:
        reading = read_nodes(["http://a/metrics", "http://b/metrics"], http)
    assert reading.started_at_s == 1000.0
    assert Interval(reading, reading).total(ANSWERS) == {(): 6.0}


def test_prometheus_server_is_asked_for_the_whole_cluster_at_one_time() -> None:
    asked: list[httpx2.URL] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.url)
        metric = {"__name__": f"ray_{ANSWERS}", "status": "200", "pod": "p"}
        result = [{"metric": metric, "value": [60, "3"]}]
        return httpx2.Response(200, json={"status": "success", "data": {"result": result}})

    with httpx2.Client(transport=httpx2.MockTransport(answer)) as http:
        reading = query_prometheus("http://prometheus:9090/", http, 60.0)
    assert reading.values == {(ANSWERS, frozenset({("status", "200"), ("pod", "p")})): 3.0}
    assert asked[0].path == "/api/v1/query"
    assert asked[0].params["time"] == "60.000"
    assert asked[0].params["query"] == '{__name__=~"ray_sm4ll_.+"}'


@pytest.mark.parametrize("text", ["<html>", "{}", '{"data": {"result": [1]}}'])
def test_what_is_no_prometheus_server_is_said(text: str) -> None:
    with client(httpx2.Response(200, text=text)) as http, pytest.raises(NotFound, match="no Prom"):
        query_prometheus("http://elsewhere", http, 0.0)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/metrics", "elsewhere", "http://[::1"])
def test_where_nothing_answers_it_says_what_helps(url: str) -> None:
    with httpx2.Client() as http, pytest.raises(NotFound) as caught:
        read_nodes([url], http)
    assert "sm4ll up" in caught.value.remedy
