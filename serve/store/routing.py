"""What routers choose versions by: a revision that is cheap to ask for, and the rows behind it."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import and_, select, update

from serve.store.audit import lock_audit
from serve.store.engine import Session
from serve.store.experiment_tables import (
    Experiment,
    ExperimentAllocation,
    ExperimentState,
    ExpertDefault,
    RoutingRevision,
    ServedVersion,
)

ROW_ID = 1
ASSIGNING = (ExperimentState.RUNNING, ExperimentState.FROZEN)


@dataclass(frozen=True, kw_only=True)
class RoutingRows:
    """As they stood at this revision, or after it: what changed meanwhile has raised it again."""

    revision: int
    experiments: Sequence[tuple[Experiment, ExperimentAllocation]]
    """Those that assign, with their newest allocation, in the order in which they are asked."""
    defaults: Sequence[ExpertDefault]
    served: Sequence[ServedVersion]


async def bump_routing(session: Session) -> int:
    """Raise the revision, in the transaction of what changes.

    Whoever changes rows that others change as well calls `lock_audit` first, as every other
    administrative act does: then no two of them wait for each other.

    Returns:
        The new revision.
    """
    await lock_audit(session)
    raised = (
        update(RoutingRevision)
        .where(RoutingRevision.id == ROW_ID)
        .values(revision=RoutingRevision.revision + 1)
        .returning(RoutingRevision.revision)
        .execution_options(synchronize_session=False)
    )
    return (await session.execute(raised)).scalar_one()


async def read_revision(session: Session) -> int:
    found = select(RoutingRevision.revision).where(RoutingRevision.id == ROW_ID)
    return (await session.execute(found)).scalar_one()


async def read_routing(session: Session) -> RoutingRows:
    revision = await read_revision(session)  # first: an older number is only read once more
    served = select(ServedVersion).order_by(ServedVersion.created_at, ServedVersion.version)
    return RoutingRows(
        revision=revision,
        experiments=await list_assigning(session),
        defaults=(await session.scalars(select(ExpertDefault))).all(),
        served=(await session.scalars(served)).all(),
    )


async def list_assigning(session: Session) -> list[tuple[Experiment, ExperimentAllocation]]:
    """Experiments that assign, with their newest allocation, in the order they are asked in."""
    experiments = (
        select(Experiment, ExperimentAllocation)
        .join(
            ExperimentAllocation,
            and_(
                ExperimentAllocation.experiment_id == Experiment.id,
                ExperimentAllocation.revision == Experiment.revision,
            ),
        )
        .where(Experiment.state.in_(ASSIGNING))
        .order_by(Experiment.created_at, Experiment.id)
    )
    return [(row[0], row[1]) for row in (await session.execute(experiments)).all()]
