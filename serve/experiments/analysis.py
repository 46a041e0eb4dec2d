"""What exposures say about two arms, by units.

Differences are towards worse, whichever way a metric is better.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from serve.designs import MetricName
from serve.experiments.clusters import (
    NO_UNITS,
    Clusters,
    bound_difference,
    bound_paired_difference,
    encode,
)
from serve.experiments.metrics import METRICS, Metric
from serve.experiments.sequential import (
    NOTHING_KNOWN,
    Bounds,
    bound_paired_shares,
    bound_share_difference,
)
from serve.store.exposures import Seen


@dataclass(frozen=True, slots=True)
class ArmNumbers:
    """One arm on one metric."""

    num_units: int
    num_exposures: int
    mean: float
    """The share of units, or the mean; not a number without any unit."""
    per_exposure: float
    """The mean; of a share that of exposures."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The challenger beside the control on one metric.

    Every difference is towards worse: above 0 the challenger is worse. Where the metric is
    relative it is a part of the control's mean.
    """

    metric: MetricName
    control: ArmNumbers
    challenger: ArmNumbers
    effect: float
    """Not a number where one side has none."""
    bounds: Bounds
    alpha: float
    is_paired: bool = False
    """Of shadows: the same inputs and seed on both."""
    num_bad: int = 0
    """Of what must never be: the challenger's units that had it."""

    @property
    def has_data(self) -> bool:
        return self.control.num_units > 0 and self.challenger.num_units > 0

    @property
    def is_known(self) -> bool:
        """Whether there is enough to say anything at all."""
        return self.has_data and math.isfinite(self.bounds.low + self.bounds.high)

    def harm(self, margin: float | None = None) -> bool:
        """Whether it is proven, one-sided at alpha, to be worse by more than the margin; by the
        metric's usual one without."""
        if METRICS[self.metric].is_never:
            return self.num_bad > 0
        return self.bounds.floor > self._margin(margin)

    def safe(self, margin: float | None = None) -> bool:
        """Whether it is proven, one-sided at alpha, to be worse by no more than the margin."""
        if METRICS[self.metric].is_never:
            return self.has_data and self.num_bad == 0
        return self.bounds.ceiling <= self._margin(margin)

    def suspect(self, margin: float | None = None) -> bool:
        """Whether it looks worse by more than the margin, proven or not.

        A share must look so in exposures as well as in units: those who ask often all have it some
        day, and chance that chose few units does not shrink while they go on asking.
        """
        limit = self._margin(margin)
        per_exposure = self.challenger.per_exposure - self.control.per_exposure
        if METRICS[self.metric].kind == "mean":
            per_exposure = self.effect
        elif METRICS[self.metric].better == "higher":
            per_exposure = -per_exposure
        return self.effect > limit and per_exposure > limit

    def words(self) -> str:
        """The numbers in one line: `colour 2.10 against 1.20 (worse by 0.90, between ...)`."""
        metric = METRICS[self.metric]
        if not self.has_data:
            return f"{metric.name}: nothing measured on both sides"
        low, high = tell_effect(metric, self.bounds.low), tell_effect(metric, self.bounds.high)
        between = f"between {low} and {high}" if self.is_known else "too few to say"
        pair = f"{self.challenger.num_units}"
        pair += " pairs" if self.is_paired else f" against {self.control.num_units} units"
        return (
            f"{metric.name} {tell_value(metric, self.challenger.mean)} against "
            f"{tell_value(metric, self.control.mean)}: {tell_effect(metric, self.effect)} towards "
            f"worse, {between}, {pair}"
        )

    def numbers(self) -> dict[str, Any]:
        """For a log; what is not a number is absent."""
        named = {
            "effect": self.effect,
            "low": self.bounds.low,
            "high": self.bounds.high,
            "p_value": self.bounds.p_value,
            "control_mean": self.control.mean,
            "challenger_mean": self.challenger.mean,
        }
        counts: dict[str, Any] = {
            "control_units": self.control.num_units,
            "challenger_units": self.challenger.num_units,
            "control_exposures": self.control.num_exposures,
            "challenger_exposures": self.challenger.num_exposures,
            "alpha": self.alpha,
            "is_paired": self.is_paired,
        }
        return counts | {name: value for name, value in named.items() if math.isfinite(value)}

    def _margin(self, margin: float | None) -> float:
        return METRICS[self.metric].usual_margin if margin is None else margin


def tell_value(metric: Metric, value: float) -> str:
    """A mean or a share for a person."""
    if not math.isfinite(value):
        return "–"
    if metric.kind == "share":
        return f"{100 * value:.2f} %"
    digits = 0 if metric.unit == "ms" else 4 if metric.unit == "USD" else 3
    return f"{value:.{digits}f} {metric.unit}".rstrip()


def tell_effect(metric: Metric, value: float) -> str:
    """A difference for a person, with its sign."""
    if not math.isfinite(value):
        return "–"
    percent = 100 * value
    if metric.is_relative:
        return f"{round(percent, 1) + 0.0:+.1f} %"
    if metric.kind == "share":
        return f"{round(percent, 2) + 0.0:+.2f} points"
    return f"{round(value, 3) + 0.0:+.3f} {metric.unit}".rstrip()


def compare(
    seen: Iterable[Seen], metric: Metric, control: str, challenger: str, alpha: float
) -> Comparison:
    """Two arms on one metric; shadows do not count.

    Args:
        seen: of one experiment, other arms among them.
        control, challenger: names of arms.
    """
    units: dict[str, list[str]] = {control: [], challenger: []}
    values: dict[str, list[float]] = {control: [], challenger: []}
    for one in seen:
        if one.is_shadow or one.arm not in units:
            continue
        value = metric.read(one)
        if value is not None:
            units[one.arm].append(one.unit)
            values[one.arm].append(value)
    sides = [Clusters.of(encode(units[arm]), np.array(values[arm])) for arm in units]
    return compare_clusters(metric, sides[0], sides[1], alpha)


def compare_clusters(
    metric: Metric, control: Clusters, challenger: Clusters, alpha: float
) -> Comparison:
    """The same, of values that were read before."""
    if metric.is_reported and not control.num_hit + challenger.num_hit:
        control = challenger = NO_UNITS
    sides = (_numbers(metric, control), _numbers(metric, challenger))
    num_bad = challenger.num_hit if metric.kind == "share" else 0
    if not control.num_units or not challenger.num_units:
        return Comparison(metric.name, *sides, math.nan, NOTHING_KNOWN, alpha, num_bad=num_bad)
    if metric.kind == "share":
        hits = [(side.num_hit, side.num_units) for side in (control, challenger)]
        effect = sides[1].mean - sides[0].mean
        bounds = bound_share_difference(hits[0], hits[1], alpha)
    else:
        effect, bounds = bound_difference(
            control, challenger, alpha, is_relative=metric.is_relative
        )
    signed = _towards_worse(metric, effect, bounds)
    return Comparison(metric.name, *sides, *signed, alpha, num_bad=num_bad)


class Pair(NamedTuple):
    """A request as the control answered it, and as the challenger would have."""

    live: Seen
    shadow: Seen


def find_pairs(seen: Iterable[Seen], control: str, challenger: str) -> list[Pair]:
    """Every shadow of the challenger beside the control's answer whose inputs it had."""
    live: dict[tuple[str, str], Seen] = {}
    shadows = []
    for one in seen:
        if one.is_shadow and one.arm == challenger:
            shadows.append(one)
        elif not one.is_shadow and one.arm == control:
            live[one.tenant_id, one.id] = one
    named = ((live.get((shadow.tenant_id, shadow.id)), shadow) for shadow in shadows)
    return [Pair(answer, shadow) for answer, shadow in named if answer is not None]


def compare_pairs(pairs: Sequence[Pair], metric: Metric, alpha: float) -> Comparison:
    """The challenger's shadows beside the control's answers to the same requests."""
    units: list[str] = []
    values: list[tuple[float, float]] = []
    for pair in pairs:
        before, after = metric.read(pair.live), metric.read(pair.shadow)
        if before is not None and after is not None:
            units.append(pair.live.unit)
            values.append((before, after))
    codes = encode(units)
    columns = np.array(values, dtype=np.float64).reshape(-1, 2).T
    control, challenger = Clusters.of(codes, columns[0]), Clusters.of(codes, columns[1])
    sides = (_numbers(metric, control), _numbers(metric, challenger))
    if not units:
        return Comparison(metric.name, *sides, math.nan, NOTHING_KNOWN, alpha, True)
    num_bad = 0
    if metric.kind == "share":
        had, has = control.had_any, challenger.had_any
        worse, better, num_bad = int((has & ~had).sum()), int((had & ~has).sum()), int(has.sum())
        effect = (worse - better) / len(had)
        bounds = bound_paired_shares(worse, better, len(had), alpha)
    else:
        effect, bounds = bound_paired_difference(
            control, challenger, alpha, is_relative=metric.is_relative
        )
    signed = _towards_worse(metric, effect, bounds)
    return Comparison(metric.name, *sides, *signed, alpha, True, num_bad)


def _numbers(metric: Metric, side: Clusters) -> ArmNumbers:
    mean = side.mean
    if metric.kind == "share" and side.num_units:
        mean = side.num_hit / side.num_units
    return ArmNumbers(side.num_units, int(side.counts.sum()), mean, side.mean)


def _towards_worse(metric: Metric, effect: float, bounds: Bounds) -> tuple[float, Bounds]:
    """Of the challenger less the control, or of the logarithm of their ratio."""
    values = [effect, bounds.low, bounds.high, bounds.floor, bounds.ceiling]
    if metric.is_relative:
        values = [math.expm1(min(value, 50.0)) if value < math.inf else value for value in values]
    effect, low, high, floor, ceiling = values
    if metric.better == "higher":
        effect, low, high, floor, ceiling = -effect, -high, -low, -ceiling, -floor
    return effect, Bounds(low, high, floor, ceiling, bounds.p_value)
