"""What the running processes have counted so far, read where Prometheus reads it, or from a
Prometheus server; kept as numbers by name and labels."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from serve.errors import NotFound
from serve.telemetry import METRIC_PREFIX

Labels = frozenset[tuple[str, str]]
Values = Mapping[tuple[str, Labels], float]
"""By the name in serve/telemetry.py (histograms: with `_bucket`, `_sum`, `_count`) and labels."""

TIMEOUT = httpx2.Timeout(10.0, connect=3.0)
OURS = f"{METRIC_PREFIX}sm4ll_"
LEAST = 1e-50
STARTED = "process_start_time_seconds"
# What Ray's exporter adds to every series and tells nothing apart.
CONSTANT = ("otel_scope_name", "otel_scope_schema_url", "otel_scope_version", "Version")
REMEDY = "is `sm4ll up` running? Otherwise say where: --metrics URL, or --prometheus URL"


@dataclass(frozen=True, slots=True)
class Reading:
    """Everything at one moment."""

    at_s: float
    """Unix time."""
    values: Values
    started_at_s: float | None = None
    """When the oldest node that was asked began; Unix time."""


def parse_exposition(text: str) -> Values:
    """Our metrics in Prometheus' text format.

    Source: https://prometheus.io/docs/instrumenting/exposition_formats/ (0.0.4).
    """
    # Ray exports fifty times as much of its own; reading that takes a third of a second.
    ours = (OURS, f"# TYPE {OURS}", STARTED)
    lines = "\n".join(line for line in text.splitlines() if line.startswith(ours))
    return {
        (sample.name.removeprefix(METRIC_PREFIX), _labels(sample.labels)): _number(sample.value)
        for family in text_string_to_metric_families(f"{lines}\n")
        for sample in family.samples
    }


def _number(value: float | str) -> float:
    number = float(value)
    return 0.0 if abs(number) < LEAST else number  # a counter that is only expected


def _labels(labels: Mapping[str, str]) -> Labels:
    return frozenset(item for item in labels.items() if item[0] not in CONSTANT)


def read_nodes(urls: Sequence[str], http: httpx2.Client) -> Reading:
    """What the agents of these nodes export.

    Raises:
        NotFound: one of them does not answer with metrics.
    """
    values: dict[tuple[str, Labels], float] = {}
    started: list[float] = []
    at_s = time.time()
    for url in map(_complete, urls):
        text = _get(http, url).text
        if f"# TYPE {METRIC_PREFIX}" not in text:
            raise NotFound(f"{url} answers, but not with Ray's metrics", remedy=REMEDY)
        node = parse_exposition(text)
        started += [value for (name, _), value in node.items() if name == STARTED]
        values |= {
            (name, labels | {("node", url)}): value
            for (name, labels), value in node.items()
            if name != STARTED
        }
    return Reading(at_s, values, min(started, default=None))


def _complete(url: str) -> str:
    """`127.0.0.1:9464` is where a node exports, too."""
    url = url if "://" in url else f"http://{url}"
    return url if url.partition("://")[2].partition("/")[2] else f"{url.rstrip('/')}/metrics"


def query_prometheus(url: str, http: httpx2.Client, at_s: float) -> Reading:
    """What a Prometheus server knows of the whole cluster at that moment.

    Raises:
        NotFound: it does not answer as one.

    Source: https://prometheus.io/docs/prometheus/latest/querying/api/ (instant queries).
    """
    parameters: dict[str, str] = {"query": f'{{__name__=~"{OURS}.+"}}', "time": f"{at_s:.3f}"}
    response = _get(http, f"{url.rstrip('/')}/api/v1/query", parameters)
    try:
        found: list[dict[str, Any]] = response.json()["data"]["result"]
        values = {
            (one["metric"]["__name__"].removeprefix(METRIC_PREFIX), _told(one["metric"])): number
            for one in found
            if not math.isnan(number := _number(one["value"][1]))
        }
    except (ValueError, KeyError, TypeError) as exc:
        raise NotFound(f"{url} is no Prometheus server", remedy=REMEDY) from exc
    return Reading(at_s, values)


def _told(metric: Mapping[str, str]) -> Labels:
    return _labels({name: value for name, value in metric.items() if name != "__name__"})


def _get(
    http: httpx2.Client, url: str, parameters: Mapping[str, str] | None = None
) -> httpx2.Response:
    try:
        response = http.get(url, params=parameters)
    except (httpx2.TransportError, httpx2.UnsupportedProtocol, httpx2.InvalidURL) as exc:
        told = str(exc) or type(exc).__name__
        raise NotFound(f"no metrics at {url}: {told}", remedy=REMEDY) from exc
    if not response.is_success:
        raise NotFound(f"no metrics at {url}: it answers {response.status_code}", remedy=REMEDY)
    return response
