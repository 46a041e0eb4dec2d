"""How far a batch is: counted where its cells end, so that exactly one of them is the last."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, func, select, update

from serve.store.batch_tables import Batch, BatchState
from serve.store.engine import Session
from serve.store.job_states import tell_state
from serve.store.tables import Job
from serve.store.webhooks import enqueue

UNSEEN = {"populate_existing": True, "synchronize_session": False}
STATUSES = ("queued", "running", "succeeded", "failed", "cancelled")


async def note_ended(
    session: Session, tenant_id: str, batch_id: str, now: datetime, num_cells: int = 1
) -> None:
    """Count cells that this transaction has ended; with the last one the batch ends too.

    Raising the count locks the batch's row until the commit: of two last cells one sees the
    other.
    """
    raised = (
        update(Batch)
        .where(is_batch(tenant_id, batch_id))
        .values(num_ended=Batch.num_ended + num_cells)
        .returning(Batch)
    )
    batch = await session.scalar(raised, execution_options=UNSEEN)
    if batch is None or batch.num_ended < batch.num_cells:
        return
    if batch.state is not BatchState.CANCELLED:
        batch.state = BatchState.FINISHED
    batch.finished_at = now
    await session.flush()
    url = batch.spec.get("webhook_url")
    if url is not None:
        await enqueue(
            session,
            tenant_id=tenant_id,
            event=f"batch.{batch.state.value}",
            subject_id=batch.id,
            url=url,
            payload=await tell_end(session, batch),
            now=now,
        )


async def tell_end(session: Session, batch: Batch) -> dict[str, Any]:
    """What the message at the end of a batch says: how it went; the manifest says the rest."""
    assert batch.finished_at is not None, "it has ended"
    return {
        "id": batch.id,
        "status": batch.state.value,
        "version": batch.version,
        "num_cells": batch.num_cells,
        "counts": dict(await count_cells(session, batch.tenant_id, batch.id)),
        "finished_at": batch.finished_at.isoformat(),
        "links": {"self": f"/v1/batches/{batch.id}", "manifest": manifest_path(batch.id)},
    }


def manifest_path(batch_id: str) -> str:
    return f"/v1/batches/{batch_id}/manifest"


async def count_cells(session: Session, tenant_id: str, batch_id: str) -> Mapping[str, int]:
    """Cells per status, each by its newest job."""
    newest = newest_jobs(tenant_id, batch_id)
    counted = (
        select(Job.state, func.count())
        .join(newest, and_(Job.tenant_id == tenant_id, Job.id == newest.c.job_id))
        .group_by(Job.state)
    )
    counts = dict.fromkeys(STATUSES, 0)
    for state, count in await session.execute(counted):
        counts[tell_state(state)] += count
    return counts


def newest_jobs(tenant_id: str, batch_id: str) -> Any:
    """Cell and job: a cell that was retried has several, and ids sort by time."""
    return (
        select(Job.cell, func.max(Job.id).label("job_id"))
        .where(Job.tenant_id == tenant_id, Job.batch_id == batch_id)
        .group_by(Job.cell)
        .subquery("newest")
    )


def is_batch(tenant_id: str, batch_id: str) -> ColumnElement[bool]:
    return and_(Batch.tenant_id == tenant_id, Batch.id == batch_id)
