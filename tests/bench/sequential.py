"""How often looking a thousand times finds a difference that is not there, and how many units it
takes to find one that is, beside a test that may be looked at once.

Run as `python -m tests.bench.sequential [--replications N] [--output FILE] [--svg FILE]`.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln, gammaln, ndtr, ndtri
from scipy.stats import binomtest

from serve.experiments.sequential import (
    MIN_UNITS,
    combine_errors,
    find_p,
    find_share_p,
    widen_smaller,
)
from serve.experiments.srm import ALARM, CONCENTRATION
from tests.bench.power_picture import Curve, draw_power

Floats = NDArray[np.float64]
ALPHA = 0.05
NUM_LOOKS = 1_000
CHUNK = 200
"""Replications at once: what fits into memory."""


@dataclass(frozen=True)
class Split:
    """Units that each arm has at each look, (L,)."""

    control: Floats
    challenger: Floats


def even(num_units: int, num_looks: int = NUM_LOOKS) -> Split:
    """So many on each side at the end."""
    at = np.ceil(np.linspace(num_units / num_looks, num_units, num_looks))
    return Split(at, at)


def lopsided(num_units: int, num_looks: int = NUM_LOOKS) -> Split:
    """One percent for the challenger, which has so many at the end."""
    challenger = np.ceil(np.linspace(num_units / num_looks, num_units, num_looks))
    return Split(99 * challenger, challenger)


Draw = Callable[[np.random.Generator, tuple[int, int]], Floats]


def bell(dice: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return dice.normal(0.0, 1.0, shape)


def skewed(dice: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """As latencies are: the mean is 1, its standard deviation 1.31."""
    return dice.lognormal(-0.5, 1.0, shape)


def cumulate(values: Floats, at: Floats) -> Floats:
    """Sums of the first so many, (R, N) to (R, L)."""
    index = at.astype(int) - 1
    return np.asarray(np.cumsum(values, axis=1)[:, index])


@dataclass(frozen=True)
class Moments:
    """A weighted mean and the variance of it, as `analysis` has them, at every look."""

    mean: Floats
    variance: Floats
    num_effective: Floats


def moments(values: Floats, weights: Floats, at: Floats) -> Moments:
    total, squares = cumulate(weights, at), cumulate(weights**2, at)
    mean = cumulate(weights * values, at) / total
    spread = (
        cumulate(weights**2 * values**2, at)
        - 2 * mean * cumulate(weights**2 * values, at)
        + mean**2 * squares
    )
    effective = total**2 / squares
    bessel = effective / np.maximum(effective - 1, 1e-9)
    return Moments(mean, np.maximum(spread, 1e-12) / total**2 * bessel, effective)


def mean_p(control: Moments, challenger: Moments, is_relative: bool) -> Floats:
    """What `analysis.compare` says about a mean, at every look."""
    scale = (control.mean, challenger.mean) if is_relative else (1.0, 1.0)
    effect = challenger.mean - control.mean
    if is_relative:
        effect = np.log(challenger.mean / control.mean)
    arms = (control, challenger)
    counts = np.stack([arm.num_effective for arm in arms])
    own = np.stack([arm.variance / of**2 for arm, of in zip(arms, scale, strict=True)])
    variance, units, freedom = combine_errors(widen_smaller(own, counts), counts)
    p = find_p(effect / np.sqrt(variance), units, freedom)
    least = np.minimum(control.num_effective, challenger.num_effective)
    return np.where(least < MIN_UNITS, 1.0, p)


def simulate_means(
    draw: Draw,
    split: Split,
    *,
    shift: float = 0.0,
    is_relative: bool = False,
    is_clustered: bool = False,
) -> Callable[[np.random.Generator, int], Floats]:
    def run(dice: np.random.Generator, replications: int) -> Floats:
        found = []
        for at, extra in ((split.control, 0.0), (split.challenger, shift)):
            shape = (replications, int(at[-1]))
            values = draw(dice, shape)
            values = values * (1 + extra) if is_relative else values + extra
            weights = np.ones(shape)
            if is_clustered:
                # Requests by unit; those of one unit are alike, so its mean is as uncertain.
                weights = np.minimum(dice.geometric(0.4, shape), 10).astype(np.float64)
            found.append(moments(values, weights, at))
        return mean_p(found[0], found[1], is_relative)

    return run


def simulate_shares(
    rate: float, split: Split, *, extra: float = 0.0
) -> Callable[[np.random.Generator, int], Floats]:
    def run(dice: np.random.Generator, replications: int) -> Floats:
        hits = [
            cumulate((dice.random((replications, int(at[-1]))) < p).astype(np.float64), at)
            for at, p in ((split.control, rate), (split.challenger, rate + extra))
        ]
        return find_share_p(hits[0], split.control[None], hits[1], split.challenger[None])

    return run


def simulate_pairs(
    num_units: int, *, shift: float = 0.0
) -> Callable[[np.random.Generator, int], Floats]:
    at = even(num_units).control

    def run(dice: np.random.Generator, replications: int) -> Floats:
        shape = (replications, num_units)
        found = moments(dice.laplace(shift, 1.0, shape), np.ones(shape), at)
        t = found.mean / np.sqrt(found.variance)
        p = find_p(t, found.num_effective, found.num_effective - 1)
        return np.where(found.num_effective < MIN_UNITS, 1.0, p)

    return run


def simulate_paired_shares(num_units: int) -> Callable[[np.random.Generator, int], Floats]:
    """Two in a hundred units differ, either way."""
    at = even(num_units).control

    def run(dice: np.random.Generator, replications: int) -> Floats:
        draws = dice.random((replications, num_units))
        worse = cumulate((draws < 0.01).astype(np.float64), at)
        better = cumulate((draws > 0.99).astype(np.float64), at)
        log_e = betaln(0.5 + worse, 0.5 + better) - betaln(0.5, 0.5)
        log_e = log_e + (worse + better) * np.log(2)
        return np.asarray(np.exp(-np.maximum(log_e, 0.0)))

    return run


def simulate_split(
    share: float, num_units: int, *, lost: float = 0.0
) -> Callable[[np.random.Generator, int], Floats]:
    """1 / e of `srm`, against its own level."""
    at = even(num_units).control

    def run(dice: np.random.Generator, replications: int) -> Floats:
        true = share * (1 - lost) / (share * (1 - lost) + 1 - share)
        counts = cumulate((dice.random((replications, num_units)) < true).astype(np.float64), at)
        log_e = gammaln(CONCENTRATION) - gammaln(CONCENTRATION + at)
        for count, part in ((counts, share), (at - counts, 1 - share)):
            prior = CONCENTRATION * part
            log_e = log_e + gammaln(prior + count) - gammaln(prior) - count * np.log(part)
        return np.asarray(np.minimum(1.0, 2 * np.exp(-log_e)))  # the first revision's half

    return run


Simulation = Callable[[np.random.Generator, int], Floats]


def first_alarms(
    run: Simulation, replications: int, *, alpha: float = ALPHA, seed: int = 5
) -> NDArray[np.int64]:
    """The look of the first claim of each replication; the number of looks where there is none."""
    dice = np.random.default_rng(seed)
    found = []
    for start in range(0, replications, CHUNK):
        p = run(dice, min(CHUNK, replications - start))
        is_claim = p <= alpha
        found.append(np.where(is_claim.any(axis=1), is_claim.argmax(axis=1), p.shape[1]))
    return np.concatenate(found)


@dataclass(frozen=True)
class NoDifference:
    """One simulation of arms that are alike."""

    name: str
    run: Simulation
    alpha: float = ALPHA


def alike(num_units: int) -> Iterator[NoDifference]:
    """Everything that is claimed, where nothing is there to be claimed."""
    both, few = even(num_units), lopsided(max(50, num_units // 10))
    yield NoDifference("mean, bell-shaped", simulate_means(bell, both))
    yield NoDifference(
        "mean, skewed, several requests a unit",
        simulate_means(skewed, both, is_clustered=True),
    )
    yield NoDifference(
        "relative mean, skewed, 1 % against 99 %",
        simulate_means(skewed, few, is_relative=True),
    )
    yield NoDifference("share of 1 %", simulate_shares(0.01, both))
    yield NoDifference("share of 30 %", simulate_shares(0.30, both))
    yield NoDifference("share of 1 %, 1 % against 99 %", simulate_shares(0.01, few))
    yield NoDifference("pairs, mean", simulate_pairs(num_units))
    yield NoDifference("pairs, share", simulate_paired_shares(num_units))
    yield NoDifference("split 50 / 50", simulate_split(0.5, 2 * num_units), ALARM)
    yield NoDifference("split 1 / 99", simulate_split(0.01, 2 * num_units), ALARM)


def table_of_false_alarms(replications: int, num_units: int) -> Iterator[str]:
    yield f"| nothing there, {NUM_LOOKS:,} looks | level | false alarms | of | p (level exceeded) |"
    yield "|---|---|---|---|---|"
    for one in alike(num_units):
        looks = first_alarms(one.run, replications, alpha=one.alpha)
        false = int((looks < NUM_LOOKS).sum())
        p = binomtest(false, replications, one.alpha, alternative="greater").pvalue
        numbers = f"{one.alpha:g} | {false / replications:.4f} | {replications} | {p:.2f}"
        yield f"| {one.name} | {numbers} |"


@dataclass(frozen=True)
class Power:
    """One effect: what one look needs, and what looking all the time does."""

    effect: float
    fixed_units: int
    """On each side, for 80 % at one look with the test that has the usual formula."""
    detected_by_then: float
    detected: float
    """With three times as many."""
    median_units: float
    fixed_curve: Floats
    """Chance of the one look, had it been planned at each of these units."""
    curve: Floats
    """Chance of a claim until then."""
    units: Floats


def find_power(
    effect: float, deviation: float, simulate: Callable[[Split, float], Simulation], n: int
) -> Power:
    fixed = int(np.ceil(2 * ((ndtri(1 - ALPHA / 2) + ndtri(0.8)) * deviation / effect) ** 2))
    split = even(3 * fixed, 300)
    looks = first_alarms(simulate(split, effect), n)
    ends = np.append(split.control, np.inf)[looks]
    curve = np.array([(ends <= units).mean() for units in split.control])
    z = effect / (deviation * np.sqrt(2 / split.control))
    return Power(
        effect=effect,
        fixed_units=fixed,
        detected_by_then=float((ends <= fixed).mean()),
        detected=float(np.isfinite(ends).mean()),
        median_units=float(np.median(ends)),
        fixed_curve=np.asarray(ndtr(z - ndtri(1 - ALPHA / 2))),
        curve=curve,
        units=split.control,
    )


def powers(replications: int) -> Iterator[tuple[str, list[Power]]]:
    yield (
        "mean, in standard deviations",
        [
            find_power(e, 1.0, lambda s, x: simulate_means(bell, s, shift=x), replications)
            for e in (0.1, 0.2, 0.4, 0.8)
        ],
    )
    rate = 0.01
    found = []
    for extra in (0.01, 0.02, 0.04, 0.08):
        rates = (rate, rate + extra)
        deviation = float(np.sqrt(np.mean([p * (1 - p) for p in rates])))
        found.append(
            find_power(
                extra, deviation, lambda s, x: simulate_shares(rate, s, extra=x), replications
            )
        )
    yield "share, points above 1 %", found


def table_of_power(found: Sequence[tuple[str, list[Power]]]) -> Iterator[str]:
    yield (
        "| there is a difference | effect | one look needs (80 %) | found by then "
        "| median until found | found within 3 times |"
    )
    yield "|---|---|---|---|---|---|"
    for name, rows in found:
        for row in rows:
            yield (
                f"| {name} | {row.effect:g} | {row.fixed_units} | {row.detected_by_then:.0%} | "
                f"{row.median_units:.0f} | {row.detected:.0%} |"
            )


def curves(found: Sequence[tuple[str, list[Power]]]) -> Iterator[Curve]:
    """One for each kind: at its second effect."""
    for name, rows in found:
        row = rows[1]
        label = f"{name}: {row.effect:g}"
        yield Curve(label, row.units / row.fixed_units, row.curve, row.fixed_curve)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replications", type=int, default=2_000)
    parser.add_argument("--units", type=int, default=5_000, help="on each side, at the end")
    parser.add_argument("--output", type=Path, help="write the tables as Markdown")
    parser.add_argument("--svg", type=Path, help="draw the power curves")
    said = parser.parse_args()
    lines = []
    for line in table_of_false_alarms(said.replications, said.units):
        print(line, flush=True)
        lines.append(line)
    found = list(powers(said.replications // 2))
    for line in ("", *table_of_power(found)):
        print(line, flush=True)
        lines.append(line)
    if said.svg:
        said.svg.write_text(draw_power(list(curves(found))), encoding="utf-8")
    if said.output:
        said.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
