"""How a job ends: once, and with everything that hangs on it, or not at all.

Its state, its `finished` event, its settlement, its webhook and its batch's progress are one
transaction, so that no crash leaves one of them without the others.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from serve.errors import Conflict
from serve.store import ledger
from serve.store.engine import Session
from serve.store.events import append_event
from serve.store.job_states import ENDED, tell_state
from serve.store.notices import note_end
from serve.store.tables import Job, JobState

FINISHED = "finished"
"""Kind of the last event of every job."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a job that succeeded is charged for."""

    gpu_ms: int
    images: int
    upstream_microusd: int | None = None


NO_USAGE = Usage(gpu_ms=0, images=0)


async def end_job(
    session: Session, job: Job, state: JobState, now: datetime, usage: Usage = NO_USAGE
) -> None:
    """End a job whose row this transaction has locked, and whose result or error is set.

    Only what succeeded is charged: everything else gives its reservation back.

    Raises:
        Conflict: it has ended before; nothing of this may be written.
    """
    assert state in ENDED, f"{state} is no end"
    if job.state in ENDED:
        raise Conflict(f"{job.id} has {job.state.value} already.")
    end_lease(job)
    job.state = state
    job.finished_at = now
    await session.flush()
    await append_event(session, job.tenant_id, job.id, FINISHED, tell_end(job), now)
    if state is JobState.SUCCEEDED:
        await ledger.settle(
            session,
            job.tenant_id,
            job.id,
            gpu_ms=usage.gpu_ms,
            images=usage.images,
            upstream_microusd=usage.upstream_microusd,
            now=now,
        )
    else:
        await ledger.release(session, job.tenant_id, job.id, now)
    await note_end(session, job, now)


def end_lease(job: Job) -> None:
    job.lease_owner = job.lease_token = job.lease_expires_at = None


def tell_end(job: Job) -> dict[str, Any]:
    """What the last event, a webhook and a poll say alike."""
    told: dict[str, Any] = {"status": tell_state(job.state)}
    if job.state is JobState.SUCCEEDED:
        told["outputs"] = (job.result or {}).get("outputs", [])
    elif job.error is not None:
        told["error"] = job.error
    if job.state is JobState.PARKED:
        told["parked"] = True
    return told
