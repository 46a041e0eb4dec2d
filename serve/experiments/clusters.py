"""Values by unit, and what they say about a mean: requests of one unit look alike, so units are
what is counted, and a unit that asks a thousand times is one unit still."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serve.experiments.sequential import (
    MIN_UNITS,
    NOTHING_KNOWN,
    Bounds,
    bound_mean,
    combine_errors,
    widen_smaller,
)

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]

MAX_WEIGHT = 10
"""A unit counts as its exposures, as so many at most: one that never stops asking is not the
whole mean."""


@dataclass(frozen=True, slots=True)
class Clusters:
    """The units of one side, (U,) each."""

    counts: Floats
    """Exposures."""
    weights: Floats
    means: Floats
    had_any: NDArray[np.bool_]
    """Whether any of its values was above 0."""
    mean: float
    """A ratio of sums, of values over exposures; not a number without any."""
    num_effective: float
    """Equally heavy units that would say as much. Source: Kish, Survey Sampling, 1965."""

    @classmethod
    def of(cls, units: Codes, values: Floats) -> "Clusters":
        """
        Args:
            units: of which unit each value is, (N,); numbers without any value are no units.
        """
        every = np.bincount(units)
        there = every > 0
        counts = every[there].astype(np.float64)
        means = np.bincount(units, weights=values)[there] / counts
        had_any = np.bincount(units, weights=values > 0)[there] > 0
        weights = np.minimum(counts, MAX_WEIGHT)
        # No dot products: they wake threads, and a router has other work for its processors.
        total = float(weights.sum())
        mean = float((weights * means).sum()) / total if total else math.nan
        effective = total**2 / float((weights**2).sum()) if total else 0.0
        return cls(counts, weights, means, had_any, mean, effective)

    @property
    def num_units(self) -> int:
        return len(self.counts)

    @property
    def num_hit(self) -> int:
        return int(self.had_any.sum())

    def influence(self) -> Floats:
        """What each unit adds to the error of the mean. Source: linearisation of a ratio, e.g.
        Deng, Knoblich, Lu, Applying the delta method in metric analytics, KDD 2018, section 3."""
        influence: Floats = self.weights * (self.means - self.mean) / self.weights.sum()
        return influence


NO_UNITS = Clusters.of(np.zeros(0, dtype=np.int64), np.zeros(0))


def bound_difference(
    control: Clusters, challenger: Clusters, alpha: float, *, is_relative: bool
) -> tuple[float, Bounds]:
    """The challenger's mean less the control's, of units that were drawn apart.

    Args:
        is_relative: of the logarithms of both.
    """
    sides = (control, challenger)
    means = [side.mean for side in sides]
    if is_relative and min(means) <= 0:
        return _compare_to_nothing(means), NOTHING_KNOWN
    effect = math.log(means[1] / means[0]) if is_relative else means[1] - means[0]
    counts = np.array([side.num_effective for side in sides])
    if counts.min() < MIN_UNITS:
        return effect, NOTHING_KNOWN
    own = np.array([(side.influence() ** 2).sum() for side in sides]) * counts / (counts - 1)
    scale = 1.0 if is_relative else max(map(abs, means))
    if is_relative:
        own /= np.array(means) ** 2
    variances = np.maximum(widen_smaller(own, counts), _least_variance(scale) / counts)
    variance, num_units, freedom = map(float, combine_errors(variances, counts))
    return effect, bound_mean(effect, variance, num_units, freedom, alpha)


def bound_paired_difference(
    before: Clusters, after: Clusters, alpha: float, *, is_relative: bool
) -> tuple[float, Bounds]:
    """The same, of one set of units that was seen twice."""
    influence, means = after.influence() - before.influence(), [before.mean, after.mean]
    effect, scale = means[1] - means[0], max(map(abs, means))
    if is_relative:
        if min(means) <= 0:
            return _compare_to_nothing(means), NOTHING_KNOWN
        influence = after.influence() / means[1] - before.influence() / means[0]
        effect, scale = math.log(means[1] / means[0]), 1.0
    count = before.num_effective
    if count < MIN_UNITS:
        return effect, NOTHING_KNOWN
    variance = float((influence**2).sum()) * count / (count - 1)
    variance = max(variance, _least_variance(scale) / count)
    return effect, bound_mean(effect, variance, count, count - 1, alpha)


def _compare_to_nothing(means: Sequence[float]) -> float:
    """What costs something is worse beyond all margins than what costs nothing."""
    return math.inf if means[0] == 0 < means[1] else math.nan


def _least_variance(scale: float) -> float:
    """Of values that are alike to six digits: below it there is rounding only."""
    return max(1e-6 * scale, 1e-12) ** 2


def encode(names: Sequence[str]) -> Codes:
    """Equal names to equal numbers from 0 on."""
    known: dict[str, int] = {}
    codes = [known.setdefault(name, len(known)) for name in names]
    return np.array(codes, dtype=np.int64)
