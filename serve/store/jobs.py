"""Jobs as rows: accepted with their reservation, found by their tenant, counted for the scaler."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import ColumnElement, func, insert, literal, select, tuple_

from serve.errors import NotFound, RateLimited
from serve.store.engine import Session
from serve.store.ids import ID
from serve.store.ledger import Budget, Reservation, reserve
from serve.store.picking import is_in
from serve.store.tables import Job, JobClass, JobEvent, JobState

QUEUED_EVENT = "queued"
OpenState = Literal["queued", "delayed", "running"]
OPEN_STATES: tuple[OpenState, ...] = ("queued", "delayed", "running")
FULL_RETRY_AFTER_S = 30.0


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """One piece of work that shall be accepted."""

    id: str
    version: str
    priority: JobClass
    request: dict[str, Any]
    predicted_gpu_ms: int
    num_images: int
    subject: str = ""
    deadline_at: datetime | None = None
    batch_id: str | None = None
    cell: int | None = None
    runnable_at: datetime | None = None
    """At once when absent."""

    @property
    def expert(self) -> str:
        return self.version.partition("@")[0]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a waiting job stands in its tenant's own queue."""

    position: int
    """From 1: the next of this tenant to be started."""
    ahead_gpu_ms: int
    """Predicted, of the tenant's waiting jobs before it."""


async def insert_jobs(
    session: Session,
    tenant_id: str,
    key_id: str | None,
    jobs: Sequence[NewJob],
    *,
    budget: Budget,
    max_queued: int,
    now: datetime,
) -> None:
    """Accept all of them or none: rows, reservations and `queued` events, in a few statements.

    Raises:
        QuotaExhausted: the tenant's budget does not cover them.
        RateLimited: more than max_queued would wait.
    """
    reservations = [
        Reservation(
            tenant_id=tenant_id,
            work_item=job.id,
            key_id=key_id,
            expert=job.expert,
            version=job.version,
            gpu_ms=job.predicted_gpu_ms,
            images=job.num_images,
            expires_at=None,
        )
        for job in jobs
    ]
    # First: it locks the tenant's counter, so that what is counted below stays true.
    await reserve(session, reservations, budget, now)
    waiting = await _count_waiting(session, tenant_id)
    if sum(waiting.values()) + len(jobs) > max_queued:
        raise RateLimited(
            f"{sum(waiting.values())} jobs wait already; {max_queued} may wait at once",
            remedy="wait for some of them to end, or cancel them",
            retry_after_s=FULL_RETRY_AFTER_S,
        )
    rows, events = [], []
    for job in jobs:
        waiting[job.priority] = waiting.get(job.priority, 0) + 1
        position = sum(count for priority, count in waiting.items() if priority <= job.priority)
        rows.append(_row(tenant_id, key_id, job, now))
        events.append(
            {
                "tenant_id": tenant_id,
                "job_id": job.id,
                "sequence": 1,
                "kind": QUEUED_EVENT,
                "data": {"position": position},
                "at": now,
            }
        )
    await session.execute(insert(Job), rows)
    await session.execute(insert(JobEvent), events)


def _row(tenant_id: str, key_id: str | None, job: NewJob, now: datetime) -> dict[str, Any]:
    return {
        "tenant_id": tenant_id,
        "id": job.id,
        "key_id": key_id,
        "version": job.version,
        "batch_id": job.batch_id,
        "cell": job.cell,
        "state": JobState.QUEUED,
        "priority": job.priority,
        "request": job.request,
        "subject": job.subject,
        "predicted_gpu_ms": job.predicted_gpu_ms,
        "attempts": 0,
        "num_events": 1,
        "runnable_at": job.runnable_at or now,
        "deadline_at": job.deadline_at,
        "created_at": now,
    }


async def _count_waiting(session: Session, tenant_id: str) -> dict[JobClass, int]:
    counted = (
        select(Job.priority, func.count())
        .where(is_in(JobState.QUEUED), Job.tenant_id == tenant_id)
        .group_by(Job.priority)
    )
    return {priority: count for priority, count in await session.execute(counted)}


async def get_job(session: Session, tenant_id: str, job_id: str) -> Job:
    """
    Raises:
        NotFound: the tenant has no such job.
    """
    # A database may stumble over what no id looks like.
    job = await session.get(Job, (tenant_id, job_id)) if ID.fullmatch(job_id) else None
    if job is None:
        raise unknown_job(job_id)
    return job


def unknown_job(job_id: str) -> NotFound:
    """The same words whether it is another tenant's or never was."""
    return NotFound(f"There is no job {job_id[:40]}.", remedy="GET /v1/jobs lists yours")


async def list_jobs(
    session: Session,
    tenant_id: str,
    *,
    states: Sequence[JobState] = (),
    after: str | None = None,
    limit: int = 50,
) -> Sequence[Job]:
    """Newest first, older than `after`; ids sort by the time they were made."""
    found = select(Job).where(Job.tenant_id == tenant_id).order_by(Job.id.desc()).limit(limit)
    if states:
        found = found.where(Job.state.in_(states))
    if after is not None:
        found = found.where(Job.id < after)
    return (await session.scalars(found)).all()


async def find_place(session: Session, job: Job) -> Place | None:
    """Where it stands; None when it does not wait."""
    if job.state is not JobState.QUEUED:
        return None
    order = tuple_(Job.priority, Job.runnable_at, Job.id)
    here = tuple_(
        literal(job.priority, Job.priority.type),
        literal(job.runnable_at, Job.runnable_at.type),
        literal(job.id),
    )
    ahead: ColumnElement[bool] = order < here
    counted = select(func.count(), func.coalesce(func.sum(Job.predicted_gpu_ms), 0)).where(
        is_in(JobState.QUEUED), Job.tenant_id == job.tenant_id, ahead
    )
    num_ahead, gpu_ms = (await session.execute(counted)).one()
    return Place(position=int(num_ahead) + 1, ahead_gpu_ms=int(gpu_ms))


@dataclass(frozen=True, slots=True)
class OpenJobs:
    """Jobs of one class that have not ended."""

    state: OpenState
    """`delayed` waits for its time: after a failure, or while its batch is paused."""
    priority: JobClass
    count: int
    since: datetime | None
    """Since when the oldest could run; of the queued only."""


async def count_open(session: Session, now: datetime) -> Sequence[OpenJobs]:
    """Read from the indexes of those that wait and of those that run, and from no row."""
    is_delayed = Job.runnable_at > now
    waiting = (
        select(is_delayed, Job.priority, func.count(), func.min(Job.runnable_at))
        .where(is_in(JobState.QUEUED))
        .group_by(Job.priority, is_delayed)
    )
    running = (
        select(Job.priority, func.count()).where(is_in(JobState.RUNNING)).group_by(Job.priority)
    )
    return [
        *(
            OpenJobs("delayed", priority, count, None)
            if delayed
            else OpenJobs("queued", priority, count, since)
            for delayed, priority, count, since in await session.execute(waiting)
        ),
        *(
            OpenJobs("running", priority, count, None)
            for priority, count in await session.execute(running)
        ),
    ]


async def sum_runnable_ms(session: Session, now: datetime) -> Mapping[str, int]:
    """Predicted GPU time of what could run now and does not, per version."""
    summed = (
        select(Job.version, func.sum(Job.predicted_gpu_ms))
        .where(is_in(JobState.QUEUED), Job.runnable_at <= now)
        .group_by(Job.version)
    )
    return {version: int(gpu_ms) for version, gpu_ms in await session.execute(summed)}
