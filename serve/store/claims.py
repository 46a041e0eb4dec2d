"""Which worker has which job: claimed with a lease, kept by heartbeats, given up by silence.

Every method works in the caller's transaction, so that what belongs together (a job's end, its
event, its settlement) is written together or not at all.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select, tuple_, update

from serve.errors import Conflict
from serve.store.batches import hold_if_paused
from serve.store.columns import utc_now
from serve.store.endings import NO_USAGE, Usage, end_job, end_lease
from serve.store.engine import Session
from serve.store.events import append_event
from serve.store.ids import ID
from serve.store.job_states import tell_state
from serve.store.jobs import unknown_job
from serve.store.leases import Claim, Heartbeat, LeasePolicy
from serve.store.picking import is_in, pick_runnable
from serve.store.tables import Job, JobClass, JobEvent, JobState

MAX_REAPED = 100
STARTED = "started"
QUEUED = "queued"
LOST = {
    "code": "worker_lost",
    "title": "The worker stopped",
    "detail": "The worker that ran this job stopped answering.",
}

LATE = {
    "code": "deadline_exceeded",
    "title": "The deadline passed",
    "detail": "The deadline passed while the job waited.",
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
        full_versions: Sequence[str] = (),
        full_tenants: Sequence[str] = (),
    ) -> list[Claim]:
        """Take the jobs that have been runnable longest, interactive ones first.

        Args:
            owner: who asks, for the person who looks at the table.
            tenant_id: only this tenant's, where a fair queue has chosen whose turn it is.
            full_versions, full_tenants: whose jobs are left where they are.
        """
        now = self._now()
        picked = pick_runnable(
            now,
            limit,
            tenant_id=tenant_id,
            priority=priority,
            full_versions=full_versions,
            full_tenants=full_tenants,
        ).cte("picked")
        taken = (
            update(Job)
            .where(tuple_(Job.tenant_id, Job.id).in_(select(picked.c.tenant_id, picked.c.id)))
            .values(
                state=JobState.RUNNING,
                attempts=Job.attempts + 1,
                num_events=Job.num_events + 1,
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
        session.add_all([_started(job, now) for job in jobs])
        await session.flush()
        return [_to_claim(job) for job in jobs]

    async def reap(self, session: Session) -> int:
        """Give back the jobs of workers that fell silent; says how many.

        Queued again after a pause, parked after too many attempts, cancelled where that was asked.
        """
        now = self._now()
        lapsed = (
            select(Job)
            .where(is_in(JobState.RUNNING), Job.lease_expires_at <= now)
            .order_by(Job.lease_expires_at)
            .limit(MAX_REAPED)
            .with_for_update(skip_locked=True)
        )
        jobs = list(await session.scalars(lapsed, execution_options=UNSEEN))
        # All rows are locked; ledgers and batches follow in the order in which everybody takes
        # them. What is queued again takes its batch and no ledger: after what ends.
        for job in sorted(jobs, key=self._lock_order):
            await self._try_again(session, job, LOST, now)
        await session.flush()
        return len(jobs)

    async def expire(self, session: Session) -> int:
        """End waiting jobs whose deadline has passed; says how many."""
        now = self._now()
        late = (
            select(Job)
            .where(is_in(JobState.QUEUED), Job.deadline_at.is_not(None), Job.deadline_at <= now)
            .order_by(Job.tenant_id, Job.id)
            .limit(MAX_REAPED)
            .with_for_update(skip_locked=True)
        )
        jobs = list(await session.scalars(late, execution_options=UNSEEN))
        for job in jobs:
            job.error = LATE
            await end_job(session, job, JobState.FAILED, now)
        return len(jobs)

    async def heartbeat(self, session: Session, claim: Claim) -> Heartbeat:
        """Keep the lease, also one that lapsed and that nobody has taken yet.

        Raises:
            Conflict: the job is no longer ours; stop working on it.
        """
        beats = await self.keep(session, [claim])
        if claim.job_id not in beats:
            raise _lost(claim)
        return beats[claim.job_id]

    async def keep(self, session: Session, claims: Sequence[Claim]) -> Mapping[str, Heartbeat]:
        """Keep many leases in one statement; a job that is absent in the answer is lost."""
        if not claims:
            return {}
        now = self._now()
        expires_at = self._lease_end(now)
        # Locked in one order, as by whoever cancels a batch: or each could wait for the other.
        ordered = select(Job.id).where(_are_ours(claims)).order_by(Job.tenant_id, Job.id)
        await session.execute(ordered.with_for_update())
        kept = (
            update(Job)
            .where(_are_ours(claims))
            .values(heartbeat_at=now, lease_expires_at=expires_at)
            .returning(Job.id, Job.cancel_requested_at)
            .execution_options(synchronize_session=False)
        )
        rows = await session.execute(kept)
        return {row.id: Heartbeat(expires_at, row.cancel_requested_at is not None) for row in rows}

    async def look(self, session: Session, claims: Sequence[Claim]) -> Mapping[str, bool]:
        """Whether cancelling was asked for, by job; writes nothing. An absent job is lost."""
        if not claims:
            return {}
        found = select(Job.id, Job.cancel_requested_at).where(_are_ours(claims))
        rows = await session.execute(found)
        return {row.id: row.cancel_requested_at is not None for row in rows}

    async def release(self, session: Session, claim: Claim) -> None:
        """Give an unfinished job back at once, as a worker does that is being stopped.

        The attempt does not count: the job did nothing wrong.

        Raises:
            Conflict: the job is no longer ours.
        """
        job = await self._held(session, claim)
        job.attempts -= 1
        now = self._now()
        await self._queue_again(session, job, now, now, {"reason": "released"})

    async def postpone(
        self, session: Session, claim: Claim, error: dict[str, Any], delay_s: float
    ) -> JobState:
        """Give a job back that found no capacity, for later; the attempt does not count.

        Raises:
            Conflict: the job is no longer ours.
        """
        job = await self._held(session, claim)
        job.attempts -= 1
        job.error = error
        now = self._now()
        runnable_at = now + timedelta(seconds=delay_s)
        await self._queue_again(session, job, now, runnable_at, _why(error))
        return job.state

    async def succeed(
        self, session: Session, claim: Claim, result: dict[str, Any], usage: Usage = NO_USAGE
    ) -> None:
        """
        Raises:
            Conflict: the job is no longer ours; its result belongs to nobody.
        """
        job = await self._held(session, claim)
        job.result, job.error = result, None
        await end_job(session, job, JobState.SUCCEEDED, self._now(), usage)

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
        if is_final:
            job.error = error
            await end_job(session, job, JobState.FAILED, self._now())
        else:
            await self._try_again(session, job, error, self._now())
        return job.state

    async def cancel(self, session: Session, tenant_id: str, job_id: str) -> JobState:
        """Cancel a waiting job; ask the worker of a running one, which learns it by looking.

        Raises:
            NotFound: the tenant has no such job.
            Conflict: it has ended otherwise.
        """
        job = await _locked(session, tenant_id, job_id) if ID.fullmatch(job_id) else None
        if job is None:
            raise unknown_job(job_id)
        if job.state is JobState.QUEUED:
            await end_job(session, job, JobState.CANCELLED, self._now())
        elif job.state is JobState.RUNNING:
            job.cancel_requested_at = job.cancel_requested_at or self._now()
        elif job.state is not JobState.CANCELLED:
            raise Conflict(
                f"{job_id} has ended already: it is {tell_state(job.state)}.",
                remedy="GET the job says how it ended",
            )
        await session.flush()
        return job.state

    async def confirm_cancelled(self, session: Session, claim: Claim) -> None:
        """
        Raises:
            Conflict: the job is no longer ours.
        """
        job = await self._held(session, claim)
        await end_job(session, job, JobState.CANCELLED, self._now())

    def _lease_end(self, now: datetime) -> datetime:
        return now + timedelta(seconds=self._policy.lease_s)

    async def _held(self, session: Session, claim: Claim) -> Job:
        job = await _locked(session, claim.tenant_id, claim.job_id)
        if job is None or job.lease_token != claim.token:
            raise _lost(claim)
        return job

    async def _try_again(
        self, session: Session, job: Job, error: dict[str, Any], now: datetime
    ) -> None:
        job.error = error
        if self._ends(job) and job.cancel_requested_at is None:
            await end_job(session, job, JobState.PARKED, now)
            return
        runnable_at = now + self._policy.backoff_after(job.attempts)
        await self._queue_again(session, job, now, runnable_at, _why(error))

    def _lock_order(self, job: Job) -> tuple[str, bool, str]:
        return job.tenant_id, not self._ends(job), job.batch_id or ""

    def _ends(self, job: Job) -> bool:
        """With this attempt, if it failed."""
        return job.cancel_requested_at is not None or job.attempts >= self._policy.max_attempts

    async def _queue_again(
        self,
        session: Session,
        job: Job,
        now: datetime,
        runnable_at: datetime,
        why: dict[str, Any],
    ) -> None:
        """Unless somebody wanted it cancelled while it ran."""
        if job.cancel_requested_at is not None:
            job.error = None
            await end_job(session, job, JobState.CANCELLED, now)
            return
        end_lease(job)
        job.state = JobState.QUEUED
        job.runnable_at = await hold_if_paused(session, job, runnable_at)
        await session.flush()
        told = {**why, "attempts": job.attempts, "runnable_at": runnable_at.isoformat()}
        await append_event(session, job.tenant_id, job.id, QUEUED, told, now)


# A row this session has seen already would otherwise come back as it was then.
UNSEEN = {"populate_existing": True, "synchronize_session": False}


def _why(error: dict[str, Any]) -> dict[str, Any]:
    return {"reason": error.get("code", "unknown"), "detail": error.get("detail", "")}


def _started(job: Job, now: datetime) -> JobEvent:
    return JobEvent(
        tenant_id=job.tenant_id,
        job_id=job.id,
        sequence=job.num_events,
        kind=STARTED,
        data={"attempt": job.attempts},
        at=now,
    )


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
        version=job.version,
        predicted_gpu_ms=job.predicted_gpu_ms,
        subject=job.subject,
        deadline_at=job.deadline_at,
    )


def _are_ours(claims: Sequence[Claim]) -> Any:
    held = [(claim.tenant_id, claim.job_id, claim.token) for claim in claims]
    return tuple_(Job.tenant_id, Job.id, Job.lease_token).in_(held)


async def _locked(session: Session, tenant_id: str, job_id: str) -> Job | None:
    found = select(Job).where(Job.tenant_id == tenant_id, Job.id == job_id).with_for_update()
    return await session.scalar(found, execution_options=UNSEEN)


def _lost(claim: Claim) -> Conflict:
    return Conflict(f"The lease on {claim.job_id} is over; another worker may have it.")
