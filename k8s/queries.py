"""PromQL over what serve/telemetry.py lists, each query with the unit of what it answers.

A name or a label that the table does not have is refused where the query is written.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from serve.telemetry import METRIC_PREFIX, METRICS, Kind

WINDOW = "$__rate_interval"
"""Grafana's: at least four scrapes."""
DEPLOYED = frozenset({"application", "deployment", "replica"})
"""Labels that Serve adds in its replicas."""
PanelUnit = Literal["1", "seconds", "bytes", "usd", "ratio", "1/s", "bytes/s", "usd/h"]
RATES: Mapping[str, PanelUnit] = {
    "1": "1/s",
    "bytes": "bytes/s",
    "seconds": "1",  # seconds of work a second: so many are busy
}
_LABEL = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")


@dataclass(frozen=True, slots=True)
class Query:
    """One expression, and what its lines are called: a template of Grafana, `{{label}}`."""

    expr: str
    unit: PanelUnit
    legend: str = ""


def select(name: str, kind: Kind, where: str = "", by: tuple[str, ...] = (), part: str = "") -> str:
    """The selector of a metric of the table.

    Args:
        where: what stands between the braces.
        by: labels that the caller aggregates by.
        part: of a histogram: `_bucket`, `_count` or `_sum`.

    Raises:
        KeyError: no such metric.
        ValueError: it is of another kind, or has no such label.
    """
    metric = METRICS[name]
    if metric.kind != kind:
        raise ValueError(f"{name} is a {metric.kind}, not a {kind}")
    known = {*metric.labels, *DEPLOYED} | ({"le"} if part == "_bucket" else set())
    unknown = {*_LABEL.findall(where), *by} - known
    if unknown:
        raise ValueError(f"{name} has no label {', '.join(sorted(unknown))}")
    braces = f"{{{where}}}" if where else ""
    return f"{METRIC_PREFIX}{name}{part}{braces}"


def total_rate(name: str, by: tuple[str, ...] = (), where: str = "", window: str = WINDOW) -> str:
    """Of a counter, a second."""
    return f"{_sum(by)} (rate({select(name, 'counter', where, by)}[{window}]))"


def parts_rate(
    name: str, part: Literal["_count", "_sum", "_bucket"], by: tuple[str, ...] = (),
    where: str = "", window: str = WINDOW,
) -> str:  # fmt: skip
    """Of one series of a histogram, a second."""
    return f"{_sum(by)} (rate({select(name, 'histogram', where, by, part)}[{window}]))"


def _sum(by: tuple[str, ...]) -> str:
    return f"sum by ({', '.join(by)})" if by else "sum"


def _legend(by: tuple[str, ...], prefix: str = "") -> str:
    labels = " ".join(f"{{{{{label}}}}}" for label in by)
    return f"{prefix} {labels}".strip()


def rate(name: str, by: tuple[str, ...] = (), where: str = "", legend: str = "") -> Query:
    """A counter's pace; of seconds: how many are busy at once."""
    unit = RATES[METRICS[name].unit]
    return Query(total_rate(name, by, where), unit, legend or _legend(by))


def usd_per_hour(name: str, by: tuple[str, ...] = (), where: str = "") -> Query:
    if METRICS[name].unit != "usd":
        raise ValueError(f"{name} is in {METRICS[name].unit}")
    return Query(f"3600 * {total_rate(name, by, where)}", "usd/h", _legend(by, "" if by else "all"))


def quantile(
    share: float, name: str, by: tuple[str, ...] = (), where: str = "", prefix: str = ""
) -> Query:
    """A histogram's, by linear interpolation within its buckets."""
    rates = parts_rate(name, "_bucket", ("le", *by), where)
    legend = _legend(by, prefix or f"p{100 * share:g}")
    return Query(f"histogram_quantile({share:g}, {rates})", METRICS[name].unit, legend)


def mean(name: str, by: tuple[str, ...] = (), where: str = "", prefix: str = "") -> Query:
    """A histogram's sum over its count; as good as its buckets are narrow, see FAST_S."""
    expr = f"{parts_rate(name, '_sum', by, where)} / {parts_rate(name, '_count', by, where)}"
    return Query(expr, METRICS[name].unit, _legend(by, prefix or ("" if by else "mean")))


def observed(name: str, by: tuple[str, ...] = (), where: str = "") -> Query:
    """How many values a second a histogram got."""
    return Query(parts_rate(name, "_count", by, where), "1/s", _legend(by))


def level(
    name: str, by: tuple[str, ...] = (), where: str = "", how: Literal["sum", "max"] = "sum",
    legend: str = "",
) -> Query:  # fmt: skip
    """A gauge, over the processes that say it: what each has is added, what each sees is not."""
    over = f"{how} by ({', '.join(by)})" if by else how
    expr = f"{over} ({select(name, 'gauge', where, by)})"
    return Query(expr, METRICS[name].unit, legend or _legend(by))


def ratio(part: str, whole: str, legend: str = "") -> Query:
    """Of two expressions with the same labels; nothing where the whole is nothing."""
    return Query(f"{part} / ({whole} > 0)", "ratio", legend)


def zeroed(query: Query) -> Query:
    """With 0 where no series exists yet: a counter begins with its first event."""
    return Query(f"{query.expr} or vector(0)", query.unit, query.legend)
