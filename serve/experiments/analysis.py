"""What exposures say about two arms: units are what was drawn, so units are what is counted.

Requests of one unit look alike; a unit that asks a thousand times is one unit still.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from serve.designs import MetricName
from serve.experiments.metrics import METRICS, Metric
from serve.experiments.sequential import (
    MIN_UNITS,
    NOTHING_KNOWN,
    Bounds,
    bound_mean,
    bound_paired_shares,
    bound_share_difference,
    combine_errors,
    widen_smaller,
)
from serve.store.exposures import Seen

Floats = NDArray[np.float64]

MAX_WEIGHT = 10
"""A unit counts as its exposures, as so many at most: one that never stops asking is not the
whole mean."""


@dataclass(frozen=True, slots=True)
class ArmNumbers:
    """One arm on one metric."""

    num_units: int
    num_exposures: int
    mean: float
    """The share of units, or the mean; not a number without any unit."""


NO_ARM = ArmNumbers(0, 0, math.nan)


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
        return f"{value:.2%}"
    digits = 0 if metric.unit == "ms" else 4 if metric.unit == "USD" else 3
    return f"{value:.{digits}f} {metric.unit}".rstrip()


def tell_effect(metric: Metric, value: float) -> str:
    """A difference for a person, with its sign."""
    if not math.isfinite(value):
        return "–"
    if metric.is_relative:
        return f"{value:+.1%}"
    if metric.kind == "share":
        return f"{100 * value:+.2f} points"
    return f"{value:+.3f} {metric.unit}".rstrip()


def compare(
    seen: Iterable[Seen], metric: Metric, control: str, challenger: str, alpha: float
) -> Comparison:
    """Two arms on one metric; shadows do not count.

    Args:
        seen: of one experiment, other arms among them.
        control, challenger: names of arms.
    """
    units: dict[str, dict[str, list[float]]] = {control: {}, challenger: {}}
    for one in seen:
        of_arm = units.get(one.arm)
        value = None if of_arm is None or one.is_shadow else metric.read(one)
        if of_arm is not None and value is not None:
            of_arm.setdefault(one.unit, []).append(value)
    sides = (_Arm.of(units[control].values()), _Arm.of(units[challenger].values()))
    return _compare_arms(metric, *sides, alpha=alpha)


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


def compare_pairs(
    seen: Iterable[Seen], metric: Metric, control: str, challenger: str, alpha: float
) -> Comparison:
    """The challenger's shadows beside the control's answers to the same requests."""
    return compare_found(find_pairs(seen, control, challenger), metric, alpha)


def compare_found(pairs: Sequence[Pair], metric: Metric, alpha: float) -> Comparison:
    """The same, of pairs that were found before."""
    units: dict[str, list[tuple[float, float]]] = {}
    for pair in pairs:
        before, after = metric.read(pair.live), metric.read(pair.shadow)
        if before is not None and after is not None:
            units.setdefault(pair.live.unit, []).append((before, after))
    columns = [[[one[side] for one in unit] for unit in units.values()] for side in (0, 1)]
    before_arm, after_arm = _Arm.of(columns[0]), _Arm.of(columns[1])
    sides = (before_arm.numbers(metric), after_arm.numbers(metric))
    if not units:
        return Comparison(metric.name, *sides, math.nan, NOTHING_KNOWN, alpha, True)
    if metric.kind == "share":
        had, has = before_arm.had_any, after_arm.had_any
        worse, better = int((has & ~had).sum()), int((had & ~has).sum())
        bounds = bound_paired_shares(worse, better, len(units), alpha)
        effect = (worse - better) / len(units)
        signed = _towards_worse(metric, effect, bounds)
        return Comparison(metric.name, *sides, *signed, alpha, True, int(has.sum()))
    effect, influence = _difference_of_pairs(metric, before_arm, after_arm)
    num_units = before_arm.num_effective
    variance = float((influence**2).sum()) * _correction(num_units)
    scale = max(abs(before_arm.mean), abs(after_arm.mean), 1.0 if metric.is_relative else 0.0)
    bounds = NOTHING_KNOWN
    if num_units >= MIN_UNITS and math.isfinite(effect):
        variance = max(variance, float(_least_variance(scale, num_units)))
        bounds = bound_mean(effect, variance, num_units, num_units - 1, alpha)
    return Comparison(metric.name, *sides, *_towards_worse(metric, effect, bounds), alpha, True)


@dataclass(frozen=True, slots=True)
class _Arm:
    """Units of one arm, (U,) each."""

    counts: Floats
    weights: Floats
    means: Floats
    had_any: NDArray[np.bool_]

    @classmethod
    def of(cls, units: Iterable[Sequence[float]]) -> "_Arm":
        rows = [(len(values), math.fsum(values), max(values)) for values in units]
        counts, sums, highest = np.array(rows, dtype=np.float64).reshape(-1, 3).T
        return cls(counts, np.minimum(counts, MAX_WEIGHT), sums / counts, highest > 0)

    @property
    def num_units(self) -> int:
        return len(self.counts)

    @property
    def num_effective(self) -> float:
        """Equally heavy units that would say as much. Source: Kish, Survey Sampling, 1965."""
        return float(self.weights.sum() ** 2 / (self.weights**2).sum()) if self.num_units else 0.0

    @property
    def mean(self) -> float:
        """A ratio of sums: of values over exposures."""
        return float(self.weights @ self.means / self.weights.sum()) if self.num_units else math.nan

    def influence(self) -> Floats:
        """What each unit adds to the error of the mean. Source: linearisation of a ratio, e.g.
        Deng, Knoblich, Lu, Applying the delta method in metric analytics, KDD 2018, section 3."""
        influence: Floats = self.weights * (self.means - self.mean) / self.weights.sum()
        return influence

    def numbers(self, metric: Metric) -> ArmNumbers:
        if not self.num_units:
            return NO_ARM
        mean = float(self.had_any.mean()) if metric.kind == "share" else self.mean
        return ArmNumbers(self.num_units, int(self.counts.sum()), mean)


def _compare_arms(metric: Metric, control: _Arm, challenger: _Arm, alpha: float) -> Comparison:
    sides = (control.numbers(metric), challenger.numbers(metric))
    if not control.num_units or not challenger.num_units:
        num_bad = int(challenger.had_any.sum()) if metric.kind == "share" else 0
        return Comparison(metric.name, *sides, math.nan, NOTHING_KNOWN, alpha, num_bad=num_bad)
    if metric.kind == "share":
        hits = [(int(arm.had_any.sum()), arm.num_units) for arm in (control, challenger)]
        effect = sides[1].mean - sides[0].mean
        signed = _towards_worse(metric, effect, bound_share_difference(hits[0], hits[1], alpha))
        return Comparison(metric.name, *sides, *signed, alpha, num_bad=hits[1][0])
    effect, bounds = _bound_difference(metric, control, challenger, alpha)
    return Comparison(metric.name, *sides, *_towards_worse(metric, effect, bounds), alpha)


def _bound_difference(
    metric: Metric, control: _Arm, challenger: _Arm, alpha: float
) -> tuple[float, Bounds]:
    """Of means; of their logarithms where the metric is relative."""
    means = (control.mean, challenger.mean)
    if metric.is_relative and min(means) <= 0:
        return math.nan, NOTHING_KNOWN
    effect = math.log(means[1] / means[0]) if metric.is_relative else means[1] - means[0]
    least = min(control.num_effective, challenger.num_effective)
    if least < MIN_UNITS:
        return effect, NOTHING_KNOWN
    scale = 1.0 if metric.is_relative else max(map(abs, means))
    arms = (control, challenger)
    divisors = means if metric.is_relative else (1.0, 1.0)
    own = [
        float((arm.influence() ** 2).sum()) * _correction(arm.num_effective) / divisor**2
        for arm, divisor in zip(arms, divisors, strict=True)
    ]
    counts = np.array([arm.num_effective for arm in arms])
    variances = np.maximum(widen_smaller(np.array(own), counts), _least_variance(scale, counts))
    variance, num_units, freedom = map(float, combine_errors(variances, counts))
    return effect, bound_mean(effect, variance, num_units, freedom, alpha)


def _difference_of_pairs(metric: Metric, before: _Arm, after: _Arm) -> tuple[float, Floats]:
    if not metric.is_relative:
        return after.mean - before.mean, after.influence() - before.influence()
    if min(before.mean, after.mean) <= 0:
        return math.nan, before.influence()
    influence = after.influence() / after.mean - before.influence() / before.mean
    return math.log(after.mean / before.mean), influence


def _correction(num_units: float) -> float:
    """Bessel's, of so many units."""
    return num_units / max(num_units - 1, 1e-9)


def _least_variance(scale: float, num_units: Floats | float) -> Floats:
    """Of a mean whose values are alike to six digits: below it there is rounding only."""
    return np.asarray(max(1e-6 * scale, 1e-12) ** 2 / num_units)


def _towards_worse(metric: Metric, effect: float, bounds: Bounds) -> tuple[float, Bounds]:
    """Of the challenger less the control, or of the logarithm of their ratio."""
    values = [effect, bounds.low, bounds.high, bounds.floor, bounds.ceiling]
    if metric.is_relative:
        values = [math.expm1(min(value, 50.0)) if value < math.inf else value for value in values]
    effect, low, high, floor, ceiling = values
    if metric.better == "higher":
        effect, low, high, floor, ceiling = -effect, -high, -low, -ceiling, -floor
    return effect, Bounds(low, high, floor, ceiling, bounds.p_value)
