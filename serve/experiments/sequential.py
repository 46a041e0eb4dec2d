"""Statistics that may be looked at every minute: intervals and p-values that hold at every look at
once, not only at one that was planned. Pure numbers; knows no metric and no arm.

A claim at level alpha is wrong at *any* of its looks with a chance of at most alpha.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.experiments import special
from serve.experiments.solving import find_root

Floats = NDArray[np.float64]
Number = float | Floats

MIN_UNITS = 20
"""Fewer on either side claim nothing about a mean: the theory of means is one of many."""
MIN_HITS = 10
"""Fewer hits, or misses, on either side claim nothing about a rate as about a mean."""
EXACT_PART = 0.75
"""Of alpha: for the bound of rates that holds however rare hits are."""
TUNED_UNITS = 150.0
"""Where bounds of means are tightest, in units on each side of a pair, or half of those on each
of two equal arms. Any fixed number is valid."""
MAX_Z = 37.0
"""Beyond it a double holds no tail of the normal distribution."""

# Beta(a, b) and its weight. Rates of errors are small, of verdicts middling: half of the belief is
# spread over scales, the rest sits on exactly none, which is what a good version has.
RATES = ((0.5, 0.5, 0.16), (1.0, 16.0, 0.26), (1.0, 128.0, 0.08), (1.0, 1024.0, 0.05))
NEVER = 0.45
"""Weight of the rate 0."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is known of one number, whenever it is asked."""

    low: float
    high: float
    """The number lies between them, with a chance of at least 1 - alpha at all looks together."""
    floor: float
    """It is above this: one-sided, at alpha."""
    ceiling: float
    """It is below this: one-sided, at alpha."""
    p_value: float
    """Of the number being 0, two-sided; at most alpha at any look with a chance of alpha."""


NOTHING_KNOWN = Bounds(-math.inf, math.inf, -math.inf, math.inf, 1.0)


def bound_mean(
    estimate: float, variance: float, num_units: float, freedom: float, alpha: float
) -> Bounds:
    """Bounds of a mean, or of a difference of means, from its estimate.

    Args:
        variance: of the estimate, above 0.
        num_units: how many units it stands for; of two arms n m / (n + m).
        freedom: degrees of freedom of the variance, as Student's t has them.

    Source: confidence sequences with a normal mixture: Waudby-Smith, Arbour, Sinha, Kennedy,
        Ramdas, Time-uniform central limit theory and asymptotic confidence sequences, Ann. Stat.
        2024, theorem 2.2; one-sided, with a half-normal mixture: Howard, Ramdas, McAuliffe,
        Sekhon, Time-uniform, nonparametric, nonasymptotic confidence sequences, Ann. Stat. 2021,
        proposition 6. Student's t in place of the normal at the same tail, against what the
        variance does not know of itself, is ours; `sm4ll bench sequential` shows that it holds.
    """
    error = math.sqrt(variance)
    two_sided = error * float(find_t(num_units, freedom, alpha / 2))
    one_sided = error * float(find_t(num_units, freedom, alpha))
    return Bounds(
        low=estimate - two_sided,
        high=estimate + two_sided,
        floor=estimate - one_sided,
        ceiling=estimate + one_sided,
        p_value=float(find_p(estimate / error, num_units, freedom)),
    )


def find_t(num_units: Number, freedom: Number, alpha: float) -> Floats:
    """How many standard errors the estimate may be above the truth, one-sided, at every look.

    Args:
        num_units, freedom: numbers or arrays of one shape.
    """
    mix = _mix(num_units)
    # Solves 2 (1 + mix)^(-1/2) exp(u^2 / 2) Phi(u) = 1 / alpha.
    target = 0.5 * np.log1p(mix) - math.log(2 * alpha)
    u = np.sqrt(2 * np.maximum(target, 0.0))
    for _ in range(8):
        u = np.sqrt(2 * np.maximum(target - special.log_ndtr(u), 0.0))
    z = np.minimum(u * np.sqrt((1 + mix) / mix), MAX_Z)
    return np.asarray(-special.stdtrit(freedom, special.ndtr(-z)), dtype=np.float64)


def find_p(t: Number, num_units: Number, freedom: Number) -> Floats:
    """Two-sided p-value of an estimate that is `t` standard errors from 0, valid at every look."""
    mix = _mix(num_units)
    z = np.minimum(-special.ndtri(np.maximum(special.stdtr(freedom, -np.abs(t)), 1e-300)), MAX_Z)
    u = z * np.sqrt(mix / (1 + mix))
    log_e = math.log(2) - 0.5 * np.log1p(mix) + u**2 / 2 + special.log_ndtr(u)
    return np.asarray(np.minimum(1.0, 2 * np.exp(-log_e)), dtype=np.float64)


def _mix(num_units: Number) -> Floats:
    """Variance of the mixture in that of the estimate."""
    # What makes bounds at alpha = 0.05 tightest there: Waudby-Smith et al. 2024, (2.8).
    spread = -2 * math.log(0.05)
    spread += math.log(spread + 1)
    return np.asarray(num_units, dtype=np.float64) * (spread / TUNED_UNITS)


def log_marginal(num_hits: Number, num_units: Number) -> Floats:
    """Log likelihood of so many hits under a mixture of rates, in their order.

    Source: Robbins, Statistical methods related to the law of the iterated logarithm, Ann. Math.
        Stat. 1970; conjugate mixtures: Howard, Ramdas, Sequential estimation of quantiles with
        applications to A/B testing and best-arm identification, Bernoulli 2022, section 3.
    """
    hits = np.asarray(num_hits, dtype=np.float64)
    misses = np.asarray(num_units, dtype=np.float64) - hits
    parts = [
        math.log(weight) + special.betaln(a + hits, b + misses) - special.betaln(a, b)
        for a, b, weight in RATES
    ]
    parts.append(np.where(hits == 0, math.log(NEVER), -np.inf))
    stacked = np.stack(np.broadcast_arrays(*parts))
    return np.asarray(np.logaddexp.reduce(stacked, axis=0), dtype=np.float64)


def bound_share(num_hits: int, num_units: int, alpha: float) -> tuple[float, float]:
    """Between what a rate lies, exactly, at every look; (0, 1) where nothing is known.

    Source: as `log_marginal`; Ville's inequality.
    """
    limit = float(log_marginal(num_hits, num_units)) + math.log(alpha)
    best = num_hits / max(1, num_units)

    def excess(rate: float) -> float:
        return limit - float(_log_likelihood(num_hits, num_units, rate))

    low = find_root(excess, 0.0, best) if excess(0.0) > 0 else 0.0
    high = find_root(excess, 1.0, best) if excess(1.0) > 0 else 1.0
    return low, high


def bound_share_difference(
    control: tuple[int, int], challenger: tuple[int, int], alpha: float
) -> Bounds:
    """Bounds of the challenger's rate less the control's.

    Three quarters of alpha go to a bound that is exact however rare hits are: both arms' mixtures
    multiply to a martingale at their true rates, in whichever order units come, and a difference
    is refused where every pair of rates that has it is. The rest goes to the bound of means, which
    finds more where there are hits enough for it.

    Args:
        control, challenger: hits and units.

    Source: as `bound_share`; two streams: Turner, Ly, Gruenwald, Generic e-variables for exact
        sequential k-sample tests, J. Stat. Plan. Inference 2024; the infimum over the composite
        null: Wasserman, Ramdas, Balakrishnan, Universal inference, PNAS 2020.
    """
    if not control[1] or not challenger[1]:
        return NOTHING_KNOWN
    limit = float(log_marginal(*control) + log_marginal(*challenger)) + math.log(EXACT_PART * alpha)
    best = challenger[0] / challenger[1] - control[0] / control[1]

    def excess(difference: float) -> float:
        return limit - _log_profile(control, challenger, difference)

    low = find_root(excess, -1.0, best) if excess(-1.0) > 0 else -1.0
    high = find_root(excess, 1.0, best) if excess(1.0) > 0 else 1.0
    variance, units, freedom, is_enough = _share_error(*control, *challenger)
    many, rest = NOTHING_KNOWN, (1 - EXACT_PART) * alpha
    if is_enough:
        many = bound_mean(best, float(variance), float(units), float(freedom), rest)
    return Bounds(
        low=max(low, many.low),
        high=min(high, many.high),
        floor=max(low, many.floor),
        ceiling=min(high, many.ceiling),
        p_value=float(find_share_p(*control, *challenger)),
    )


def find_share_p(
    control_hits: Number, control_units: Number, hits: Number, units: Number
) -> Floats:
    """Two-sided p-value of two equal rates, valid at every look; numbers or arrays."""
    pooled = (control_hits + hits) / np.maximum(control_units + units, 1)
    log_e = log_marginal(control_hits, control_units) + log_marginal(hits, units)
    for s, n in ((control_hits, control_units), (hits, units)):
        log_e = log_e - _log_likelihood(s, n, pooled)
    exact = np.exp(-np.maximum(log_e, 0.0))
    difference = hits / np.maximum(units, 1) - control_hits / np.maximum(control_units, 1)
    variance, num_units, freedom, is_enough = _share_error(control_hits, control_units, hits, units)
    many = np.where(is_enough, find_p(difference / np.sqrt(variance), num_units, freedom), 1.0)
    return np.asarray(
        np.minimum(1.0, np.minimum(exact / EXACT_PART, many / (1 - EXACT_PART))), dtype=np.float64
    )


def _share_error(
    control_hits: Number, control_units: Number, hits: Number, units: Number
) -> tuple[Floats, Floats, Floats, NDArray[np.bool_]]:
    """Variance of the difference of two rates, units and degrees of freedom as `bound_mean` has
    them, and whether both arms have hits and misses enough for it."""
    counts = np.stack(np.broadcast_arrays(control_units, units)).astype(np.float64)
    found = np.stack(np.broadcast_arrays(control_hits, hits)).astype(np.float64)
    is_enough = np.minimum(found, counts - found).min(axis=0) >= MIN_HITS
    counts = np.maximum(counts, 2.0)
    rates = np.clip(found / counts, 1e-9, 1 - 1e-9)
    variances = widen_smaller(rates * (1 - rates) / (counts - 1), counts)
    return *combine_errors(variances, counts), is_enough


def widen_smaller(variances: Floats, counts: Floats) -> Floats:
    """Of the means of two arms, (2, ...): units of the smaller arm are taken to be as uncertain as
    those of the larger at least. A few units of a skewed metric look alike until the first odd one
    comes."""
    spreads = variances * counts
    is_fewer = counts < counts[::-1]
    return np.asarray(np.where(is_fewer, spreads.max(axis=0), spreads) / counts)


def combine_errors(variances: Floats, counts: Floats) -> tuple[Floats, Floats, Floats]:
    """Of two means, (2, ...), to variance, units and degrees of freedom of their difference.

    Source: Welch, The generalization of Student's problem, Biometrika 1947.
    """
    total = variances.sum(axis=0)
    freedom = total**2 / (variances**2 / np.maximum(counts - 1, 1e-9)).sum(axis=0)
    return total, 1 / (1 / counts).sum(axis=0), freedom


def bound_paired_shares(worse: int, better: int, num_units: int, alpha: float) -> Bounds:
    """Bounds of the rate of units that only the second of a pair hit, less that of those that only
    the first did: exact, however rare they are.

    Source: as `bound_share_difference`, the two streams being which units are worse, and which of
        those that are not are better; the p-value is McNemar's test (Psychometrika 1947) on the
        units that differ, with a Beta(1/2, 1/2) mixture in place of the binomial.
    """
    if not num_units:
        return NOTHING_KNOWN
    limit = float(log_marginal(worse, num_units) + log_marginal(better, num_units - worse))
    limit += math.log(alpha)
    best = (worse - better) / num_units

    def excess(difference: float) -> float:
        return limit - _log_paired_profile(worse, better, num_units, difference)

    low = find_root(excess, -1.0, best) if excess(-1.0) > 0 else -1.0
    high = find_root(excess, 1.0, best) if excess(1.0) > 0 else 1.0
    log_e = float(special.betaln(0.5 + worse, 0.5 + better) - special.betaln(0.5, 0.5))
    log_e += (worse + better) * math.log(2)
    return Bounds(low, high, low, high, min(1.0, math.exp(-log_e)) if log_e > 0 else 1.0)


def _log_likelihood(hits: Any, units: Any, rate: Any) -> Any:
    return special.xlogy(hits, rate) + special.xlogy(units - hits, 1 - rate)


def _log_profile(control: tuple[int, int], challenger: tuple[int, int], difference: float) -> float:
    """The highest log likelihood of any two rates with this difference."""
    (hits_0, units_0), (hits_1, units_1) = control, challenger
    lowest, highest = max(0.0, -difference), min(1.0, 1.0 - difference)

    def slope(rate: float) -> float:
        other = rate + difference
        return (
            _part(hits_0, rate)
            - _part(units_0 - hits_0, 1 - rate)
            + _part(hits_1, other)
            - _part(units_1 - hits_1, 1 - other)
        )

    rate = find_root(slope, lowest, highest)
    other = min(1.0, max(0.0, rate + difference))
    likelihood = _log_likelihood(hits_0, units_0, rate) + _log_likelihood(hits_1, units_1, other)
    return float(likelihood)


def _log_paired_profile(worse: int, better: int, num_units: int, difference: float) -> float:
    """The highest log likelihood of any three rates, of worse, better and neither, of which the
    first two have this difference."""
    neither = num_units - worse - better

    def slope(rate: float) -> float:
        apart = _part(worse, rate + difference) + _part(better, rate)
        return apart - 2 * _part(neither, 1 - 2 * rate - difference)

    rate = find_root(slope, max(0.0, -difference), (1 - difference) / 2)
    rates = (max(0.0, rate + difference), rate, max(0.0, 1 - 2 * rate - difference))
    return float(sum(special.xlogy((worse, better, neither), rates)))


def _part(count: int, rate: float) -> float:
    return count / max(rate, 1e-15) if count else 0.0
