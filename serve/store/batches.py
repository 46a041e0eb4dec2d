"""Batches as rows, and what is done to all cells of one in a few statements.

Whatever changes a batch from outside takes its tenant's row first, so that two such changes never
meet. The end of a cell does not: it takes its job, the ledger and then the batch, as cancelling
does too.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import and_, delete, insert, select, update

from serve.errors import Conflict, NotFound
from serve.store import ledger
from serve.store.batch_progress import UNSEEN, is_batch, newest_jobs
from serve.store.batch_tables import HELD_UNTIL, Batch, BatchState
from serve.store.engine import Session
from serve.store.ids import ID
from serve.store.tables import Asset, Job, JobEvent, JobState, Tenant

UNDER_WAY = (BatchState.RUNNING, BatchState.PAUSED)
FINISHED_EVENT = "finished"
REMEDIES = {
    BatchState.DRAFT: "start it first: POST /v1/batches/{id}/start",
    BatchState.FINISHED: "its manifest says what became of every cell",
    BatchState.CANCELLED: "make another batch; what was done is in the manifest of this one",
}


async def lock_batches(session: Session, tenant_id: str) -> None:
    """Until the commit nobody else changes a batch of the tenant from outside."""
    locked = select(Tenant.id).where(Tenant.id == tenant_id).with_for_update(key_share=True)
    await session.execute(locked)


async def get_batch(session: Session, tenant_id: str, batch_id: str) -> Batch:
    """
    Raises:
        NotFound: the tenant has no such batch.
    """
    found = select(Batch).where(is_batch(tenant_id, batch_id))
    is_id = ID.fullmatch(batch_id) is not None
    batch = await session.scalar(found, execution_options=UNSEEN) if is_id else None
    if batch is None:
        raise NotFound("There is no such batch.", remedy="GET /v1/batches lists yours")
    return batch


async def list_batches(
    session: Session, tenant_id: str, *, after: str | None = None, limit: int = 50
) -> Sequence[Batch]:
    """Newest first, older than `after`."""
    found = select(Batch).where(Batch.tenant_id == tenant_id)
    if after is not None:
        found = found.where(Batch.id < after)
    return (await session.scalars(found.order_by(Batch.id.desc()).limit(limit))).all()


async def begin(session: Session, tenant_id: str, batch_id: str, now: datetime) -> bool:
    """A draft runs from now on; False where it was begun before, so that its cells are there."""
    begun = (
        update(Batch)
        .where(is_batch(tenant_id, batch_id), Batch.state == BatchState.DRAFT)
        .values(state=BatchState.RUNNING, started_at=now)
        .returning(Batch.id)
    )
    return await session.scalar(begun, execution_options=UNSEEN) is not None


async def set_state(
    session: Session, batch: Batch, allowed: Sequence[BatchState], state: BatchState
) -> None:
    """
    Raises:
        Conflict: it is in no state that this may follow, maybe since a moment ago.
    """
    changed = (
        update(Batch)
        .where(is_batch(batch.tenant_id, batch.id), Batch.state.in_(allowed))
        .values(state=state)
        .returning(Batch.id)
    )
    if await session.scalar(changed, execution_options=UNSEEN) is None:
        raise Conflict(
            f"The batch is {batch.state.value} and cannot be {state.value}.",
            remedy=REMEDIES.get(batch.state, "GET the batch says how it stands"),
        )


async def hold_waiting(session: Session, tenant_id: str, batch_id: str) -> None:
    """No waiting cell is claimed any more."""
    await _move_waiting(session, tenant_id, batch_id, HELD_UNTIL, Job.runnable_at != HELD_UNTIL)


async def free_waiting(session: Session, tenant_id: str, batch_id: str, now: datetime) -> None:
    """Held cells may be claimed; what waits for another attempt goes on waiting."""
    await _move_waiting(session, tenant_id, batch_id, now, Job.runnable_at == HELD_UNTIL)


async def hold_if_paused(session: Session, job: Job, runnable_at: datetime) -> datetime:
    """When a cell may run that is queued again: not while its batch is paused.

    The lock makes a pause that comes at this moment wait, and then see the cell.
    """
    if job.batch_id is None:
        return runnable_at
    found = select(Batch.state).where(is_batch(job.tenant_id, job.batch_id))
    state = await session.scalar(found.with_for_update(read=True))
    return HELD_UNTIL if state is BatchState.PAUSED else runnable_at


async def cancel_cells(session: Session, batch: Batch, now: datetime) -> int:
    """Waiting cells end now, and are counted by the caller; those that run are asked to.

    The batch's row comes after its jobs, here and where a cell ends. The jobs are locked first, in
    one order and whatever their state: none slips through by being queued again or claimed.
    """
    unfinished = Job.state.in_((JobState.QUEUED, JobState.RUNNING))
    locked = select(Job.id).where(_cells(batch.tenant_id, batch.id), unfinished)
    await session.execute(locked.order_by(Job.id).with_for_update())
    ended = await _cancel_waiting(session, batch, now)
    await session.execute(
        update(Job)
        .where(
            _cells(batch.tenant_id, batch.id),
            Job.state == JobState.RUNNING,
            Job.cancel_requested_at.is_(None),
        )
        .values(cancel_requested_at=now)
        .execution_options(**UNSEEN)
    )
    if ended:
        await session.execute(insert(JobEvent), [_end_event(row, now) for row in ended])
        job_ids = [row.id for row in ended]
        await ledger.release_many(session, batch.tenant_id, job_ids, now)
    return len(ended)


async def _cancel_waiting(session: Session, batch: Batch, now: datetime) -> list[Any]:
    cancelled = (
        update(Job)
        .where(_cells(batch.tenant_id, batch.id), Job.state == JobState.QUEUED)
        .values(state=JobState.CANCELLED, finished_at=now, num_events=Job.num_events + 1)
        .returning(Job.tenant_id, Job.id, Job.num_events)
        .execution_options(**UNSEEN)
    )
    return list(await session.execute(cancelled))


def _end_event(row: Any, now: datetime) -> dict[str, Any]:
    return {
        "tenant_id": row.tenant_id,
        "job_id": row.id,
        "sequence": row.num_events,
        "kind": FINISHED_EVENT,
        "data": {"status": JobState.CANCELLED.value},
        "at": now,
    }


async def read_cells(
    session: Session,
    batch: Batch,
    *,
    states: Sequence[JobState] = (),
    cells: Sequence[int] = (),
    after: int = -1,
    limit: int | None = None,
) -> Sequence[Job]:
    """The newest job of each cell, in the order of the matrix."""
    newest = newest_jobs(batch.tenant_id, batch.id)
    found = (
        select(Job)
        .join(newest, and_(Job.tenant_id == batch.tenant_id, Job.id == newest.c.job_id))
        .where(Job.cell > after)
        .order_by(Job.cell)
    )
    if states:
        found = found.where(Job.state.in_(states))
    if cells:
        found = found.where(Job.cell.in_(cells))
    if limit is not None:
        found = found.limit(limit)
    return (await session.scalars(found, execution_options=UNSEEN)).all()


async def reopen_cells(session: Session, batch: Batch, num_cells: int) -> None:
    """So many ended cells have a new job: they count as not ended, and the batch goes on.

    Raises:
        Conflict: it was cancelled, or never started.
    """
    reopened = (
        update(Batch)
        .where(
            is_batch(batch.tenant_id, batch.id),
            Batch.state.in_((*UNDER_WAY, BatchState.FINISHED)),
        )
        .values(num_ended=Batch.num_ended - num_cells, finished_at=None)
        .returning(Batch)
    )
    row = await session.scalar(reopened, execution_options=UNSEEN)
    if row is None:
        raise Conflict(f"The batch is {batch.state.value}: its cells are not tried again.")
    if row.state is BatchState.FINISHED:
        row.state = BatchState.RUNNING
    await session.flush()


async def remove_subject_batches(session: Session, tenant_id: str, subject: str) -> list[str]:
    """The batches of one subject, under way or not: their jobs end without them."""
    gone = (
        delete(Batch)
        .where(Batch.tenant_id == tenant_id, Batch.spec["subject"].as_string() == subject)
        .returning(Batch.id)
        .execution_options(synchronize_session=False)
    )
    return list(await session.scalars(gone))


async def find_missing_assets(
    session: Session, tenant_id: str, asset_ids: Sequence[str], *, is_held: bool = False
) -> set[str]:
    """Which of them the tenant does not have.

    Args:
        is_held: nobody removes the others before this transaction commits.
    """
    missing = set(asset_ids)
    wanted = sorted(missing)
    for start in range(0, len(wanted), CHUNK):
        found = select(Asset.id).where(
            Asset.tenant_id == tenant_id, Asset.id.in_(wanted[start : start + CHUNK])
        )
        if is_held:
            found = found.order_by(Asset.id).with_for_update(read=True)
        missing.difference_update(await session.scalars(found))
    return missing


CHUNK = 500
"""Ids in one statement."""


def _cells(tenant_id: str, batch_id: str) -> Any:
    return and_(Job.tenant_id == tenant_id, Job.batch_id == batch_id)


async def _move_waiting(
    session: Session, tenant_id: str, batch_id: str, to: datetime, which: Any
) -> None:
    await session.execute(
        update(Job)
        .where(_cells(tenant_id, batch_id), Job.state == JobState.QUEUED, which)
        .values(runnable_at=to)
        .execution_options(**UNSEEN)
    )
