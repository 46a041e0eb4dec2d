"""The experiment that a rollout owns: made, weighed and ended in the rollout's transaction."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import select

from serve.designs import ExperimentDesign
from serve.store.engine import Session
from serve.store.experiment_tables import (
    Experiment,
    ExperimentAllocation,
    ExperimentState,
    ExpertDefault,
)
from serve.store.routing import bump_routing

FIRST_REVISION = 1
UNSEEN = {"populate_existing": True}


async def insert_experiment(
    session: Session,
    design: ExperimentDesign,
    ranges: Sequence[Sequence[Any]],
    actor: str,
    now: datetime,
) -> Experiment:
    """A draft: it assigns nobody before its rollout's first stage."""
    experiment = Experiment(
        id=design.id,
        design=design.model_dump(mode="json"),
        state=ExperimentState.DRAFT,
        revision=FIRST_REVISION,
        created_by=actor,
        created_at=now,
        updated_at=now,
    )
    session.add(experiment)
    await session.flush()
    _add_allocation(session, experiment, ranges, "before the first stage", now)
    await session.flush()
    return experiment


async def read_ranges(session: Session, experiment_id: str, revision: int) -> list[Any]:
    """Of one allocation, `[[end, arm], ...]`."""
    allocation = await session.get_one(ExperimentAllocation, (experiment_id, revision))
    return allocation.ranges


async def lock_experiment(session: Session, experiment_id: str) -> Experiment:
    locked = select(Experiment).where(Experiment.id == experiment_id).with_for_update()
    return (await session.scalars(locked, execution_options=UNSEEN)).one()


async def weigh(
    session: Session,
    experiment: Experiment,
    design: ExperimentDesign,
    ranges: Sequence[Sequence[Any]],
    reason: str,
    now: datetime,
) -> int:
    """Let a locked experiment assign by these ranges from now on; says the revision."""
    experiment.design = design.model_dump(mode="json")
    experiment.revision += 1
    _change(experiment, ExperimentState.RUNNING, reason, now)
    experiment.started_at = experiment.started_at or now
    _add_allocation(session, experiment, ranges, reason, now)
    await session.flush()
    await bump_routing(session)
    return experiment.revision


async def end(session: Session, experiment: Experiment, reason: str, now: datetime) -> None:
    """Everybody gets the expert's default from here on."""
    _change(experiment, ExperimentState.ENDED, reason, now)
    experiment.ended_at = experiment.ended_at or now
    await session.flush()
    await bump_routing(session)


async def freeze(session: Session, experiment: Experiment, reason: str, now: datetime) -> None:
    _change(experiment, ExperimentState.FROZEN, reason, now)
    await session.flush()
    await bump_routing(session)


async def set_default(
    session: Session, expert: str, version: str, previous: str, actor: str, now: datetime
) -> None:
    row = await session.get(ExpertDefault, expert, with_for_update=True)
    if row is None:
        row = ExpertDefault(expert=expert)
        session.add(row)
    row.version, row.previous = version, previous
    row.changed_by, row.changed_at = actor, now
    await session.flush()
    await bump_routing(session)


def _change(experiment: Experiment, state: ExperimentState, reason: str, now: datetime) -> None:
    experiment.state, experiment.reason, experiment.updated_at = state, reason[:500], now


def _add_allocation(
    session: Session,
    experiment: Experiment,
    ranges: Sequence[Sequence[Any]],
    reason: str,
    now: datetime,
) -> None:
    session.add(
        ExperimentAllocation(
            experiment_id=experiment.id,
            revision=experiment.revision,
            ranges=[list(one) for one in ranges],
            reason=reason[:500],
            at=now,
        )
    )
