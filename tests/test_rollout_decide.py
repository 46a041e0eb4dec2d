"""What a rollout does next follows from its plan, its place and the evidence, in one order."""

from datetime import timedelta
from typing import Any

import pytest

from serve.designs import Guardrail, RolloutPlan, Stage
from serve.experiments.rollout import (
    Evidence,
    Finding,
    Readiness,
    Standing,
    decide,
    spend_alpha,
)
from serve.store.rollouts import BEFORE_FIRST
from tests.stores import START

STAGES = (
    Stage(share=0, shadow=1_000, min_exposures=50),
    Stage(share=100, min_exposures=100, min_s=60, needs="proof"),
    Stage(share=5_000, min_exposures=10, approval=True),
    Stage(share=10_000, min_exposures=0),
)
PLAN = RolloutPlan(expert="eye", version="eye@2", against="eye@1", stages=STAGES)
DRY = PLAN.model_copy(update={"is_dry_run": True})
SAFE = Finding(metric="errors", has_data=True, is_harm=False, is_safe=True)
UNSURE = Finding(metric="errors", has_data=True, is_harm=False, is_safe=False)
HARM = Finding(
    metric="colour", has_data=True, is_harm=True, is_safe=False,
    words="colour 6.1 against 0.4", numbers={"effect": 5.7},
)  # fmt: skip
SUSPECT = Finding(metric="seam", has_data=True, is_harm=False, is_safe=False, is_suspect=True)
UNSEEN = Finding(metric="seam", has_data=False, is_harm=False, is_safe=False, is_unseen=True)
NO_LATENCY = Finding(metric="latency_ms", has_data=False, is_harm=False, is_safe=False)
NO_FACE = Finding(metric="face", has_data=False, is_harm=True, is_safe=False)
NOT_READY = Readiness(is_ready=False, reason="golden sample 1: mean diff 9.00 > 1")


def enough(*findings: Finding, **facts: Any) -> Evidence:
    return Evidence(**{"num_exposures": 100, "findings": findings, **facts})


def few(*findings: Finding, **facts: Any) -> Evidence:
    return enough(*findings, **{"num_exposures": 9, **facts})


@pytest.mark.parametrize(
    ("stage", "elapsed_s", "evidence", "action", "words"),
    [
        (BEFORE_FIRST, 0, enough(readiness=NOT_READY), "hold", "eye@2 is not ready: golden"),
        (BEFORE_FIRST, 0, enough(), "start", "shadow"),
        (0, 0, enough(num_exposures=49), "hold", "waits for 50 shadow pairs"),
        (0, 0, enough(num_exposures=50), "promote", "from shadow to 1 %"),
        # Danger is not waited with, and the split comes before all: nothing else is to be trusted.
        (0, 0, few(HARM, split="p = 1e-9"), "freeze", "p = 1e-9"),
        (0, 0, few(HARM, num_outside=1), "roll_back", "1 picture outside"),
        (1, 0, few(SAFE, HARM), "roll_back", "eye@2 is worse: colour 6.1 against 0.4"),
        (1, 99, enough(SAFE, NO_FACE), "promote", "from 1 % to 50 %"),
        (1, 59, enough(SAFE), "hold", "60 s"),
        (1, 60, enough(SAFE), "promote", "from 1 % to 50 %"),
        (1, 60, few(SAFE), "hold", "waits for 100 exposures"),
        (1, 60, enough(SAFE, UNSURE), "hold", "proof that nothing is worse by more"),
        (1, 60, enough(SAFE, NO_LATENCY), "hold", "latency_ms"),
        # What is unsure is enough where no proof is asked for.
        (0, 0, enough(UNSURE, NO_LATENCY), "promote", "1 %"),
        # A version that errs now and then is not let up because too little was seen to prove it.
        (0, 0, enough(SAFE, SUSPECT), "hold", "looks worse by more than its margin in seam"),
        (
            2,
            0,
            enough(SAFE, UNSEEN),
            "hold",
            "picture of the challenger that can be measured: seam",
        ),
        (2, 0, enough(SAFE), "hold", "waits for approval"),
        (3, 0, Evidence(), "finish", "eye@2 becomes the default"),
        (3, 0, Evidence(num_outside=2), "roll_back", "2 pictures"),
        # A deployment that goes away later shows in its errors.
        (0, 0, enough(readiness=NOT_READY), "promote", "1 %"),
    ],
)
def test_the_next_thing_follows(
    stage: int, elapsed_s: float, evidence: Evidence, action: str, words: str
) -> None:
    now = START + timedelta(seconds=elapsed_s)
    decision = decide(PLAN, Standing(stage=stage, stage_started_at=START), evidence, now)
    assert decision.action == action
    assert words in decision.reason
    assert decision.stage == stage
    assert decision.to_stage == (stage + 1 if action in ("start", "promote") else None)
    assert not decision.is_dry_run


def test_an_approval_counts_for_the_stage_it_was_given_for() -> None:
    told = Standing(stage=2, stage_started_at=START, approved_stage=1)
    assert decide(PLAN, told, enough(SAFE), START).cause == "approval"
    told = Standing(stage=2, stage_started_at=START, approved_stage=2)
    assert decide(PLAN, told, enough(SAFE), START).action == "promote"


def test_a_decision_carries_the_numbers_that_made_it() -> None:
    decision = decide(PLAN, Standing(stage=1, stage_started_at=START), few(HARM), START)
    assert decision.numbers["exposures"] == 9
    assert decision.numbers["metrics"] == {"colour": {"effect": 5.7}}


def test_a_dry_run_begins_and_then_only_says_what_it_would_do() -> None:
    def act(stage: int, evidence: Evidence) -> tuple[str, bool]:
        decision = decide(DRY, Standing(stage=stage, stage_started_at=START), evidence, START)
        return decision.action, decision.is_dry_run

    assert act(BEFORE_FIRST, enough()) == ("start", False)
    assert act(0, enough()) == ("promote", True)
    assert act(0, few(HARM)) == ("roll_back", True)
    assert act(3, enough()) == ("finish", True)
    assert act(0, few()) == ("hold", False)


def test_all_comparisons_together_spend_the_plans_alpha() -> None:
    plan = RolloutPlan(
        expert="eye", version="eye@2", stages=STAGES, alpha=0.08,
        guardrails=(Guardrail(metric="errors"), Guardrail(metric="colour")),
    )  # fmt: skip
    assert spend_alpha(plan) == pytest.approx(0.08 / (2 * 4))
    without = plan.model_copy(update={"guardrails": ()})
    assert spend_alpha(without) == pytest.approx(0.08 / 4)
