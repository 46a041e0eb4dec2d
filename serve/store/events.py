"""What happened to a job, in order, for whoever follows it from any router."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import select, update

from serve.errors import Conflict, NotFound
from serve.store.engine import Session
from serve.store.tables import Job, JobEvent


async def append_event(
    session: Session,
    tenant_id: str,
    job_id: str,
    kind: str,
    data: dict[str, Any],
    at: datetime,
    *,
    lease_token: str | None = None,
) -> int:
    """Add the next event and say its number.

    Numbers have no gaps and become visible in order: the job's row is locked until the commit.

    Args:
        lease_token: of the worker that says so; one that lost its job says nothing more about it.

    Raises:
        NotFound: the tenant has no such job.
        Conflict: another worker has it, or none.
    """
    raised = (
        update(Job)
        .where(Job.tenant_id == tenant_id, Job.id == job_id)
        .values(num_events=Job.num_events + 1)
        .returning(Job.num_events)
        .execution_options(synchronize_session=False)
    )
    if lease_token is not None:
        raised = raised.where(Job.lease_token == lease_token)
    sequence = await session.scalar(raised)
    if sequence is None and lease_token is not None:
        raise Conflict(f"The lease on {job_id} is over; another worker may have it.")
    if sequence is None:
        raise NotFound(f"There is no job {job_id}.")
    session.add(
        JobEvent(tenant_id=tenant_id, job_id=job_id, sequence=sequence, kind=kind, data=data, at=at)
    )
    await session.flush()
    return sequence


async def read_events(
    session: Session, tenant_id: str, job_id: str, after: int = 0, limit: int = 1000
) -> Sequence[JobEvent]:
    """Events with a number above `after`, which is what `Last-Event-ID` said."""
    found = (
        select(JobEvent)
        .where(
            JobEvent.tenant_id == tenant_id, JobEvent.job_id == job_id, JobEvent.sequence > after
        )
        .order_by(JobEvent.sequence)
        .limit(limit)
    )
    return (await session.scalars(found)).all()
