"""A batch is kept whole: its first cells are as old as its last one."""

from pathlib import Path

import pytest

from serve.policy import DAY_S
from serve.settings import Settings
from serve.store.engine import Database
from serve.store.opening import open_blobs
from serve.store.tables import Job
from serve.tenancy.assets import AssetStore
from serve.tenancy.idempotency import FirstAnswers
from serve.tenancy.retention import Sweeper
from tests.stores import add_tenant
from tests.test_batches import Desk

pytestmark = pytest.mark.anyio

KEPT_S = 30 * DAY_S
"""By a tenant that says nothing about it."""


@pytest.fixture
async def desk(database: Database) -> Desk:
    async with database.transaction() as session:
        await add_tenant(session)
    return Desk(database)


@pytest.fixture
def sweeper(desk: Desk, tmp_path: Path) -> Sweeper:
    blobs = open_blobs(Settings(data_dir=tmp_path))
    assets = AssetStore(desk.database, blobs, desk.clock)
    answers = FirstAnswers(desk.database, blobs, desk.clock)
    return Sweeper(desk.database, blobs, assets, answers, desk.clock)


async def test_cells_stay_until_their_batch_has_been_over_for_as_long(
    desk: Desk, sweeper: Sweeper
) -> None:
    batch_id = await desk.make(1, 2)
    first, last = await desk.claim(2)
    await desk.succeed(first)
    desk.clock.advance(KEPT_S + 1)
    await sweeper.run_once()
    await desk.succeed(last)
    assert (await desk.counts(batch_id))["succeeded"] == 2
    desk.clock.advance(KEPT_S - 1)
    await sweeper.run_once()
    assert (await desk.counts(batch_id))["succeeded"] == 2
    desk.clock.advance(1)
    report = await sweeper.run_once()
    assert (report.num_jobs, report.num_batches) == (2, 1)


async def test_draft_that_nobody_started_goes_and_what_runs_stays(
    desk: Desk, sweeper: Sweeper
) -> None:
    await desk.make(start=False)
    running = await desk.make(1, 1)
    desk.clock.advance(KEPT_S)
    assert (await sweeper.run_once()).num_batches == 1
    assert (await desk.get(running)).num_ended == 0
    assert await desk.count(Job) == 1
