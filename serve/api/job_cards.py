"""A job's row as its tenant reads it."""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, get_args

from serve.policy import Priority
from serve.schemas.jobs import JobCard, JobLinks, JobOutput, JobProblem
from serve.store.columns import utc_now
from serve.store.endings import ENDED, tell_state
from serve.store.jobs import Place
from serve.store.tables import Job, JobClass, JobState

PRIORITIES: Mapping[JobClass, Priority] = {
    JobClass.INTERACTIVE: "interactive",
    JobClass.BATCH: "batch",
}
assert set(PRIORITIES.values()) == set(get_args(Priority))


class CardMaker:
    """Args:
    num_replicas: the most there may be, by version; an estimated start supposes them.
    """

    def __init__(
        self, num_replicas: Mapping[str, int], now: Callable[[], datetime] = utc_now
    ) -> None:
        self._num_replicas = dict(num_replicas)
        self._now = now

    def describe(self, job: Job, place: Place | None) -> JobCard:
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
                "estimated_start_at": None if place is None else self._estimate(job, place),
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

    def _estimate(self, job: Job, place: Place) -> datetime:
        num_replicas = max(1, self._num_replicas.get(job.version, 1))
        ahead_s = place.ahead_gpu_ms / 1e3 / num_replicas
        return max(self._now(), job.runnable_at) + timedelta(seconds=ahead_s)


def outputs_of(job: Job) -> list[dict[str, Any]]:
    return list((job.result or {}).get("outputs", []))


def describe_output(output: Mapping[str, Any]) -> JobOutput:
    return JobOutput.model_validate({**output, "url": f"/v1/assets/{output['asset']}/content"})


def describe_links(job: Job) -> JobLinks:
    path = f"/v1/jobs/{job.id}"
    has_ended = job.state in ENDED
    return JobLinks(self=path, events=f"{path}/events", cancel=None if has_ended else path)
