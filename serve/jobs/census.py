"""Counts the jobs that have not ended, for whoever watches: by state and class, and how long the
oldest has waited."""

import time
from collections.abc import Callable, Mapping
from datetime import datetime

from serve.observing.meter import Meter
from serve.policy import Priority
from serve.store.columns import utc_now
from serve.store.engine import Database
from serve.store.jobs import OPEN_STATES, count_open
from serve.store.tables import JobClass

CENSUS_S = 5.0
# So many times as long as counting took, nothing is counted again: among 100,000 jobs it takes
# some tens of milliseconds.
PAUSE = 50.0
CLASSES: Mapping[JobClass, Priority] = {
    JobClass.INTERACTIVE: "interactive",
    JobClass.BATCH: "batch",
}


class Census:
    """Of one process; every runner counts all jobs of the database."""

    def __init__(
        self,
        database: Database,
        meter: Meter,
        now: Callable[[], datetime] = utc_now,
        clock_s: Callable[[], float] = time.monotonic,
    ):
        self._database = database
        self._meter = meter
        self._now = now
        self._clock_s = clock_s
        self._again_s = 0.0

    async def turn(self) -> None:
        """
        Raises:
            StoreUnavailable: the database does not answer; what was known stays.
        """
        began_s = self._clock_s()
        if began_s < self._again_s:
            return
        now = self._now()
        async with self._database.reading() as session:
            found = await count_open(session, now)
        counts = {(each.state, CLASSES[each.priority]): each.count for each in found}
        waits_s = {
            CLASSES[each.priority]: max(0.0, (now - each.since).total_seconds())
            for each in found
            if each.since is not None
        }
        for name in CLASSES.values():
            for state in OPEN_STATES:
                count = counts.get((state, name), 0)
                self._meter.set("sm4ll_jobs", count, state=state, **{"class": name})
            self._meter.set("sm4ll_job_oldest_seconds", waits_s.get(name, 0.0), **{"class": name})
        ended_s = self._clock_s()
        self._again_s = ended_s + PAUSE * (ended_s - began_s)
