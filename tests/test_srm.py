"""Units that went missing from one arm are found, and honest splits are left alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from serve.experiments.allocation import allocate, reallocate
from serve.experiments.srm import ALARM, check_split, count_units
from tests.bench.sequential import NUM_LOOKS, first_alarms, simulate_split
from tests.exposures import expose

HALF = allocate({"control": 5_000, "challenger": 5_000})


def test_a_tenth_of_the_challengers_units_lost_is_a_mismatch() -> None:
    check = check_split({1: {"control": 4_000, "challenger": 3_600}}, {1: HALF})
    assert check.is_mismatch
    assert check.e_value > 1_000
    assert "challenger 3,600 units of 3,800" in check.words()
    assert "is not" in check.words()


def test_chi_square_is_the_usual_one_over_the_exact_split() -> None:
    counts = {"control": 880, "challenger": 120}
    check = check_split({3: counts}, {3: allocate({"control": 9_000, "challenger": 1_000})})
    usual = chisquare([880, 120], [900, 100])
    assert (check.chi2, check.p_value) == pytest.approx((usual.statistic, usual.pvalue))
    assert check.expected == pytest.approx({"control": 900, "challenger": 100})
    assert not check.is_mismatch


@given(st.integers(0, 2**32 - 1))
def test_one_percent_of_honest_units_is_no_mismatch(seed: int) -> None:
    hits = int(np.random.default_rng(seed).binomial(40_000, 0.01))
    one = allocate({"control": 9_900, "challenger": 100})
    assert not check_split(
        {1: {"control": 40_000 - hits, "challenger": hits}}, {1: one}
    ).is_mismatch


def test_simulation_is_of_this_check() -> None:
    run = simulate_split(0.5, 1_000, lost=0.3)
    p = float(run(np.random.default_rng(1), 1)[0, -1])
    hits = int((np.random.default_rng(1).random((1, 1_000)) < 0.35 / 0.85).sum())
    check = check_split(
        {1: {"a": hits, "b": 1_000 - hits}}, {1: allocate({"a": 5_000, "b": 5_000})}
    )
    assert check.e_value == pytest.approx(1 / p)


@pytest.mark.parametrize(("lost", "units"), [(0.1, 6_000), (0.3, 700)])
def test_most_losses_are_found_within_so_many_units(lost: float, units: int) -> None:
    looks = first_alarms(simulate_split(0.5, units, lost=lost), 400, alpha=ALARM)
    assert (looks < NUM_LOOKS).mean() > 0.55


def test_a_thousand_looks_at_an_honest_split_stay_below_the_alarm() -> None:
    looks = first_alarms(simulate_split(0.5, 10_000), 1_000, alpha=ALARM)
    assert (looks < NUM_LOOKS).mean() <= 0.006


def test_every_revision_is_judged_by_its_own_split() -> None:
    small = allocate({"control": 9_900, "challenger": 100})
    allocations = {1: small, 2: reallocate(small, {"control": 5_000, "challenger": 5_000})}
    fair = {1: {"control": 9_905, "challenger": 95}, 2: {"control": 5_020, "challenger": 4_980}}
    assert not check_split(fair, allocations).is_mismatch
    swapped = {1: fair[2], 2: fair[1]}
    assert check_split(swapped, allocations).is_mismatch


def test_an_arm_without_any_share_may_have_no_unit() -> None:
    none = allocate({"control": 10_000, "challenger": 0})
    assert check_split({1: {"control": 500, "challenger": 1}}, {1: none}).is_mismatch
    alone = check_split({1: {"control": 500}}, {1: none})
    assert (alone.is_mismatch, alone.chi2, alone.p_value) == (False, 0, 1)


def test_nothing_seen_is_no_mismatch() -> None:
    check = check_split({}, {1: HALF})
    assert (check.is_mismatch, check.e_value, check.p_value) == (False, 0, 1)


def test_a_unit_that_asks_a_thousand_times_is_one_unit() -> None:
    seen = [expose(arm="control", unit="robot") for _ in range(1_000)]
    seen += [expose(arm="challenger", unit=f"u{at}") for at in range(3)]
    seen += [expose(arm="challenger", unit="shadow", is_shadow=True)]
    seen += [expose(arm="control", unit="robot", revision=2)]
    assert count_units(seen) == {1: {"control": 1, "challenger": 3}, 2: {"control": 1}}
