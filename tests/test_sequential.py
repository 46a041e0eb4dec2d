"""Looking all the time finds no more than alpha of what is not there, and finds what is."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from serve.experiments.sequential import (
    NOTHING_KNOWN,
    bound_mean,
    bound_paired_shares,
    bound_share,
    bound_share_difference,
    find_p,
    find_share_p,
    find_t,
    log_marginal,
)
from tests.bench.sequential import (
    NUM_LOOKS,
    NoDifference,
    alike,
    bell,
    even,
    find_power,
    first_alarms,
    simulate_means,
    simulate_split,
)

REPLICATIONS = 200


@pytest.mark.parametrize("one", list(alike(800)), ids=lambda one: one.name)
def test_a_thousand_looks_raise_no_more_false_alarms_than_alpha(one: NoDifference) -> None:
    looks = first_alarms(one.run, REPLICATIONS, alpha=one.alpha)
    false = int((looks < NUM_LOOKS).sum())
    assert binomtest(false, REPLICATIONS, one.alpha, alternative="greater").pvalue > 0.01


def test_a_test_for_one_look_would_raise_several_times_as_many() -> None:
    """The simulation can fail: without the price of looking it does."""

    def peek(dice: np.random.Generator, replications: int) -> np.ndarray:
        units = np.arange(1, 1_001)
        z = np.cumsum(dice.normal(size=(replications, 1_000)), axis=1) / np.sqrt(units)
        return np.where((np.abs(z) > 1.96) & (units >= 20), 0.0, 1.0)

    assert (first_alarms(peek, REPLICATIONS) < NUM_LOOKS).mean() > 0.2


def test_differences_are_found_with_about_the_units_of_one_planned_look() -> None:
    power = find_power(0.2, 1.0, lambda split, x: simulate_means(bell, split, shift=x), 200)
    assert power.fixed_units == 393
    assert power.detected > 0.9
    assert power.median_units < 1.3 * power.fixed_units


def test_a_tenth_of_one_arm_lost_is_found_within_some_thousand_units() -> None:
    looks = first_alarms(simulate_split(0.5, 12_000, lost=0.1), 100, alpha=0.001)
    assert (looks < NUM_LOOKS).mean() > 0.9
    assert np.median((looks + 1) * 12) < 8_000


def test_share_of_errors_is_caught_with_few_units_beside_many() -> None:
    none, some = (0, 5_000), (8, 160)
    assert bound_share_difference(none, some, 0.05).floor > 0.01
    assert bound_share_difference(none, (3, 60), 0.05).floor > 0
    assert bound_share_difference(none, (1, 60), 0.05).floor < 0.01
    assert bound_share_difference(none, (0, 500), 0.05).ceiling < 0.02


def test_bounds_of_shares_agree_with_their_p_value_and_hold_the_estimate() -> None:
    for control, challenger in (
        ((30, 1000), (75, 1000)),
        ((2, 400), (29, 300)),
        ((40, 40), (1, 9)),
    ):
        bounds = bound_share_difference(control, challenger, 0.05)
        effect = challenger[0] / challenger[1] - control[0] / control[1]
        assert -1 <= bounds.low <= effect <= bounds.high <= 1
        assert bounds.p_value == pytest.approx(float(find_share_p(*control, *challenger)))
        # No difference lies at the edge of what is known at the level of the p-value.
        at_p = bound_share_difference(control, challenger, bounds.p_value)
        assert min(abs(at_p.low), abs(at_p.high)) < 1e-4
        mirrored = bound_share_difference(challenger, control, 0.05)
        assert (mirrored.low, mirrored.high) == pytest.approx((-bounds.high, -bounds.low))


def test_mixture_is_a_probability_of_every_sequence() -> None:
    """All the sequences of five units together have one chance."""
    sequences = [math.comb(5, hits) * math.exp(float(log_marginal(hits, 5))) for hits in range(6)]
    assert sum(sequences) == pytest.approx(1)


def test_a_rate_is_bounded_on_both_sides() -> None:
    assert bound_share(0, 0, 0.05) == (0.0, 1.0)
    low, high = bound_share(10, 200, 0.05)
    assert 0.01 < low < 0.05 < high < 0.12
    assert bound_share(0, 1_000, 0.05)[0] == 0
    assert bound_share(0, 1_000, 0.05)[1] < 0.01


def test_pairs_that_do_not_differ_say_so_and_those_that_do_are_found() -> None:
    assert bound_paired_shares(0, 0, 1_000, 0.05).high < 0.02
    assert bound_paired_shares(20, 0, 200, 0.05).floor > 0.01
    assert bound_paired_shares(20, 0, 200, 0.05).p_value < 0.001
    assert bound_paired_shares(9, 9, 200, 0.05).p_value == 1
    # Five in a hundred worse is more than one in a hundred, whatever one that is better means.
    assert bound_paired_shares(25, 1, 500, 0.001).floor > 0.003
    assert bound_paired_shares(1, 25, 500, 0.001).ceiling < -0.003
    assert bound_paired_shares(0, 0, 0, 0.05) == NOTHING_KNOWN


def test_bounds_of_a_mean_agree_with_its_p_value() -> None:
    bounds = bound_mean(0.5, 0.01, 80.0, 150.0, 0.05)
    assert bounds.low < bounds.floor < 0.5 < bounds.ceiling < bounds.high
    at_p = bound_mean(0.5, 0.01, 80.0, 150.0, bounds.p_value)
    assert at_p.low == pytest.approx(0, abs=1e-6)
    assert bound_mean(0.0, 0.01, 80.0, 150.0, 0.05).p_value == 1


def test_few_units_and_few_degrees_of_freedom_widen() -> None:
    units = np.array([10.0, 75.0])
    assert np.all(find_t(units, 38.0, 0.05) > find_t(units, 1e6, 0.05))
    assert find_t(10.0, 1e6, 0.05) > find_t(75.0, 1e6, 0.05)
    assert 2.4 < float(find_t(75.0, 1e6, 0.05)) < 3.4
    assert float(find_p(1e9, 75.0, 1e6)) > 0


def test_looks_have_one_size() -> None:
    run = simulate_means(bell, even(100, 10))
    assert run(np.random.default_rng(0), 3).shape == (3, 10)
