"""Experiments from configs/experiments.yaml: made where they are missing, never changed afterwards.

One whose versions are not deployed yet assigns nobody until they are.
"""

from collections.abc import Callable, Sequence
from datetime import datetime

from serve.designs import WantedExperiment
from serve.errors import ConfigError, Conflict
from serve.experiments.changes import DRAFT, RUNNING, create_experiment
from serve.experiments.desk import record_change
from serve.store.audit import lock_audit
from serve.store.columns import utc_now
from serve.store.engine import Database
from serve.store.experiments import find_experiment

ACTOR = "seeds"


async def seed_experiments(
    database: Database,
    seeds: Sequence[WantedExperiment],
    now: Callable[[], datetime] = utc_now,
) -> tuple[str, ...]:
    """The ids of those that were made.

    Raises:
        ConfigError: one cannot run beside those that are there.
    """
    created = []
    for seed in seeds:
        async with database.transaction() as session:
            await lock_audit(session)
            if await find_experiment(session, seed.id) is not None:
                continue
            at = now()
            state = RUNNING if seed.start else DRAFT
            try:
                row = await create_experiment(
                    session, seed.design, created_by=ACTOR, now=at, state=state
                )
            except Conflict as exc:
                raise ConfigError(f"{seed.id}: {exc.detail}. What helps: {exc.remedy}.") from exc
            detail = {"design": row.design, "state": state.value}
            await record_change(session, at, ACTOR, "experiment.create", seed.id, detail)
            created.append(seed.id)
    return tuple(created)
