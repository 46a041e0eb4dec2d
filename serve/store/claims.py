"""Which worker has which job: claimed with a lease, kept by heartbeats, given up by silence.

Every method works in the caller's transaction, so that what belongs together (a job's end, its
event, its settlement) is written together or not at all.
"""

import secrets
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, Update, literal, select, tuple_, update

from serve.errors import Conflict, NotFound
from serve.store.columns import utc_now
from serve.store.engine import Session
from serve.store.leases import Claim, Heartbeat, LeasePolicy
from serve.store.tables import Job, JobClass, JobState

MAX_REAPED = 100
LOST = {
    "code": "worker_lost",
    "title": "The worker stopped",
    "detail": "The worker that ran this job stopped answering.",
}


class Claims:
    """While a lease lives nobody else gets its job; whoever lost it can change nothing more."""

    def __init__(
        self, policy: LeasePolicy | None = None, now: Callable[[], datetime] = utc_now
    ) -> None:
        self._policy = policy or LeasePolicy()
        self._now = now

    async def claim(
        self,
        session: Session,
        owner: str,
        limit: int = 1,
        *,
        tenant_id: str | None = None,
        priority: JobClass | None = None,
    ) -> list[Claim]:
        """Take the jobs that have been runnable longest, interactive ones first.

        Args:
            owner: who asks, for the person who looks at the table.
            tenant_id: only this tenant's, where a fair queue has chosen whose turn it is.
        """
        await self.reap(session)
        now = self._now()
        picked = _pick_runnable(now, limit, tenant_id, priority).cte("picked")
        taken = (
            update(Job)
            .where(tuple_(Job.tenant_id, Job.id).in_(select(picked.c.tenant_id, picked.c.id)))
            .values(
                state=JobState.RUNNING,
                attempts=Job.attempts + 1,
                started_at=now,
                heartbeat_at=now,
                lease_owner=owner,
                lease_token=secrets.token_hex(16),
                lease_expires_at=self._lease_end(now),
            )
            .returning(Job)
        )
        # Rows come back in no order of their own.
        jobs = sorted(await session.scalars(taken, execution_options=UNSEEN), key=_claim_order)
        return [_to_claim(job) for job in jobs]

    async def reap(self, session: Session) -> int:
        """Give back the jobs of workers that fell silent; says how many.

        Queued again after a pause, parked after too many attempts, cancelled where that was asked.
        """
        now = self._now()
        lapsed = (
            select(Job)
            .where(_is(JobState.RUNNING), Job.lease_expires_at <= now)
            .order_by(Job.lease_expires_at)
            .limit(MAX_REAPED)
            .with_for_update(skip_locked=True)
        )
        jobs = list(await session.scalars(lapsed, execution_options=UNSEEN))
        for job in jobs:
            _end_lease(job)
            self._try_again(job, LOST, now)
        await session.flush()
        return len(jobs)

    async def heartbeat(self, session: Session, claim: Claim) -> Heartbeat:
        """Keep the lease, also one that lapsed and that nobody has taken yet.

        Raises:
            Conflict: the job is no longer ours; stop working on it.
        """
        now = self._now()
        kept = (
            _ours(claim)
            .values(heartbeat_at=now, lease_expires_at=self._lease_end(now))
            .returning(Job.lease_expires_at, Job.cancel_requested_at)
        )
        row = (await session.execute(kept)).first()
        if row is None:
            raise _lost(claim)
        return Heartbeat(self._lease_end(now), row.cancel_requested_at is not None)

    async def release(self, session: Session, claim: Claim) -> None:
        """Give an unfinished job back at once, as a worker does that is being stopped.

        The attempt does not count: the job did nothing wrong.

        Raises:
            Conflict: the job is no longer ours.
        """
        job = await self._held(session, claim)
        _end_lease(job)
        job.attempts -= 1
        _queue_again(job, self._now())
        await session.flush()

    async def succeed(self, session: Session, claim: Claim, result: dict[str, Any]) -> None:
        """
        Raises:
            Conflict: the job is no longer ours; its result belongs to nobody.
        """
        job = await self._held(session, claim)
        _end_lease(job)
        job.result, job.error = result, None
        _finish(job, JobState.SUCCEEDED, self._now())
        await session.flush()

    async def fail(
        self, session: Session, claim: Claim, error: dict[str, Any], *, is_final: bool = False
    ) -> JobState:
        """End this attempt: queued again with backoff, parked, failed for good, or cancelled.

        Args:
            error: a problem, as it is shown to the caller.
            is_final: trying again cannot help, as with a bad input.

        Raises:
            Conflict: the job is no longer ours.
        """
        job = await self._held(session, claim)
        _end_lease(job)
        if is_final:
            job.error = error
            _finish(job, JobState.FAILED, self._now())
        else:
            self._try_again(job, error, self._now())
        await session.flush()
        return job.state

    async def cancel(self, session: Session, tenant_id: str, job_id: str) -> JobState:
        """Cancel a waiting job; ask the worker of a running one, which learns it by heartbeat.

        Raises:
            NotFound: the tenant has no such job.
            Conflict: it has ended otherwise.
        """
        job = await _locked(session, tenant_id, job_id)
        if job is None:
            raise NotFound(f"There is no job {job_id}.")
        if job.state is JobState.QUEUED:
            _finish(job, JobState.CANCELLED, self._now())
        elif job.state is JobState.RUNNING:
            job.cancel_requested_at = job.cancel_requested_at or self._now()
        elif job.state is not JobState.CANCELLED:
            raise Conflict(f"{job_id} has {job.state.value} already.")
        await session.flush()
        return job.state

    async def confirm_cancelled(self, session: Session, claim: Claim) -> None:
        """
        Raises:
            Conflict: the job is no longer ours.
        """
        job = await self._held(session, claim)
        _end_lease(job)
        _finish(job, JobState.CANCELLED, self._now())
        await session.flush()

    def _lease_end(self, now: datetime) -> datetime:
        return now + timedelta(seconds=self._policy.lease_s)

    async def _held(self, session: Session, claim: Claim) -> Job:
        job = await _locked(session, claim.tenant_id, claim.job_id)
        if job is None or job.lease_token != claim.token:
            raise _lost(claim)
        return job

    def _try_again(self, job: Job, error: dict[str, Any], now: datetime) -> None:
        job.error = error
        if job.attempts >= self._policy.max_attempts and job.cancel_requested_at is None:
            _finish(job, JobState.PARKED, now)
        else:
            job.runnable_at = now + self._policy.backoff_after(job.attempts)
            _queue_again(job, now)


# A row this session has seen already would otherwise come back as it was then.
UNSEEN = {"populate_existing": True, "synchronize_session": False}


def _is(state: JobState) -> ColumnElement[bool]:
    """Written into the statement: a prepared plan cannot use an index over one state otherwise."""
    return Job.state == literal(state, Job.state.type, literal_execute=True)


def _pick_runnable(
    now: datetime, limit: int, tenant_id: str | None, priority: JobClass | None
) -> Select[str, str]:
    """SQLite writes one transaction at a time and has no `FOR UPDATE`; there it is left out."""
    picked = select(Job.tenant_id, Job.id).where(_is(JobState.QUEUED), Job.runnable_at <= now)
    if tenant_id is not None:
        picked = picked.where(Job.tenant_id == tenant_id)
    if priority is not None:
        picked = picked.where(Job.priority == priority)
    oldest = picked.order_by(Job.priority, Job.runnable_at, Job.id).limit(limit)
    return oldest.with_for_update(skip_locked=True)


def _claim_order(job: Job) -> tuple[int, datetime, str]:
    return job.priority, job.runnable_at, job.id


def _to_claim(job: Job) -> Claim:
    assert job.lease_token is not None, "a claimed job has a lease"
    assert job.lease_expires_at is not None, "a lease has an end"
    return Claim(
        tenant_id=job.tenant_id,
        job_id=job.id,
        token=job.lease_token,
        attempt=job.attempts,
        priority=job.priority,
        request=job.request,
        expires_at=job.lease_expires_at,
    )


def _ours(claim: Claim) -> Update:
    return update(Job).where(
        Job.tenant_id == claim.tenant_id, Job.id == claim.job_id, Job.lease_token == claim.token
    )


async def _locked(session: Session, tenant_id: str, job_id: str) -> Job | None:
    found = select(Job).where(Job.tenant_id == tenant_id, Job.id == job_id).with_for_update()
    return await session.scalar(found, execution_options=UNSEEN)


def _end_lease(job: Job) -> None:
    job.lease_owner = job.lease_token = job.lease_expires_at = None


def _queue_again(job: Job, now: datetime) -> None:
    """Unless somebody wanted it cancelled while it ran."""
    if job.cancel_requested_at is not None:
        _finish(job, JobState.CANCELLED, now)
    else:
        job.state = JobState.QUEUED


def _finish(job: Job, state: JobState, now: datetime) -> None:
    job.state = state
    job.finished_at = now


def _lost(claim: Claim) -> Conflict:
    return Conflict(f"The lease on {claim.job_id} is over; another worker may have it.")
