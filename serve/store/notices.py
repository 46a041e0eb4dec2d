"""What the end of a job sets off, in the transaction of that end: its webhook, its batch."""

from datetime import datetime

from serve.store.batch_progress import note_ended
from serve.store.engine import Session
from serve.store.job_cards import describe_job
from serve.store.job_states import tell_state
from serve.store.tables import Job
from serve.store.webhooks import enqueue


async def note_end(session: Session, job: Job, now: datetime) -> None:
    """The message says what a poll would say."""
    url = job.request.get("webhook_url")
    if url is not None:
        await enqueue(
            session,
            tenant_id=job.tenant_id,
            event=f"job.{tell_state(job.state)}",
            subject_id=job.id,
            url=url,
            payload=describe_job(job).model_dump(mode="json"),
            now=now,
        )
    if job.batch_id is not None:
        await note_ended(session, job.tenant_id, job.batch_id, now)
