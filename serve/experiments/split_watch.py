"""Freezes an experiment whose arms do not get the units they were meant to get: exposures are lost
or counted twice, and no comparison of its arms means anything.

Rollouts watch their own. Whoever resumes a frozen experiment begins the count anew.
"""

import logging
import time
from collections.abc import Callable
from datetime import datetime

from serve.experiments.changes import FROZEN, RUNNING, as_live, set_state
from serve.experiments.desk import record_change
from serve.experiments.srm import SplitCheck, check_split
from serve.store.columns import utc_now
from serve.store.engine import Database
from serve.store.experiment_tables import Experiment, ExperimentAllocation
from serve.store.experiments import find_owner, lock_experiment
from serve.store.routing import list_assigning
from serve.store.splits import count_split

ACTOR = "split"
SPLIT_WATCH_S = 10.0
# Of one experiment's time, at most a twentieth is spent on counting it.
MIN_PAUSES = 19

logger = logging.getLogger(__name__)


class SplitWatch:
    """Any number of them may watch the same database."""

    def __init__(
        self,
        database: Database,
        now: Callable[[], datetime] = utc_now,
        now_s: Callable[[], float] = time.monotonic,
    ):
        self._database = database
        self._now = now
        self._now_s = now_s
        self._rest_until_s: dict[str, float] = {}

    async def turn(self) -> None:
        """Look at every experiment that runs, one after the other."""
        async with self._database.reading() as session:
            running = [rows for rows in await list_assigning(session) if rows[0].state is RUNNING]
        ids = {experiment.id for experiment, _ in running}
        self._rest_until_s = {k: s for k, s in self._rest_until_s.items() if k in ids}
        for experiment, allocation in running:
            if self._now_s() >= self._rest_until_s.get(experiment.id, 0.0):
                await self._look(experiment, allocation)

    async def _look(self, experiment: Experiment, allocation: ExperimentAllocation) -> None:
        begun_s = self._now_s()
        async with self._database.reading() as session:
            owner = await find_owner(session, experiment.id)
            # Every change of the experiment moves `updated_at`: what was seen before is done with.
            counts = await count_split(
                session, experiment.id, experiment.revision, experiment.updated_at
            )
        ended_s = self._now_s()
        self._rest_until_s[experiment.id] = ended_s + MIN_PAUSES * (ended_s - begun_s)
        ranges = as_live(experiment, allocation).allocation
        check = check_split({experiment.revision: counts}, {experiment.revision: ranges})
        if check.is_mismatch and owner is None:
            await self._freeze(experiment, check)

    async def _freeze(self, seen: Experiment, check: SplitCheck) -> None:
        async with self._database.transaction() as session:
            experiment = await lock_experiment(session, seen.id)
            if (experiment.state, experiment.updated_at) != (RUNNING, seen.updated_at):
                return  # somebody changed it meanwhile: what was counted says nothing about that
            now, reason = self._now(), check.words()
            await set_state(session, seen.id, FROZEN, reason=reason, now=now)
            detail = {"revision": seen.revision, "reason": reason, "found": dict(check.found)}
            await record_change(session, now, ACTOR, "experiment.freeze", seen.id, detail)
        logger.warning("experiment %s is frozen: %s", seen.id, reason)
