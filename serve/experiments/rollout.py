"""What a rollout does next: a pure function of its plan, of where it stands and of what was seen.

Knows no database and no clock; `controller.py` gathers what it asks for and does what it says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from serve.designs import BUCKETS, MetricName, RolloutPlan, Stage
from serve.store.rollouts import BEFORE_FIRST

Action = Literal["start", "promote", "hold", "roll_back", "finish", "freeze"]

ALWAYS_MEASURED: frozenset[MetricName] = frozenset({"errors", "latency_ms"})
"""Whoever is exposed has them: without them nothing is proven."""
NEVER_COMPARED: frozenset[MetricName] = frozenset({"outside"})
"""Judged by the first pixel, not by a mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a rollout is."""

    stage: int
    """Index into the plan's stages, or `BEFORE_FIRST`."""
    stage_started_at: datetime
    approved_stage: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one guardrail's comparison of the challenger with the control says."""

    metric: MetricName
    has_data: bool
    is_harm: bool
    """Proven to be worse by more than the margin allows."""
    is_safe: bool
    """Proven to be within the margin."""
    is_suspect: bool = False
    """Looks worse by more than the margin allows, and it is not proven."""
    is_unseen: bool = False
    """The control's pictures have it, and none of the challenger's."""
    words: str = ""
    """The numbers, for a person."""
    numbers: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """Whether the challenger's deployment can be asked."""

    is_ready: bool
    reason: str = ""
    """Why not: what its replicas say, golden samples that drift included."""


READY = Readiness(is_ready=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known of the challenger since the stage began."""

    num_exposures: int = 0
    """Of the challenger; shadow pairs in a shadow stage."""
    num_outside: int = 0
    """Of its pictures that differ outside the region by more than the guardrail allows."""
    findings: Sequence[Finding] = ()
    split: str = ""
    """Why the split of units is not the one that was asked for; empty while it is."""
    split_numbers: Mapping[str, Any] = field(default_factory=dict)
    readiness: Readiness = READY

    def numbers(self) -> dict[str, Any]:
        """For the log: all that a decision was made from."""
        return {
            "exposures": self.num_exposures,
            "outside": self.num_outside,
            "split": dict(self.split_numbers),
            "metrics": {one.metric: dict(one.numbers) for one in self.findings if one.has_data},
        }


NOTHING = Evidence()


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to do, why, and from which numbers."""

    action: Action
    cause: str
    """The reason without its numbers: two holds of one cause are one line of the log."""
    reason: str
    stage: int
    to_stage: int | None = None
    is_dry_run: bool = False
    """Nothing moves: this is what would be done."""
    numbers: Mapping[str, Any] = field(default_factory=dict)


def spend_alpha(plan: RolloutPlan) -> float:
    """The chance of a false alarm that one comparison in one stage may have (Bonferroni): all
    together stay below the plan's."""
    return plan.alpha / (max(1, len(plan.guardrails)) * len(plan.stages))


def decide(plan: RolloutPlan, standing: Standing, evidence: Evidence, now: datetime) -> Decision:
    """The one next thing; `hold` where there is nothing to do but wait."""
    action, cause, reason = _judge(plan, standing, evidence, now)
    moves = {"start": 0, "promote": standing.stage + 1}
    return Decision(
        action=action,
        cause=cause,
        reason=reason,
        stage=standing.stage,
        to_stage=moves.get(action),
        is_dry_run=plan.is_dry_run and action in ("promote", "roll_back", "finish"),
        numbers=evidence.numbers(),
    )


Judgement = tuple[Action, str, str]


def _judge(plan: RolloutPlan, standing: Standing, evidence: Evidence, now: datetime) -> Judgement:
    if standing.stage == BEFORE_FIRST:
        if not evidence.readiness.is_ready:
            words = evidence.readiness.reason or "no replica runs"
            return "hold", f"not_ready: {words}", f"{plan.version} is not ready: {words}"
        return "start", "ready", f"{plan.version} is ready: {tell_stage(plan.stages[0])}"
    return (
        _find_danger(plan, evidence)
        or _find_missing(plan.stages[standing.stage], standing, evidence, now)
        or _go_on(plan, standing.stage)
    )


def _find_danger(plan: RolloutPlan, evidence: Evidence) -> Judgement | None:
    if evidence.split:
        return "freeze", "split", f"the split of units cannot be trusted: {evidence.split}"
    if evidence.num_outside:
        pictures = "picture" if evidence.num_outside == 1 else "pictures"
        reason = f"{plan.version} changed {evidence.num_outside} {pictures} outside the region"
        return "roll_back", "outside", reason
    harmful = [one for one in evidence.findings if one.has_data and one.is_harm]
    if harmful:
        names = ",".join(one.metric for one in harmful)
        words = "; ".join(one.words or one.metric for one in harmful)
        return "roll_back", f"harm: {names}", f"{plan.version} is worse: {words}"
    return None


def _find_missing(
    stage: Stage, standing: Standing, evidence: Evidence, now: datetime
) -> Judgement | None:
    """Why the stage cannot be left yet."""
    if evidence.num_exposures < stage.min_exposures:
        what = "shadow pairs" if stage.share == 0 else "exposures"
        reason = f"waits for {stage.min_exposures} {what} of the challenger"
        return "hold", "exposures", reason
    if (now - standing.stage_started_at).total_seconds() < stage.min_s:
        return "hold", "time", f"waits until the stage has lasted {stage.min_s:g} s"
    unseen = ", ".join(one.metric for one in evidence.findings if one.is_unseen)
    if unseen:
        reason = f"waits for a picture of the challenger that can be measured: {unseen}"
        return "hold", f"unseen: {unseen}", reason
    suspects = ", ".join(one.metric for one in evidence.findings if one.has_data and one.is_suspect)
    if suspects:
        # With so few seen, a version that fails now and then is not proven to be worse yet.
        reason = f"waits for more to be seen: it looks worse by more than its margin in {suspects}"
        return "hold", f"suspect: {suspects}", reason
    unproven = [one.metric for one in evidence.findings if _is_unproven(one)]
    if stage.needs == "proof" and unproven:
        names = ", ".join(unproven)
        reason = f"waits for proof that nothing is worse by more than its margin: {names}"
        return "hold", f"proof: {names}", reason
    if stage.approval and standing.approved_stage != standing.stage:
        return "hold", "approval", "waits for approval"
    return None


def _is_unproven(finding: Finding) -> bool:
    if not finding.has_data:
        return finding.metric in ALWAYS_MEASURED
    return not finding.is_safe


def _go_on(plan: RolloutPlan, stage: int) -> Judgement:
    if stage == len(plan.stages) - 1:
        return "finish", "passed", f"every stage is passed: {plan.version} becomes the default"
    here, there = plan.stages[stage], plan.stages[stage + 1]
    reason = f"nothing is worse: from {tell_stage(here)} to {tell_stage(there)}"
    return "promote", "passed", reason


def tell_stage(stage: Stage) -> str:
    return "shadow" if stage.share == 0 else f"{stage.share * 100 / BUCKETS:g} %"
