"""Transactions that meet on PostgreSQL wait for each other in one direction, and never for nothing.

Each test holds one of two by the lock on which the circle would close.
"""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import select, text, update

from serve.store.batch_progress import note_ended
from serve.store.batches import cancel_cells, get_batch, lock_batches
from serve.store.engine import Database, Session
from serve.store.ledger import Budget, reserve
from serve.store.picking import lock_tenant
from serve.store.tables import Job, JobState
from tests.stores import add_tenant, opened
from tests.test_batches import Desk
from tests.test_ledger import wish

pytestmark = pytest.mark.anyio

PATIENCE_S = 10.0
WAITING = text("SELECT count(*) FROM pg_locks WHERE NOT granted")


@pytest.fixture
async def desk(postgres_url: str, anyio_backend: str) -> AsyncIterator[Desk]:
    async with opened(postgres_url) as database:
        async with database.transaction() as session:
            for tenant_id in ("acme", "other"):
                await add_tenant(session, tenant_id)
        yield Desk(database)


async def until_one_waits(database: Database) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            async with database.reading() as session:
                if await session.scalar(WAITING):
                    return


async def reap(desk: Desk) -> int:
    async with desk.database.transaction() as session:
        return await desk.claims.reap(session)


async def hold(session: Session, job_id: str) -> None:
    await session.execute(select(Job.id).where(Job.id == job_id).with_for_update())


async def rewrite(desk: Desk, job_ids: list[str]) -> None:
    """The last comes first in the table now, where they are met without an order of our own."""
    for job_id in reversed(job_ids):
        async with desk.database.transaction() as session:
            await session.execute(update(Job).where(Job.id == job_id).values(subject=job_id))


async def test_reaping_takes_no_batch_before_a_ledger(desk: Desk) -> None:
    """One lost cell is queued again, a later one parked, while a third ends by itself."""
    batch_id = await desk.make(1, 3)
    await desk.claim()
    desk.clock.advance(1)
    (parked,) = await desk.claim()
    async with desk.database.transaction() as session:
        values = {"attempts": 99}
        await session.execute(update(Job).where(Job.id == parked.job_id).values(values))
    desk.clock.advance(3600)
    async with desk.database.transaction() as ending:
        await reserve(ending, [wish("job_3")], Budget(), desk.clock())
        reaping = asyncio.ensure_future(reap(desk))
        await until_one_waits(desk.database)
        async with asyncio.timeout(PATIENCE_S):
            await note_ended(ending, "acme", batch_id, desk.clock())
    assert await reaping == 2


async def test_heartbeats_lock_jobs_in_the_order_of_their_ids(desk: Desk) -> None:
    await desk.make(4, 10)
    claims = sorted(await desk.claim(40), key=lambda claim: claim.job_id)
    first, *others = [claim.job_id for claim in claims]
    await rewrite(desk, [first, *others])

    async def beat() -> int:
        async with desk.database.transaction() as session:
            return len(await desk.claims.keep(session, claims[::-1]))

    async with desk.database.transaction() as session:
        await hold(session, first)
        beating = asyncio.ensure_future(beat())
        await until_one_waits(desk.database)
        await expect_free(desk, others)
    assert await beating == 40


async def test_cancelling_a_batch_locks_its_jobs_in_the_order_of_their_ids(desk: Desk) -> None:
    batch_id = await desk.make(4, 10)
    first, *others = sorted(claim.job_id for claim in await desk.claim(40))
    await rewrite(desk, [first, *others])
    async with desk.database.transaction() as session:
        await hold(session, first)
        cancelling = asyncio.ensure_future(desk.batches.cancel(desk.caller, batch_id))
        await until_one_waits(desk.database)
        await expect_free(desk, others)
    await cancelling
    assert all(job.cancel_requested_at is not None for job in await desk.cells(batch_id))


async def expect_free(desk: Desk, job_ids: list[str]) -> None:
    free = select(Job.id).where(Job.id.in_(job_ids)).with_for_update(skip_locked=True)
    async with desk.database.transaction() as session:
        assert set(await session.scalars(free)) == set(job_ids)


async def test_cell_that_is_given_back_while_its_batch_is_cancelled_is_cancelled_too(
    desk: Desk,
) -> None:
    batch_id = await desk.make(1, 1)
    (claim,) = await desk.claim()
    async with desk.database.transaction() as giving_back:
        await desk.claims.release(giving_back, claim)

        async def cancel() -> int:
            async with desk.database.transaction() as session:
                batch = await get_batch(session, "acme", batch_id)
                return await cancel_cells(session, batch, desk.clock())

        cancelling = asyncio.ensure_future(cancel())
        await until_one_waits(desk.database)
    assert await cancelling == 1
    assert not await desk.claim()
    (cell,) = await desk.cells(batch_id)
    assert cell.state is JobState.CANCELLED


async def test_claiming_does_not_wait_for_a_batch_that_starts(desk: Desk) -> None:
    async with desk.database.transaction() as starting:
        await lock_batches(starting, "acme")
        async with asyncio.timeout(PATIENCE_S), desk.database.transaction() as session:
            assert await lock_tenant(session, "acme") == 0


async def test_two_claims_of_one_tenant_wait_for_each_other(desk: Desk) -> None:
    async def claim() -> int:
        async with desk.database.transaction() as session:
            return await lock_tenant(session, "acme")

    await desk.make(1, 1)
    async with desk.database.transaction() as session:
        assert await lock_tenant(session, "acme") == 0
        second = asyncio.ensure_future(claim())
        await until_one_waits(desk.database)
        await desk.claims.claim(session, "first", tenant_id="acme")
    assert await second == 1
