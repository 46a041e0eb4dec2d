"""Rows of the cluster's defaults: the version an expert's requests get about which nothing else
decides. Each change raises the routing's revision with it."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select

from serve.errors import Conflict
from serve.store.audit import lock_audit
from serve.store.engine import Session
from serve.store.experiment_tables import ExpertDefault
from serve.store.rollout_tables import Rollout
from serve.store.routing import bump_routing


async def find_default(session: Session, expert: str) -> ExpertDefault | None:
    """None where the family file decides."""
    return await session.get(ExpertDefault, expert)


async def list_defaults(session: Session) -> Sequence[ExpertDefault]:
    return (await session.scalars(select(ExpertDefault).order_by(ExpertDefault.expert))).all()


async def set_default(
    session: Session,
    expert: str,
    version: str,
    by: str,
    now: datetime,
    *,
    instead_of: str | None = None,
) -> ExpertDefault:
    """From the next look at the routing on, this is the version; what it was before is kept.

    Args:
        instead_of: what it was, where the family file decided until now.
    """
    await lock_audit(session)
    row = await session.get(ExpertDefault, expert, populate_existing=True)
    if row is not None and row.version == version:
        return row
    if row is None:
        row = ExpertDefault(expert=expert, version=version, previous=instead_of)
        session.add(row)
    else:
        row.previous, row.version = row.version, version
    row.changed_by, row.changed_at = by, now
    await session.flush()
    await bump_routing(session)
    return row


async def clear_default(session: Session, expert: str) -> ExpertDefault | None:
    """From then on the family file decides again; answers what was set, None where nothing was."""
    await lock_audit(session)
    row = await session.get(ExpertDefault, expert, populate_existing=True)
    if row is not None:
        await session.delete(row)
        await session.flush()
        await bump_routing(session)
    return row


async def refuse_while_rolled_out(session: Session, expert: str) -> None:
    """Where nobody but the rollout may change the default; none begins until this transaction ends.

    Raises:
        Conflict: a rollout of this expert is open.
    """
    await lock_audit(session)
    is_open = (Rollout.expert == expert, Rollout.finished_at.is_(None))
    rollout_id = await session.scalar(select(Rollout.id).where(*is_open))
    if rollout_id is not None:
        raise Conflict(
            f"the default of {expert!r} is what {rollout_id} is about to decide",
            remedy=f"wait for it to end, or abort it: sm4ll rollouts abort {rollout_id}",
        )
