"""A job as its tenant reads it, with when it will probably start."""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

from serve.schemas.jobs import JobCard
from serve.store.columns import utc_now
from serve.store.job_cards import describe_job
from serve.store.jobs import Place
from serve.store.tables import Job


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
        starts_at = None if place is None else self._estimate(job, place)
        return describe_job(job, place, starts_at)

    def _estimate(self, job: Job, place: Place) -> datetime:
        num_replicas = max(1, self._num_replicas.get(job.version, 1))
        ahead_s = place.ahead_gpu_ms / 1e3 / num_replicas
        return max(self._now(), job.runnable_at) + timedelta(seconds=ahead_s)
