"""An arm that loses a fifth of its exposures freezes its experiment; a right split does not."""

from collections.abc import Iterable

import pytest

from serve.designs import Arm, ExperimentDesign
from serve.experiments.assignment import Assignment, LiveExperiment, Party, assign
from serve.experiments.changes import FROZEN, RUNNING, as_live, create_experiment
from serve.experiments.desk import ExperimentDesk
from serve.experiments.split_watch import SplitWatch
from serve.policy import TenantPolicy
from serve.store.audit import list_records
from serve.store.engine import Database
from serve.store.experiment_tables import Experiment, ExperimentState
from serve.store.experiments import get_experiment
from serve.store.exposures import NewExposure, insert_exposures
from serve.store.rollout_tables import Rollout, RolloutState
from serve.store.routing import list_assigning
from tests.stores import START, FakeClock, add_tenant

pytestmark = pytest.mark.anyio

DESIGN = ExperimentDesign(
    id="eye-2",
    expert="eye",
    arms=(
        Arm(name="control", version="eye@1", weight=5_000),
        Arm(name="new", version="eye@2", weight=5_000),
    ),
)
NUM_UNITS = 4_000


@pytest.fixture
async def live(database: Database) -> LiveExperiment:
    async with database.transaction() as session:
        await add_tenant(session)
        await create_experiment(session, DESIGN, created_by="t", now=START, state=RUNNING)
        (live,) = [as_live(*rows) for rows in await list_assigning(session)]
    return live


def draw(live: LiveExperiment, lost: int, prefix: str = "u") -> Iterable[Assignment]:
    """Everybody's arm, without one in `lost` of the challenger's."""
    for number in range(NUM_UNITS):
        party = Party(tenant_id="acme", request_id="r", user=f"{prefix}{number}")
        found = assign(live, party, TenantPolicy())
        assert found is not None
        if not (lost and found.arm == "new" and number % lost == 0):
            yield found


async def expose(database: Database, clock: FakeClock, assignments: Iterable[Assignment]) -> None:
    rows = [
        NewExposure(
            tenant_id="acme", id=f"tr_{one.unit}", is_shadow=False, experiment_id="eye-2",
            revision=one.revision, arm=one.arm, version=one.version, unit=one.unit,
            request_id=one.unit, category="", tags={}, code="", is_failure=False,
            latency_ms=1.0, gpu_ms=1, upstream_microusd=None, seed=None, metrics={},
            pictures=None, at=clock.now,
        )
        for one in assignments
    ]  # fmt: skip
    async with database.transaction() as session:
        await insert_exposures(session, rows, clock.now)


async def state_of(database: Database) -> tuple[ExperimentState, str]:
    async with database.reading() as session:
        row: Experiment = await get_experiment(session, "eye-2")
    return row.state, row.reason


async def test_a_split_as_it_was_asked_for_runs_on(
    database: Database, live: LiveExperiment
) -> None:
    clock = FakeClock()
    await expose(database, clock, draw(live, lost=0))
    await SplitWatch(database, clock).turn()
    assert await state_of(database) == (RUNNING, "")


async def test_lost_exposures_freeze_it_until_somebody_resumes_it(
    database: Database, live: LiveExperiment
) -> None:
    clock = FakeClock()
    await expose(database, clock, draw(live, lost=5))
    clock.advance(60)
    watch = SplitWatch(database, clock, lambda: clock.now.timestamp())
    await watch.turn()
    state, reason = await state_of(database)
    assert state is FROZEN
    assert "the split is not the one that was asked for" in reason
    await watch.turn()
    async with database.reading() as session:
        acts = [(r.actor, r.action) for r in await list_records(session, limit=9)]
    assert acts == [("split", "experiment.freeze")], "and once only"
    desk = ExperimentDesk(database, lambda: ("eye@1", "eye@2"), clock)
    await desk.act("key", "eye-2", "resume", "the exporter was repaired")
    await watch.turn()
    assert (await state_of(database))[0] is RUNNING, "what was seen before is done with"
    clock.advance(60)
    await expose(database, clock, draw(live, lost=5, prefix="v"))
    await watch.turn()
    assert (await state_of(database))[0] is FROZEN


async def test_a_rollouts_experiment_is_left_to_the_rollout(
    database: Database, live: LiveExperiment
) -> None:
    clock = FakeClock()
    await expose(database, clock, draw(live, lost=5))
    async with database.transaction() as session:
        session.add(
            Rollout(
                id="rol_1", told_tenant_id="acme", experiment_id="eye-2", expert="eye", plan={},
                state=RolloutState.RUNNING, stage=0, revision=1, stage_started_at=START,
                num_decisions=0, numbers={}, created_by="t", created_at=START, updated_at=START,
            )
        )  # fmt: skip
    await SplitWatch(database, clock).turn()
    assert (await state_of(database))[0] is RUNNING
