"""Rows of experiments and their allocations, read and changed in the caller's transaction.

Whoever changes one takes the audit log's lock first, as every administrative act does, so that no
two of them wait for each other.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import select, tuple_

from serve.designs import ExperimentDesign
from serve.errors import NotFound
from serve.store.audit import lock_audit
from serve.store.engine import Session
from serve.store.experiment_tables import Experiment, ExperimentAllocation, ExperimentState
from serve.store.rollout_tables import Rollout
from serve.store.routing import ASSIGNING, bump_routing

FIRST_REVISION = 1
MAX_REASON_CHARS = 500
UNSEEN = {"populate_existing": True}

Ranges = Sequence[Sequence[Any]]


async def insert_experiment(
    session: Session,
    design: ExperimentDesign,
    ranges: Ranges,
    *,
    state: ExperimentState,
    created_by: str,
    now: datetime,
) -> Experiment:
    """An experiment with its first allocation."""
    experiment = Experiment(
        id=design.id,
        design=design.model_dump(mode="json"),
        state=state,
        reason="",
        revision=FIRST_REVISION,
        created_by=created_by,
        created_at=now,
        updated_at=now,
        started_at=now if state in ASSIGNING else None,
    )
    session.add(experiment)
    await session.flush()
    session.add(_allocation(experiment, ranges, "", now))
    await session.flush()
    await bump_routing(session)
    return experiment


async def find_experiment(session: Session, experiment_id: str) -> Experiment | None:
    return await session.get(Experiment, experiment_id)


async def get_experiment(session: Session, experiment_id: str) -> Experiment:
    """
    Raises:
        NotFound: there is none with this id.
    """
    return _there(await find_experiment(session, experiment_id), experiment_id)


async def lock_experiment(session: Session, experiment_id: str) -> Experiment:
    """As it is now, and nobody else's to change before this transaction ends.

    Raises:
        NotFound: there is none with this id.
    """
    await lock_audit(session)
    locked = select(Experiment).where(Experiment.id == experiment_id).with_for_update()
    return _there(await session.scalar(locked, execution_options=UNSEEN), experiment_id)


async def list_experiments(
    session: Session, *, limit: int, after: str | None = None
) -> Sequence[Experiment]:
    """Newest first; those that come after the experiment `after`.

    Raises:
        NotFound: there is no experiment `after`.
    """
    newest = select(Experiment).order_by(Experiment.created_at.desc(), Experiment.id.desc())
    if after is not None:
        last = await get_experiment(session, after)
        place = tuple_(Experiment.created_at, Experiment.id)
        newest = newest.where(place < tuple_(last.created_at, last.id))
    return (await session.scalars(newest.limit(limit))).all()


async def set_experiment_state(
    session: Session, experiment: Experiment, state: ExperimentState, reason: str, now: datetime
) -> None:
    """Of a locked experiment; in force on every router within five seconds."""
    experiment.state, experiment.reason = state, reason[:MAX_REASON_CHARS]
    experiment.updated_at = now
    if state in ASSIGNING:
        experiment.started_at = experiment.started_at or now
    if state is ExperimentState.ENDED:
        experiment.ended_at = experiment.ended_at or now
    await session.flush()
    await bump_routing(session)


async def allocate_anew(
    session: Session,
    experiment: Experiment,
    design: ExperimentDesign,
    ranges: Ranges,
    reason: str,
    now: datetime,
) -> None:
    """Let a locked experiment assign by these ranges, under the next revision."""
    experiment.design = design.model_dump(mode="json")
    experiment.revision += 1
    experiment.updated_at = now
    session.add(_allocation(experiment, ranges, reason, now))
    await session.flush()
    await bump_routing(session)


async def read_ranges(session: Session, experiment_id: str, revision: int) -> list[Any]:
    """Of one allocation, `[[end, arm], ...]`."""
    allocation = await session.get_one(ExperimentAllocation, (experiment_id, revision))
    return allocation.ranges


async def list_ranges(session: Session, experiment_id: str) -> Sequence[ExperimentAllocation]:
    """Every allocation the experiment had, the first one first."""
    found = select(ExperimentAllocation).where(ExperimentAllocation.experiment_id == experiment_id)
    return (await session.scalars(found.order_by(ExperimentAllocation.revision))).all()


async def find_owner(session: Session, experiment_id: str) -> str | None:
    """The id of the open rollout that moves the experiment's weights."""
    found = select(Rollout.id).where(
        Rollout.experiment_id == experiment_id, Rollout.finished_at.is_(None)
    )
    return await session.scalar(found)


def _there(experiment: Experiment | None, experiment_id: str) -> Experiment:
    if experiment is None:
        raise NotFound(
            f"there is no experiment {experiment_id!r}",
            remedy="GET /v1/experiments lists them",
        )
    return experiment


def _allocation(
    experiment: Experiment, ranges: Ranges, reason: str, now: datetime
) -> ExperimentAllocation:
    return ExperimentAllocation(
        experiment_id=experiment.id,
        revision=experiment.revision,
        ranges=[list(each) for each in ranges],
        reason=reason[:MAX_REASON_CHARS],
        at=now,
    )
