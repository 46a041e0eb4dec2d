"""A rollout in a database, with people who try things on and a clock that stands still."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import numpy as np

from serve.designs import Guardrail, RolloutPlan, Stage
from serve.experiments.allocation import load_allocation
from serve.experiments.controller import LEASE, RolloutController
from serve.experiments.rollout import READY, Readiness
from serve.experiments.steering import Steering
from serve.store.engine import Database
from serve.store.experiment_tables import Experiment, ExpertDefault
from serve.store.experiments import read_ranges
from serve.store.exposures import NewExposure, insert_exposures
from serve.store.rollout_tables import Rollout, RolloutDecision
from serve.store.rollouts import get_rollout, list_decisions
from serve.store.routing import read_revision
from tests.stores import START, FakeClock, add_tenant

STAGES = (
    Stage(share=0, shadow=10_000, min_exposures=30),
    Stage(share=2_000, min_exposures=30),
    Stage(share=5_000, min_exposures=30),
    Stage(share=10_000, min_exposures=0),
)
PLAN = RolloutPlan(
    expert="eye",
    version="eye@2",
    against="eye@1",
    stages=STAGES,
    guardrails=tuple(
        Guardrail(metric=name) for name in ("errors", "outside", "colour", "latency_ms")
    ),
    webhook_url="https://shop.invalid/hook",
)
ADMIN = "key_of_an_admin"
HARMLESS = {"colour": 1.0, "outside": 0.0}


class World:
    """One database; a controller may die at any time and another one comes."""

    def __init__(self, database: Database, seed: int = 0):
        self.database = database
        self.clock = FakeClock()
        self.steering = Steering(database, self.clock)
        self.readiness = READY
        self._random = np.random.default_rng(seed)
        self._number = 0

    async def begin(self, plan: RolloutPlan = PLAN) -> str:
        async with self.database.transaction() as session:
            await add_tenant(session)
        return (await self.steering.begin(ADMIN, "acme", plan)).id

    def controller(self, database: Database | None = None) -> RolloutController:
        return RolloutController(
            database or self.database,
            self.probe,
            now=self.clock,
            clock_s=lambda: (self.clock.now - START).total_seconds(),
        )

    async def probe(self, version: str) -> Readiness:
        assert version == "eye@2"
        return self.readiness

    def outlive_lease(self) -> None:
        self.clock.advance(LEASE.total_seconds() + 1)

    async def expose(
        self,
        rollout_id: str,
        num_units: int = 200,
        *,
        challenger: Mapping[str, float] | None = None,
        errors: float = 0.0,
        lost: float = 0.0,
    ) -> None:
        """Each unit once, on the arm of its bucket; in a shadow stage each painted by both.

        Args:
            challenger: what is measured on the challenger's pictures; as the control's when absent.
            errors: share of the challenger's requests that fail.
            lost: share of the challenger's exposures that never arrive.
        """
        rollout = await self.read(rollout_id)
        async with self.database.reading() as session:
            ranges = await read_ranges(session, rollout.experiment_id, rollout.revision)
        shares = load_allocation(ranges).shares()
        is_shadow = "challenger" not in shares
        rows: list[NewExposure] = []
        num_challenged = round(num_units * shares.get("challenger", 0) / 10_000)
        for index in range(num_units):
            arm = "challenger" if index < num_challenged else "control"
            self._number += 1
            rows.append(self._row(rollout, arm, HARMLESS))
            if is_shadow:
                rows.append(self._row(rollout, "challenger", HARMLESS, is_shadow=True))
        challenged = [row for row in rows if row.arm == "challenger"]
        num_kept = len(challenged) - round(lost * len(challenged))
        num_failed = round(errors * num_kept)
        changed = [row for row in rows if row.arm == "control"]
        for index, row in enumerate(challenged[:num_kept]):
            fails = {"code": "generation_failed", "is_failure": True, "metrics": {}}
            measured = {"metrics": self._measured(challenger or HARMLESS)}
            told = fails if index < num_failed else measured
            changed.append(replace_fields(row, told))
        async with self.database.transaction() as session:
            await insert_exposures(session, changed, self.clock.now + timedelta(days=30))

    def _row(
        self, rollout: Rollout, arm: str, metrics: Mapping[str, float], is_shadow: bool = False
    ) -> NewExposure:
        return NewExposure(
            tenant_id="acme",
            id=f"tr_{self._number:06}",
            is_shadow=is_shadow,
            experiment_id=rollout.experiment_id,
            revision=rollout.revision,
            arm=arm,
            version="eye@2" if arm == "challenger" else "eye@1",
            unit=f"{self._number:032x}",
            request_id=f"req-{self._number}",
            latency_ms=100 + float(self._random.normal(0, 5)),
            metrics=self._measured(metrics),
            at=self.clock.now,
        )

    def _measured(self, metrics: Mapping[str, float]) -> dict[str, float]:
        return {
            name: value + (abs(float(self._random.normal(0, 0.1))) if value else 0.0)
            for name, value in metrics.items()
        }

    async def read(self, rollout_id: str) -> Rollout:
        async with self.database.reading() as session:
            return await get_rollout(session, rollout_id)

    async def read_experiment(self, rollout_id: str) -> Experiment:
        rollout = await self.read(rollout_id)
        async with self.database.reading() as session:
            return await session.get_one(Experiment, rollout.experiment_id)

    async def read_shares(self, rollout_id: str) -> dict[str, int]:
        experiment = await self.read_experiment(rollout_id)
        async with self.database.reading() as session:
            ranges = await read_ranges(session, experiment.id, experiment.revision)
        return load_allocation(ranges).shares()

    async def read_default(self) -> ExpertDefault | None:
        async with self.database.reading() as session:
            return await session.get(ExpertDefault, "eye")

    async def read_routing_revision(self) -> int:
        async with self.database.reading() as session:
            return await read_revision(session)

    async def list_decisions(self, rollout_id: str) -> list[RolloutDecision]:
        """The oldest first, numbered without gaps."""
        async with self.database.reading() as session:
            rows = list(await list_decisions(session, rollout_id, limit=200))[::-1]
        assert [row.sequence for row in rows] == list(range(1, len(rows) + 1))
        assert (await self.read(rollout_id)).num_decisions == len(rows)
        return rows

    async def list_actions(self, rollout_id: str) -> list[str]:
        return [row.action for row in await self.list_decisions(rollout_id)]


def replace_fields(row: NewExposure, fields: Mapping[str, Any]) -> NewExposure:
    own = {name: getattr(row, name) for name in NewExposure.__dataclass_fields__}
    return NewExposure(**{**own, **fields})
