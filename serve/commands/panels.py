"""What a dashboard's panels show, asked of a Prometheus server."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2

from k8s.dashboards.model import Panel
from k8s.queries import WINDOW
from serve.errors import NotFound

REMEDY = "say where Prometheus is: --prometheus http://prometheus.monitoring:9090"
TIMEOUT = httpx2.Timeout(30.0, connect=3.0)
_VARIABLE = re.compile(r"\$(?!_)\w+")
_LABEL = re.compile(r"\{\{\s*(\w+)\s*\}\}")


@dataclass(frozen=True, slots=True)
class Span:
    """What is looked at: Unix times, and the windows of rates."""

    start_s: float
    end_s: float
    step_s: float
    window_s: float


@dataclass(frozen=True, slots=True)
class Line:
    """One series of a panel; points are Unix times and finite values."""

    legend: str
    points: Sequence[tuple[float, float]]

    @property
    def last(self) -> float:
        return self.points[-1][1]


def fill_in(expr: str, window_s: float) -> str:
    """A query as Grafana would send it, with everything chosen."""
    return _VARIABLE.sub(".*", expr.replace(WINDOW, f"{max(1, round(window_s))}s"))


def read_panel(http: httpx2.Client, url: str, panel: Panel, span: Span) -> list[Line]:
    """Its lines, those of one query after those of another; none where there is no data.

    Raises:
        NotFound: it does not answer as Prometheus.

    Source: https://prometheus.io/docs/prometheus/latest/querying/api/ (range queries).
    """
    lines = []
    for query in panel.queries:
        found = _query_range(http, url, fill_in(query.expr, span.window_s), span)
        for one in found:
            points = [(float(at), float(value)) for at, value in one["values"]]
            finite = [(at, value) for at, value in points if math.isfinite(value)]
            if finite:
                lines.append(Line(_name(query.legend, one["metric"]), finite))
    return lines


def _query_range(http: httpx2.Client, url: str, expr: str, span: Span) -> list[dict[str, Any]]:
    parameters: dict[str, str] = {
        "query": expr,
        "start": f"{span.start_s:.3f}",
        "end": f"{span.end_s:.3f}",
        "step": f"{span.step_s:.3f}",
    }
    try:
        response = http.get(f"{url.rstrip('/')}/api/v1/query_range", params=parameters)
        answer = response.json()
        if answer["status"] != "success":
            raise NotFound(f"{url} refuses {expr!r}: {answer['error']}")
        result: list[dict[str, Any]] = answer["data"]["result"]
    except (httpx2.TransportError, httpx2.UnsupportedProtocol, httpx2.InvalidURL) as exc:
        told = str(exc) or type(exc).__name__
        raise NotFound(f"no Prometheus at {url}: {told}", remedy=REMEDY) from exc
    except (ValueError, KeyError, TypeError) as exc:
        raise NotFound(f"{url} does not answer as Prometheus", remedy=REMEDY) from exc
    return result


def _name(legend: str, labels: Mapping[str, str]) -> str:
    return _LABEL.sub(lambda found: labels.get(found[1], ""), legend).strip()
