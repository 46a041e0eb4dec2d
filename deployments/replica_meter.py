"""How busy one expert replica is, how much waits in it, and what fails: a replica's utilisation,
saturation and errors, recorded where they happen."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

from serve.observing.meter import NO_METER, Meter


class ReplicaMeter:
    """From any thread. A few microseconds at each arrival, pass and step; nothing else."""

    def __init__(
        self,
        meter: Meter = NO_METER,
        versions: Collection[str] = (),
        now_s: Callable[[], float] = time.perf_counter,
    ):
        """
        Args:
            versions: that the replica holds; what belongs to all of them is parted equally, so
                that sums over versions are sums over replicas.
        """
        self._meter = meter
        self._versions = versions
        self._now_s = now_s
        # Reentrant: the batcher closes in a destructor, which may interrupt whoever holds it.
        self._lock = threading.RLock()
        self._waiting: Counter[str] = Counter()
        self._busy_since_s: float | None = None
        self._busy_with = ""
        for version in versions:
            meter.set("sm4ll_replica_queue_depth", 0.0, version=version)

    def started(self, seconds: float, num_gpus: float) -> None:
        """
        Args:
            seconds: that loading, warming up and checking took.
            num_gpus: that the replica was given; below 1, a share of one.
        """
        for version in self._versions:
            self._meter.set("sm4ll_replica_start_seconds", seconds, version=version)
            share = num_gpus / len(self._versions)
            self._meter.set("sm4ll_replica_gpu_share_ratio", share, version=version)

    def holds(self, gpu_bytes: int) -> None:
        for version in self._versions:
            part = gpu_bytes / len(self._versions)
            self._meter.set("sm4ll_replica_gpu_memory_bytes", part, version=version)

    def arrived(self, version: str) -> None:
        """One request waits more."""
        self._count(version, +1)

    def left(self, version: str) -> None:
        """One waits no longer, whatever came of it."""
        self._count(version, -1)

    def failed(self, version: str, code: str) -> None:
        self._meter.add("sm4ll_replica_errors_total", version=version, code=code)

    @contextmanager
    def running(
        self, version: str, waits_s: Sequence[float], num_requests: int
    ) -> Iterator["Pass"]:
        """The block is one pass; one that does not end by itself has no duration.

        Args:
            waits_s: of the requests that it is the first pass of.
        """
        for wait_s in waits_s:
            self._meter.observe("sm4ll_batch_wait_seconds", wait_s, version=version)
        self._meter.observe("sm4ll_batch_size", num_requests, version=version)
        started_s = self._now_s()
        with self._lock:
            self._busy_since_s, self._busy_with = started_s, version
        try:
            yield Pass(self, version, started_s)
        finally:
            ended_s = self._book(ends=True)
        self._meter.observe("sm4ll_pass_duration_seconds", ended_s - started_s, version=version)

    def look(self) -> None:
        """Book the time of the pass that runs now: a long one is not busy all at its end."""
        self._book()

    def observe_step(self, version: str, since_s: float) -> float:
        now_s = self._book()
        self._meter.observe("sm4ll_step_duration_seconds", now_s - since_s, version=version)
        return now_s

    def _book(self, *, ends: bool = False) -> float:
        with self._lock:
            now_s = self._now_s()
            since_s, version = self._busy_since_s, self._busy_with
            if since_s is not None:
                self._busy_since_s = None if ends else now_s
        if since_s is not None:
            self._meter.add("sm4ll_replica_busy_seconds_total", now_s - since_s, version=version)
        return now_s

    def _count(self, version: str, change: int) -> None:
        with self._lock:
            self._waiting[version] += change
            self._meter.set("sm4ll_replica_queue_depth", self._waiting[version], version=version)


class Pass:
    """One pass that runs."""

    def __init__(self, replica: ReplicaMeter, version: str, started_s: float):
        self._replica = replica
        self._version = version
        self._since_s = started_s

    def stepped(self) -> None:
        """One more step is done."""
        self._since_s = self._replica.observe_step(self._version, self._since_s)
