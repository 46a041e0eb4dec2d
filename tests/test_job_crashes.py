"""Every job ends once and the ledger balances, whatever moment a runner dies in."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import cast

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, func, select

from serve.errors import GenerationFailed, InvalidImage, Overloaded, ReplicaLost
from serve.jobs.run import JobOutcome
from serve.jobs.runner import Runner
from serve.store.endings import FINISHED
from serve.store.engine import Database, Session
from serve.store.job_states import ENDED
from serve.store.ledger import read_counter
from serve.store.tables import (
    Job,
    JobEvent,
    JobState,
    LedgerEntry,
    LedgerState,
    UsageCounter,
)
from tests.stores import START, FakeClock, opened
from tests.test_job_runner import LEASE, OUTCOME, Shop


class Crash(Exception):
    """This process is gone."""


class Doomed:
    """A database until its process dies: at the n-th write, before or just after its commit."""

    def __init__(self, database: Database, num_writes: int, *, is_committed: bool):
        self._database = database
        self._left = num_writes
        self._is_committed = is_committed

    @property
    def is_dead(self) -> bool:
        return self._left <= 0

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Session]:
        self._check()
        async with self._database.transaction() as session:
            yield session
            self._check()
            self._left -= 1
            if self.is_dead and not self._is_committed:
                raise Crash
        self._check()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Session]:
        self._check()
        async with self._database.reading() as session:
            yield session
        self._check()

    def _check(self) -> None:
        if self.is_dead:
            raise Crash


FATES: list[Callable[[], JobOutcome | Exception]] = [
    lambda: OUTCOME,
    lambda: OUTCOME,
    lambda: GenerationFailed("black"),
    lambda: ReplicaLost("gone"),
    lambda: Overloaded("full", retry_after_s=1),
    lambda: InvalidImage("no picture"),
]


async def live(runner: Runner, clock: FakeClock, num_rounds: int) -> None:
    """Some rounds of a runner's life, or until it dies."""
    try:
        for _ in range(num_rounds):
            await runner.tidy()
            await runner.fill()
            await runner.watch()
            await runner.beat()
            await runner.settled()
            clock.advance(1)
    except Crash:
        await runner.settled()


async def play(url: str, lives: Sequence[tuple[int, bool]], seed: int) -> None:
    random = Random(seed)
    async with opened(url) as database:
        shop = Shop(database)
        shop.routers.answer = lambda run: random.choice(FATES)()
        async with database.transaction() as session:
            for table in (Job, LedgerEntry, UsageCounter):
                await session.execute(delete(table))
        ids = await shop.accept(6)
        for num_writes, is_committed in lives:
            doomed = Doomed(database, num_writes, is_committed=is_committed)
            shop.database = cast(Database, doomed)
            await live(shop.runner(in_all=random.randint(1, 4)), shop.clock, 4)
            shop.database = database
            if random.random() < 0.3:
                await try_cancel(shop, random.choice(ids))
            shop.clock.advance(LEASE.lease_s)
        for _ in range(40):
            is_over = await have_ended(shop, ids)
            await live(shop.runner(), shop.clock, 2)
            shop.clock.advance(LEASE.lease_s)
            if is_over:  # one life more had nothing left to do
                break
        await check_ends(shop, ids)


async def try_cancel(shop: Shop, job_id: str) -> None:
    if (await shop.job(job_id)).state not in ENDED:
        await shop.cancel(job_id)


async def have_ended(shop: Shop, ids: Sequence[str]) -> bool:
    return all([(await shop.job(job_id)).state in ENDED for job_id in ids])


async def check_ends(shop: Shop, ids: Sequence[str]) -> None:
    settled_ms = 0
    async with shop.database.reading() as session:
        for job_id in ids:
            job, entry = await shop.job(job_id), await shop.entry(job_id)
            assert job.state in ENDED
            ends = select(func.count()).where(JobEvent.job_id == job_id, JobEvent.kind == FINISHED)
            assert await session.scalar(ends) == 1
            last = select(JobEvent.kind).where(
                JobEvent.job_id == job_id, JobEvent.sequence == job.num_events
            )
            assert await session.scalar(last) == FINISHED
            has_succeeded = job.state is JobState.SUCCEEDED
            assert (entry.state is LedgerState.SETTLED) == has_succeeded
            settled_ms += 1200 * has_succeeded
        counter = await read_counter(session, "acme", START)
    assert (counter.reserved_gpu_ms, counter.settled_gpu_ms) == (0, settled_ms)


LIVES = st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=6)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(lives=LIVES, seed=st.integers(0, 2**32))
def test_every_job_ends_once_whatever_moment_its_runners_die_in(
    store_url: str, lives: Sequence[tuple[int, bool]], seed: int
) -> None:
    asyncio.run(play(store_url, lives, seed))
