"""A job's row as its tenant reads it: the same in an answer, in a list and in a webhook."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, get_args

from serve.policy import Priority
from serve.schemas.jobs import JobCard, JobLinks, JobOutput, JobProblem
from serve.store.job_states import ENDED, tell_state
from serve.store.jobs import Place
from serve.store.tables import Job, JobClass, JobState

PRIORITIES: Mapping[JobClass, Priority] = {
    JobClass.INTERACTIVE: "interactive",
    JobClass.BATCH: "batch",
}
assert set(PRIORITIES.values()) == set(get_args(Priority))


def describe_job(
    job: Job, place: Place | None = None, estimated_start_at: datetime | None = None
) -> JobCard:
    """
    Args:
        place: none where it does not wait.
    """
    has_ended = job.state in ENDED
    return JobCard.model_validate(
        {
            "id": job.id,
            "status": tell_state(job.state),
            "parked": job.state is JobState.PARKED,
            "expert": job.version.partition("@")[0],
            "version": job.version,
            "priority": PRIORITIES[job.priority],
            "subject": job.subject,
            "attempts": job.attempts,
            "quote_gpu_s": job.predicted_gpu_ms / 1e3,
            "queue_position": None if place is None else place.position,
            "estimated_start_at": estimated_start_at,
            "created_at": job.created_at,
            "started_at": job.started_at,
            "finished_at": job.finished_at,
            "deadline_at": job.deadline_at,
            "cancel_requested": job.cancel_requested_at is not None and not has_ended,
            "batch": job.batch_id,
            "cell": job.cell,
            "outputs": tuple(describe_output(one) for one in outputs_of(job)),
            "receipt": (job.result or {}).get("receipt"),
            "error": None if job.error is None else JobProblem.model_validate(job.error),
            "links": describe_links(job),
        }
    )


def outputs_of(job: Job) -> list[dict[str, Any]]:
    return list((job.result or {}).get("outputs", []))


def describe_output(output: Mapping[str, Any]) -> JobOutput:
    return JobOutput.model_validate({**output, "url": f"/v1/assets/{output['asset']}/content"})


def describe_links(job: Job) -> JobLinks:
    path = f"/v1/jobs/{job.id}"
    has_ended = job.state in ENDED
    return JobLinks(self=path, events=f"{path}/events", cancel=None if has_ended else path)
