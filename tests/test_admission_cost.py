import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.admission.cost import GUESS, CostModel, Line, VersionCost

UNITS = st.floats(0.0, 1e4)
SECONDS = st.floats(1e-4, 1e4)


def learn(cost: VersionCost, line: Line, units: list[float], noise: float = 0.0) -> None:
    dice = random.Random(1)
    for one in units:
        cost.observe(one, line.at(one) * dice.uniform(1 - noise, 1 + noise))


def test_an_unmeasured_version_costs_what_is_guessed_and_more_for_more_work() -> None:
    model = CostModel()
    assert model.predict("eye@1", 10.0) == GUESS.at(10.0)
    assert model.predict("eye@1", 20.0) > model.predict("eye@1", 10.0) > 0


def test_one_measurement_replaces_the_guess() -> None:
    model = CostModel()
    model.observe("eye@1", 10.0, 40.0)
    assert abs(model.predict("eye@1", 10.0) - 40.0) < 1e-6
    assert model.predict("top@1", 10.0) == GUESS.at(10.0), "another version learned from it"


@given(st.floats(0.01, 5.0), st.floats(0.001, 1.0))
def test_constant_and_slope_are_found_from_noisy_measurements(
    constant_s: float, s_per_unit: float
) -> None:
    truth, cost = Line(constant_s, s_per_unit), VersionCost()
    learn(cost, truth, [2.0, 9.0, 24.0, 60.0] * 15, noise=0.1)
    for units in (2.0, 9.0, 24.0, 60.0):
        assert abs(cost.line.at(units) / truth.at(units) - 1) < 0.35


@given(st.lists(st.tuples(UNITS, st.floats(-1.0, 1e4)), max_size=30))
def test_predictions_are_positive_and_never_fall_with_more_work(
    measured: list[tuple[float, float]],
) -> None:
    cost = VersionCost()
    for units, seconds in measured:
        cost.observe(units, seconds)
    predictions = [cost.line.at(units) for units in (0.0, 1.0, 10.0, 1e3)]
    assert predictions == sorted(predictions)
    assert 0 < predictions[0] < 1e6


@given(st.floats(1.0, 1e9))
def test_a_single_outlier_moves_a_settled_prediction_by_less_than_a_quarter(factor: float) -> None:
    cost = VersionCost()
    learn(cost, Line(0.1, 0.05), [9.0] * 30)
    before_s = cost.line.at(9.0)
    cost.observe(9.0, before_s * factor)
    assert before_s * 0.99 <= cost.line.at(9.0) < 1.25 * before_s


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_nothing_is_learned_from_a_time_that_is_none(seconds: float) -> None:
    cost = VersionCost()
    cost.observe(9.0, seconds)
    assert not cost.is_measured
    assert cost.line == GUESS


def test_a_version_that_became_ten_times_as_slow_is_believed_within_fifty_requests() -> None:
    cost = VersionCost()
    learn(cost, Line(0.1, 0.05), [9.0] * 30)
    learn(cost, Line(1.0, 0.5), [9.0] * 50)
    assert 0.9 < cost.line.at(9.0) / Line(1.0, 0.5).at(9.0) < 1.1


def test_a_first_measurement_that_was_a_cold_start_is_forgotten() -> None:
    cost = VersionCost()
    cost.observe(9.0, 100.0)
    learn(cost, Line(0.1, 0.05), [9.0] * 70)
    assert cost.line.at(9.0) < 2 * Line(0.1, 0.05).at(9.0)
