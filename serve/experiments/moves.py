"""What a decision changes, all of it in one transaction with the decision: whenever a controller
dies, either everything of it holds or nothing."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

from serve.designs import BUCKETS, Arm, ExperimentDesign, RolloutPlan, ShadowDesign
from serve.experiments.allocation import allocate, load_allocation, reallocate
from serve.experiments.findings import CHALLENGER, CONTROL
from serve.store.defaults import set_default
from serve.store.engine import Session
from serve.store.experiment_tables import ExperimentState
from serve.store.experiments import (
    allocate_anew,
    insert_experiment,
    lock_experiment,
    read_ranges,
    set_experiment_state,
)
from serve.store.rollout_tables import Rollout, RolloutState
from serve.store.rollouts import BEFORE_FIRST, Note, insert_rollout, log_decision

SUFFIX_CHARS = 12


@dataclass(frozen=True, slots=True)
class Move:
    """A rollout whose row is locked, on its way to another state."""

    session: Session
    rollout: Rollout
    plan: RolloutPlan
    now: datetime

    async def carry_out(self, note: Note) -> None:
        """Change what the note's action changes, and log it."""
        act = ACTS.get(note.action)
        if act is not None and not note.is_dry_run:
            await act(self, note)
        self.rollout.numbers = dict(note.numbers) or self.rollout.numbers
        await log_decision(self.session, self.rollout, note, self.now)

    async def enter(self, stage: int, reason: str) -> None:
        """Give the challenger the stage's share, with the fewest units changing hands."""
        wanted = self.plan.stages[stage]
        await self._weigh(wanted.share, wanted.shadow, reason)
        self.rollout.stage, self.rollout.stage_started_at = stage, self.now
        self.rollout.approved_stage = None

    async def go_back(self, state: RolloutState, reason: str) -> None:
        """Everybody to the control, and nobody in an experiment any more."""
        if self.rollout.stage != BEFORE_FIRST:
            await self._weigh(0, 0, reason)
        await self._end(state, reason)

    async def finish(self, note: Note) -> None:
        plan = self.plan
        assert plan.against is not None, "a rollout that was begun knows what it replaces"
        await self._end(RolloutState.PROMOTED, note.reason)
        await set_default(
            self.session, plan.expert, plan.version, note.actor, self.now, instead_of=plan.against
        )

    async def freeze(self, reason: str) -> None:
        """Nobody changes arms until a person says so."""
        experiment = await lock_experiment(self.session, self.rollout.experiment_id)
        await set_experiment_state(
            self.session, experiment, ExperimentState.FROZEN, reason, self.now
        )
        self.rollout.state = RolloutState.PAUSED

    async def _weigh(self, share: int, shadow: int, reason: str) -> None:
        experiment = await lock_experiment(self.session, self.rollout.experiment_id)
        ranges = await read_ranges(self.session, experiment.id, experiment.revision)
        weights = {CONTROL: BUCKETS - share, CHALLENGER: share}
        allocation = reallocate(load_allocation(ranges), weights)
        before = ExperimentDesign.model_validate(experiment.design)
        design = design_experiment(before.id, self.plan, share, shadow)
        await allocate_anew(self.session, experiment, design, allocation.dump(), reason, self.now)
        if experiment.state is not ExperimentState.RUNNING:
            await set_experiment_state(
                self.session, experiment, ExperimentState.RUNNING, reason, self.now
            )
        self.rollout.revision = experiment.revision

    async def _end(self, state: RolloutState, reason: str) -> None:
        experiment = await lock_experiment(self.session, self.rollout.experiment_id)
        await set_experiment_state(
            self.session, experiment, ExperimentState.ENDED, reason, self.now
        )
        self.rollout.state, self.rollout.finished_at = state, self.now
        self.rollout.lease_token = self.rollout.lease_expires_at = None


async def _enter(move: Move, note: Note) -> None:
    assert note.to_stage is not None, f"{note.action} says where to"
    await move.enter(note.to_stage, note.reason)


async def _roll_back(move: Move, note: Note) -> None:
    await move.go_back(RolloutState.ROLLED_BACK, note.reason)


async def _abort(move: Move, note: Note) -> None:
    await move.go_back(RolloutState.ABORTED, note.reason)


async def _finish(move: Move, note: Note) -> None:
    await move.finish(note)


async def _freeze(move: Move, note: Note) -> None:
    await move.freeze(note.reason)


ACTS: dict[str, Callable[[Move, Note], Awaitable[None]]] = {
    "start": _enter,
    "promote": _enter,
    "roll_back": _roll_back,
    "abort": _abort,
    "finish": _finish,
    "freeze": _freeze,
}
"""An action that is not here changes nothing but the log."""


async def create_rollout(
    session: Session,
    plan: RolloutPlan,
    *,
    rollout_id: str,
    tenant_id: str,
    actor: str,
    now: datetime,
) -> Rollout:
    """A rollout and its experiment, which assigns nobody before the first stage."""
    experiment_id = f"rollout-{plan.expert}-{rollout_id[-SUFFIX_CHARS:]}"
    design = design_experiment(experiment_id, plan, share=0, shadow=0)
    ranges = allocate({CONTROL: BUCKETS, CHALLENGER: 0}).dump()
    experiment = await insert_experiment(
        session, design, ranges, state=ExperimentState.DRAFT, created_by=actor, now=now
    )
    rollout = await insert_rollout(
        session,
        rollout_id=rollout_id,
        tenant_id=tenant_id,
        experiment_id=experiment.id,
        revision=experiment.revision,
        plan=plan,
        actor=actor,
        now=now,
    )
    reason = f"{plan.version} is to replace {plan.against}"
    await log_decision(
        session,
        rollout,
        Note(actor=actor, action="create", reason=reason, stage=rollout.stage),
        now,
    )
    return rollout


def design_experiment(
    experiment_id: str, plan: RolloutPlan, share: int, shadow: int
) -> ExperimentDesign:
    """The experiment of a stage: its control is what everybody goes back to."""
    assert plan.against is not None, "a rollout that was begun knows what it replaces"
    return ExperimentDesign(
        id=experiment_id,
        title=f"{plan.version} instead of {plan.against}",
        expert=plan.expert,
        unit=plan.unit,
        fallback=plan.fallback,
        arms=(
            Arm(name=CONTROL, version=plan.against, weight=BUCKETS - share),
            Arm(name=CHALLENGER, version=plan.version, weight=share),
        ),
        audience=plan.audience,
        shadow=ShadowDesign(arm=CHALLENGER, share=shadow) if shadow else None,
        alpha=plan.alpha,
    )
