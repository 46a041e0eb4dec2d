"""Rollouts as administrators see them: where each one is, why, and every decision."""

from datetime import datetime
from typing import Any, Literal

from serve.designs import RolloutPlan
from serve.schemas.base import Wire, shown

RolloutStatus = Literal["running", "paused", "promoted", "rolled_back", "aborted"]
RolloutAction = Literal[
    "start", "promote", "hold", "roll_back", "finish", "freeze",
    "create", "pause", "resume", "abort", "approve",
]  # fmt: skip


class NewRollout(RolloutPlan):
    """A challenger that shall become the default, step by step, or go back by itself."""

    model_config = shown(
        expert="eye",
        version="eye@2",
        against="eye@1",
        stages=[
            {"share": 0, "shadow": 1_000, "min_exposures": 50},
            {"share": 100, "min_exposures": 100},
            {"share": 5_000, "min_exposures": 1_000, "needs": "proof", "approval": True},
            {"share": 10_000, "min_exposures": 0},
        ],
        guardrails=[{"metric": "errors", "margin": 0.01}, {"metric": "colour"}],
    )


class RolloutCard(Wire):
    """One rollout as it stands."""

    id: str
    expert: str
    version: str
    """The challenger."""
    against: str
    """What it is to replace, and what a rollback goes back to."""
    status: RolloutStatus
    reason: str
    """What it waits for, or how it ended."""
    dry_run: bool
    stage: int | None
    """Index into the plan's stages; null before the first has begun."""
    share: int
    """Hundredths of a percent of the units that get the challenger now."""
    waits_for_approval: bool
    """A person must approve before this stage is left."""
    numbers: dict[str, Any]
    """What was known when it was last looked at, a few seconds ago while it runs."""
    experiment: str
    """Its exposures and reports are this experiment's."""
    revision: int
    """Of the experiment's allocation: what was seen under it is what the stage is judged by."""
    num_decisions: int
    plan: RolloutPlan
    created_by: str
    created_at: datetime
    stage_started_at: datetime
    updated_at: datetime
    finished_at: datetime | None


class RolloutPage(Wire):
    """One page, newest first."""

    items: tuple[RolloutCard, ...]
    next: str | None
    """`after` of the next page."""


class DecisionCard(Wire):
    """One decision and what made it."""

    sequence: int
    """From 1, without gaps."""
    at: datetime
    actor: str
    """The id of a key, or the name of what acts alone."""
    action: RolloutAction
    stage: int | None
    to_stage: int | None
    dry_run: bool
    """Nothing moved: this is what would have been done."""
    reason: str
    numbers: dict[str, Any]


class DecisionPage(Wire):
    """One page, newest first."""

    items: tuple[DecisionCard, ...]
    next: str | None
    """`after` of the next page."""


class RolloutNews(Wire):
    """What a webhook is told: the decision, and the rollout after it."""

    rollout: RolloutCard
    decision: DecisionCard
