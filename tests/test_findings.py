"""What a rollout is decided by, from exposures as they come."""

import pytest

from serve.designs import RolloutPlan, Stage
from serve.experiments.allocation import allocate
from serve.experiments.findings import gather
from serve.experiments.rollout import Evidence, Standing, decide
from serve.store.exposures import Seen
from tests.bench.rollouts import WORLDS, roll_out
from tests.exposures import expose
from tests.stores import START

PLAN = RolloutPlan(expert="eye", version="eye@2", against="eye@1")
HALF, LAST = 4, 5
PICTURE = {"colour": 3.0, "pattern": 0.8, "seam": 2.0}


def units(arm: str, number: int, **metrics: float) -> list[Seen]:
    return [expose(arm=arm, unit=f"{arm}-{at}", metrics=metrics) for at in range(number)]


def found(stage: int, *seen: Seen) -> Evidence:
    share = PLAN.stages[stage].share
    ranges = allocate({"control": 10_000 - share, "challenger": share})
    return gather(PLAN, PLAN.stages[stage], 1, ranges, seen)


def cause(stage: int, evidence: Evidence) -> str:
    decision = decide(PLAN, Standing(stage=stage, stage_started_at=START), evidence, START)
    return f"{decision.action}: {decision.cause}"


def test_a_challenger_whose_pictures_nobody_could_measure_waits() -> None:
    control = units("control", 1_000, **PICTURE)
    unseen = found(HALF, *control, *units("challenger", 1_000))
    assert cause(HALF, unseen) == "hold: unseen: colour, pattern, seam"
    one = units("challenger", 999) + units("challenger", 1_000, **PICTURE)[-1:]
    assert cause(HALF, found(HALF, *control, *one)) == "promote: passed"


def test_what_nobody_measures_is_waited_for_by_nobody() -> None:
    evidence = found(HALF, *units("control", 1_000), *units("challenger", 1_000))
    assert cause(HALF, evidence) == "promote: passed"


def test_where_there_is_no_control_nothing_is_compared_and_no_proof_may_be_asked_for() -> None:
    assert cause(LAST, found(LAST, *units("challenger", 50))) == "finish: passed"
    last = Stage(share=10_000, min_exposures=0, needs="proof")
    with pytest.raises(ValueError, match="the last has no control"):
        RolloutPlan(expert="eye", version="eye@2", stages=(*PLAN.stages[:-1], last))


def test_one_unit_is_one_unit_however_often_it_asks() -> None:
    robot = expose(arm="challenger", unit="robot", metrics={"colour": 9.0})
    evidence = found(HALF, *units("control", 2, colour=3.0), *[robot] * 5_000)
    colour = next(one for one in evidence.findings if one.metric == "colour")
    assert (colour.is_harm, colour.is_suspect) == (False, True)


def test_a_rollout_that_paints_other_colours_ends_before_anybody_sees_it() -> None:
    world = next(world for world in WORLDS if world.name == "colour worse by 3")
    end = roll_out(world, 1)
    assert (end.action, end.cause, end.stage) == ("roll_back", "harm: colour", 0)
    assert end.num_challenged == 0
