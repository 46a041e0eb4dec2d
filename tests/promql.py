"""Reads PromQL far enough to know which metrics and labels it asks for."""

import re
from collections.abc import Iterator

from k8s.queries import DEPLOYED
from serve.telemetry import METRIC_PREFIX, METRICS

FOREIGN = {
    # Ray's own.
    "ray_serve_health_check_failures_total": {"application", "deployment"},
    "ray_node_disk_utilization_percentage": {"ip"},
    # Recorded by rules/slo.yaml.
    "sm4ll:slo_objective:ratio": {"expert", "slo"},
    "sm4ll:slo_budget_left:ratio": {"expert", "slo"},
    **{
        f"sm4ll:slo_{what}:rate{window}": {"expert", "slo"}
        for what in ("bad", "events", "burn")
        for window in ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
    },
}
"""Names that are not in the table, with their labels."""
PARTS = {"counter": ("",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}
KNOWN = FOREIGN | {
    f"{METRIC_PREFIX}{name}{part}": {*metric.labels, *DEPLOYED}
    | ({"le"} if part == "_bucket" else set())
    for name, metric in METRICS.items()
    for part in PARTS[metric.kind]
}
_METRIC = re.compile(r"\b((?:ray_|sm4ll)[\w:]+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"')
_BY = re.compile(r"\b(?:by|on|without|ignoring|group_left|group_right)\s*\(([^)]*)\)")


def find_metrics(expr: str) -> Iterator[tuple[str, set[str]]]:
    """Names with the labels that are asked of each."""
    for name, braces in _METRIC.findall(expr):
        yield name, set(_MATCHER.findall(braces))


def find_unknown(expr: str) -> set[str]:
    """Names that nobody records and labels that they do not have."""
    metrics = list(find_metrics(expr))
    unknown = {name for name, _ in metrics if name not in KNOWN}
    for name, labels in metrics:
        unknown |= {f"{name}{{{label}}}" for label in labels - KNOWN.get(name, labels)}
    # Aggregations are over all metrics of an expression here: each must have the label.
    by = {label.strip() for group in _BY.findall(expr) for label in group.split(",")} - {""}
    shared = set.intersection(*(KNOWN.get(name, by) for name, _ in metrics)) if metrics else by
    return unknown | (by - shared - {"le"})
