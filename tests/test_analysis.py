"""Arms are compared by their units: towards worse is above 0, and nothing is claimed too early."""

import math
from dataclasses import replace

import numpy as np
import pytest

from serve.designs import MetricName
from serve.experiments.analysis import (
    Comparison,
    compare,
    compare_pairs,
    find_pairs,
    tell_effect,
)
from serve.experiments.metrics import METRICS
from serve.store.exposures import Seen
from tests.bench.sequential import mean_p, moments
from tests.exposures import expose, failed

ALPHA = 0.05
SIDES = ("control", "challenger")
DICE = np.random.default_rng(11)


def measured(name: MetricName, arm: str, values: list[float], **named: object) -> list[Seen]:
    """One unit for each value."""
    return [
        expose(arm=arm, unit=f"{arm}-{at}", metrics={name: value}, **named)
        for at, value in enumerate(values)
    ]


def compared(seen: list[Seen], name: MetricName, alpha: float = ALPHA) -> Comparison:
    return compare(seen, METRICS[name], "control", "challenger", alpha)


def test_every_metric_is_read_and_none_is_missing() -> None:
    assert set(METRICS) == set(MetricName.__args__)  # type: ignore[attr-defined]
    whole = expose(
        verdicts=frozenset({"accepted"}),
        metrics={
            name: 0.5 for name in ("outside", "colour", "pattern", "embedding", "seam", "face")
        }
        | {"cost_usd": 2.0},
    )
    read = {name: metric.read(whole) for name, metric in METRICS.items()}
    assert read["cost_usd"] == 2.0
    assert (read["accepted"], read["rejected"], read["errors"], read["outside"]) == (1, 0, 0, 1)
    assert all(value is not None for value in read.values())


def test_colour_that_is_worse_by_six_is_harm_with_two_dozen_units() -> None:
    seen = measured("colour", "control", list(DICE.normal(3, 1, 300)))
    seen += measured("colour", "challenger", list(DICE.normal(9, 1, 24)))
    found = compared(seen, "colour")
    assert found.effect == pytest.approx(6, abs=0.8)
    assert found.harm()
    assert not found.harm(9.0)
    assert not found.safe()
    assert "300" in found.words()
    assert found.numbers()["challenger_units"] == 24


def test_fewer_than_twenty_units_claim_nothing_about_a_mean() -> None:
    seen = measured("colour", "control", [3.0] * 300) + measured("colour", "challenger", [9.0] * 19)
    found = compared(seen, "colour")
    assert found.has_data
    assert not found.is_known
    assert not found.harm()
    assert not found.safe()
    assert "too few" in found.words()
    assert "low" not in found.numbers()


def test_worse_is_above_zero_where_higher_is_better() -> None:
    seen = measured("pattern", "control", list(DICE.normal(0.9, 0.05, 200)))
    seen += measured("pattern", "challenger", list(DICE.normal(0.7, 0.05, 200)))
    found = compared(seen, "pattern")
    assert found.bounds.low <= found.bounds.floor <= found.effect <= found.bounds.ceiling
    assert found.effect == pytest.approx(0.2, abs=0.03)
    assert found.harm()


def test_equal_arms_are_safe_and_do_no_harm() -> None:
    seen = measured("colour", "control", list(DICE.normal(3, 1, 500)))
    seen += measured("colour", "challenger", list(DICE.normal(3, 1, 500)))
    found = compared(seen, "colour")
    assert found.safe()
    assert not found.harm(0.0)
    assert not found.safe(0.0)


def test_latency_is_compared_as_a_part_of_the_controls() -> None:
    slow = [
        expose(arm=arm, unit=f"{arm}{at}", latency_ms=float(DICE.lognormal(mean, 0.4)))
        for arm, mean in (("control", 7.0), ("challenger", 7.7))
        for at in range(400)
    ]
    found = compared(slow, "latency_ms")
    assert found.effect == pytest.approx(1.0, abs=0.2)
    assert found.harm()
    assert tell_effect(METRICS["latency_ms"], found.effect).endswith("%")
    assert compared([expose(arm=a, gpu_ms=0) for a in ("control", "challenger")], "gpu_ms").has_data


def test_unit_that_asks_a_thousand_times_is_not_the_evidence() -> None:
    seen = measured("colour", "control", list(DICE.normal(3, 1, 300)))
    seen += [expose(arm="challenger", unit="robot", metrics={"colour": 9.0}) for _ in range(1_000)]
    seen += measured("colour", "challenger", list(DICE.normal(3, 1, 100)))
    found = compared(seen, "colour")
    assert (found.challenger.num_units, found.challenger.num_exposures) == (101, 1_100)
    assert found.effect < 1
    assert not found.harm()
    errors = [failed(arm="challenger", unit="robot") for _ in range(1_000)]
    assert not compared([*seen, *errors], "errors").harm()


def test_errors_are_counted_by_units_and_callers_mistakes_are_not() -> None:
    seen = [expose(arm="control", unit=f"c{at}") for at in range(3_000)]
    seen += [expose(arm="challenger", unit=f"d{at}") for at in range(160)]
    assert not compared(seen, "errors").harm()
    mistakes = [expose(arm="challenger", unit=f"d{at}", code="invalid_image") for at in range(50)]
    assert compared([*seen, *mistakes], "errors").challenger.mean == 0
    broken = [failed(arm="challenger", unit=f"d{at}") for at in range(9)]
    found = compared([*seen, *broken], "errors")
    assert found.challenger.mean == pytest.approx(9 / 160)
    assert found.harm()


def test_verdicts_that_nobody_ever_gave_are_not_known_to_be_equal() -> None:
    seen = [
        expose(arm=arm, unit=f"{arm}{at}") for arm in ("control", "challenger") for at in range(900)
    ]
    assert not compared(seen, "returned").has_data
    assert not compared(seen, "returned").safe()
    told = expose(unit="told", verdicts=frozenset({"returned"}))
    assert compared([*seen, told], "returned").safe()


def test_one_pixel_outside_is_harm_at_once() -> None:
    seen = measured("outside", "control", [0.0] * 9) + measured("outside", "challenger", [0.0] * 9)
    assert compared(seen, "outside").safe()
    assert not compared(seen, "outside").harm()
    assert compared([*seen, *measured("outside", "challenger", [1.0])], "outside").harm(0.5)


def test_nothing_measured_is_neither_harm_nor_safe() -> None:
    for name in METRICS:
        found = compared([expose(arm="challenger", metrics={})], name)
        assert not found.has_data
        assert not found.safe()
        assert not found.harm()
        assert math.isnan(found.effect)
        assert found.words().endswith("on both sides")


def test_the_simulations_p_value_is_the_comparisons() -> None:
    values = [DICE.lognormal(0, 0.5, 60), DICE.lognormal(0.2, 0.5, 40)]
    seen = measured("colour", "control", list(values[0]))
    seen += measured("colour", "challenger", list(values[1]))
    sides = [moments(v[None], np.ones((1, len(v))), np.array([len(v)])) for v in values]
    p = float(mean_p(sides[0], sides[1], False)[0, 0])
    assert compared(seen, "colour").bounds.p_value == pytest.approx(p, rel=1e-6)


def pairs(shift: float, number: int, name: MetricName = "colour") -> list[Seen]:
    seen = []
    for at in range(number):
        base = float(DICE.normal(5, 3))
        live = expose(unit=f"u{at}", metrics={name: base})
        after = base + shift + float(DICE.normal(0, 0.1))
        seen += [
            live,
            expose(
                id=live.id, is_shadow=True, arm="challenger", unit=f"u{at}", metrics={name: after}
            ),
        ]
    return seen


def test_pairs_find_what_arms_would_not() -> None:
    seen = pairs(0.5, 40)
    found = compare_pairs(find_pairs(seen, *SIDES), METRICS["colour"], ALPHA)
    assert found.is_paired
    assert found.effect == pytest.approx(0.5, abs=0.1)
    assert found.harm(0.2)
    assert found.safe(1.0)
    assert not compared(seen, "colour").has_data  # a shadow is in no arm


def test_shadows_that_change_nothing_are_safe_and_those_that_fail_are_not() -> None:
    same = pairs(0.0, 30)
    same = [
        expose(
            id=one.id, is_shadow=one.is_shadow, arm=one.arm, unit=one.unit, metrics={"seam": 4.0}
        )
        for one in same
    ]
    found = compare_pairs(find_pairs(same, *SIDES), METRICS["seam"], ALPHA)
    assert (found.effect, found.safe(), found.harm(0.0)) == (0, True, False)
    live = [one for one in same if not one.is_shadow]
    broken = [
        failed(id=one.id, is_shadow=True, arm="challenger", unit=one.unit) for one in live[:15]
    ]
    fine = [one for one in same if one.is_shadow][15:]
    found = compare_pairs(find_pairs([*live, *broken, *fine], *SIDES), METRICS["errors"], ALPHA)
    assert found.effect == 0.5
    assert found.harm()


def test_a_shadow_is_paired_with_its_own_tenants_answer() -> None:
    live = [expose(tenant_id="acme", id="tr_x"), expose(tenant_id="other", id="tr_x", arm="third")]
    shadow = expose(tenant_id="other", id="tr_x", is_shadow=True, arm="challenger")
    assert find_pairs([*live, shadow], "control", "challenger") == []
    assert find_pairs([*live, shadow], "third", "challenger") == [(live[1], shadow)]


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_a_measure_that_is_no_number_hides_no_other(odd: float) -> None:
    seen = measured("colour", "control", [odd, *DICE.normal(3, 1, 100)])
    seen += measured("colour", "challenger", [odd, *DICE.normal(9, 1, 100)])
    found = compared(seen, "colour")
    assert found.harm()
    assert (found.control.num_units, found.challenger.num_units) == (100, 100)


def test_what_costs_something_is_worse_than_what_costs_nothing() -> None:
    seen = [expose(arm="control", unit=f"a{at}", metrics={"cost_usd": 0.0}) for at in range(30)]
    seen += [
        expose(arm="challenger", unit=f"b{at}", metrics={"cost_usd": 0.0009}) for at in range(30)
    ]
    found = compared(seen, "cost_usd")
    assert found.effect == math.inf
    assert not found.harm()
    assert "effect" not in found.numbers()
    assert not compared(seen[:30] + measured("colour", "challenger", [1.0]), "cost_usd").effect > 0


def test_a_share_that_only_grows_with_how_often_units_ask_is_not_suspect() -> None:
    seen = [expose(arm=arm, unit=f"{arm}{at}") for arm in SIDES for at in range(100)]
    seen += [expose(arm=arm, unit=f"{arm}{at}") for arm in SIDES for at in range(100)] * 9
    seen += [failed(arm="challenger", unit=f"challenger{at}") for at in range(3)]
    found = compared(seen, "errors")
    assert found.effect == pytest.approx(0.03)
    assert not found.suspect()
    assert found.suspect(0.002)
    often = [failed(arm="challenger", unit=f"challenger{at}") for at in range(3)] * 9
    assert compared(seen + often, "errors").suspect()
    liked = [replace(one, verdicts=frozenset({"accepted"})) for one in seen[:100]]
    assert compared(liked + seen[100:], "accepted").suspect()
