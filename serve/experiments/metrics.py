"""What arms are compared by: how each metric is read from an exposure, and which way is worse."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from serve.designs import MetricName
from serve.store.exposures import Seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One number of an exposure, and how arms are compared by it."""

    name: MetricName
    title: str
    kind: Literal["share", "mean"]
    """`share`: of units that had it at least once. `mean`: over exposures, units apart."""
    better: Literal["lower", "higher"]
    usual_margin: float
    """How much worse is still as good, where nobody says; as a part of the control's mean where
    the metric is relative."""
    unit: str = ""
    is_relative: bool = False
    is_never: bool = False
    """One is too many, whatever the margin."""
    is_reported: bool = False
    """Somebody must say it: where nobody ever did, nothing is known."""
    read: Callable[[Seen], float | None]
    """None where the exposure does not say; of a share 1 or 0."""


def _is_answered(seen: Seen) -> bool:
    return not seen.code


def _read_error(seen: Seen) -> float | None:
    # A caller's mistake, or one who left, says nothing about the version.
    return None if seen.code and not seen.is_failure else float(seen.is_failure)


def _read_latency(seen: Seen) -> float | None:
    return seen.latency_ms if _is_answered(seen) else None


def _read_gpu(seen: Seen) -> float | None:
    return float(seen.gpu_ms) if _is_answered(seen) else None


def _read_cost(seen: Seen) -> float | None:
    return _find(seen, "cost_usd") if _is_answered(seen) else None


def _read_outside(seen: Seen) -> float | None:
    value = _find(seen, "outside")
    return None if value is None else float(value > 0)


def _find(seen: Seen, name: MetricName) -> float | None:
    """One that is no number would make the mean none, and nothing could be said of it again."""
    value = seen.metrics.get(name)
    return value if value is not None and math.isfinite(value) else None


def _measured(name: MetricName) -> Callable[[Seen], float | None]:
    return lambda seen: _find(seen, name)


def _verdict(name: str) -> Callable[[Seen], float | None]:
    """Nobody can say anything about what was not answered, or not shown."""
    return lambda seen: (
        float(name in seen.verdicts) if _is_answered(seen) and not seen.is_shadow else None
    )


_ALL = (
    Metric(
        name="errors", title="Errors", kind="share", better="lower", usual_margin=0.01,
        read=_read_error,
    ),
    Metric(
        name="outside", title="Changed outside the region", kind="share", better="lower",
        usual_margin=0.0, is_never=True, read=_read_outside,
    ),
    Metric(
        name="colour", title="Colour of the product", kind="mean", better="lower",
        usual_margin=1.0, unit="ΔE00", read=_measured("colour"),
    ),
    Metric(
        name="pattern", title="Pattern of the product", kind="mean", better="higher",
        usual_margin=0.05, read=_measured("pattern"),
    ),
    Metric(
        name="embedding", title="Likeness of the product", kind="mean", better="higher",
        usual_margin=0.02, read=_measured("embedding"),
    ),
    Metric(
        name="seam", title="Seam at the border", kind="mean", better="lower", usual_margin=2.0,
        unit="levels", read=_measured("seam"),
    ),
    Metric(
        name="face", title="Distance from the face", kind="mean", better="lower",
        usual_margin=0.03, read=_measured("face"),
    ),
    Metric(
        name="latency_ms", title="Latency", kind="mean", better="lower", usual_margin=0.25,
        unit="ms", is_relative=True, read=_read_latency,
    ),
    Metric(
        name="gpu_ms", title="Time on the device", kind="mean", better="lower",
        usual_margin=0.25, unit="ms", is_relative=True, read=_read_gpu,
    ),
    Metric(
        name="cost_usd", title="Cost", kind="mean", better="lower", usual_margin=0.25,
        unit="USD", is_relative=True, read=_read_cost,
    ),
    Metric(
        name="accepted", title="Accepted", kind="share", better="higher", usual_margin=0.02,
        is_reported=True, read=_verdict("accepted"),
    ),
    Metric(
        name="rejected", title="Rejected", kind="share", better="lower", usual_margin=0.02,
        is_reported=True, read=_verdict("rejected"),
    ),
    Metric(
        name="returned", title="Returned", kind="share", better="lower", usual_margin=0.02,
        is_reported=True, read=_verdict("returned"),
    ),
    Metric(
        name="converted", title="Converted", kind="share", better="higher", usual_margin=0.02,
        is_reported=True, read=_verdict("converted"),
    ),
)  # fmt: skip

METRICS: Mapping[MetricName, Metric] = MappingProxyType({metric.name: metric for metric in _ALL})
