"""What objectives are counted from: which answers are failures, and which latencies can be told."""

from pathlib import Path

from serve import errors
from serve.config import FamilyConfig
from serve.errors import ClusterError, ConfigError, Sm4llError
from serve.messages import EXPERTS
from serve.telemetry import METRICS

DURATION = "sm4ll_tryon_duration_seconds"
FAILURES = tuple(
    sorted(
        kind.code
        for kind in vars(errors).values()
        if isinstance(kind, type)
        and issubclass(kind, Sm4llError)
        and not issubclass(kind, ClusterError)  # no caller is ever told
        and kind.status >= 500
    )
)
"""Codes of answers that are our fault. A tenant's own limits (429) are not: they were agreed."""


def check_objectives(family: FamilyConfig, path: Path) -> None:
    """
    Raises:
        ConfigError: a latency that the histogram cannot tell; names the nearest it can.
    """
    bounds = METRICS[DURATION].buckets
    for expert in EXPERTS:
        latency_s = family.slo.of(expert).latency_s
        if latency_s not in bounds:
            nearest = sorted(sorted(bounds, key=lambda bound: abs(bound - latency_s))[:2])
            raise ConfigError(
                f"{path}: slo: latency_s of {expert} is {latency_s:g}, which no bucket of "
                f"{DURATION} ends at; take {nearest[0]:g} or {nearest[1]:g}"
            )
