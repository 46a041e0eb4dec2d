"""No crash between any two writes charges twice, charges nothing promised, or holds a reservation.

A crash is an exception at the n-th thing that reaches the database: each statement, the commit,
or the moment after the commit when nobody hears of it. Whoever crashed knows nothing any more and
begins again with the same work item, as a retry, a replay and another router do.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, func, select

from serve.errors import QuotaExhausted
from serve.store.engine import Database, Session
from serve.store.ledger import (
    Budget,
    Reservation,
    release,
    release_expired,
    reserve,
    settle,
)
from serve.store.tables import LedgerEntry, LedgerState
from tests.stores import FakeClock, add_tenant, opened
from tests.test_ledger import read_counters, read_sums

EXPIRY_S = 90.0
BUDGET = Budget(gpu_ms=3000)
TENANTS = (f"t{number}" for number in count())

Act = Callable[[Session], Awaitable[object]]


class Crash(Exception):
    """The process is gone."""


class Faults:
    """Counts down what reaches the database, and crashes at zero."""

    def __init__(self, database: Database):
        self._left: int | None = None
        engine = database.engine.sync_engine
        event.listen(engine, "before_cursor_execute", lambda *_: self.tick())

    def arm(self, after: int | None) -> None:
        self._left = after

    def tick(self) -> None:
        if self._left is None:
            return
        if self._left == 0:
            self._left = None
            raise Crash
        self._left -= 1


@dataclass
class World:
    """One tenant's work, and what must be true of it after every step."""

    database: Database
    faults: Faults
    tenant: str = field(default_factory=lambda: next(TENANTS))
    clock: FakeClock = field(default_factory=FakeClock)
    wanted: set[str] = field(default_factory=set)
    charged: dict[str, int] = field(default_factory=dict)

    async def do(self, act: Act, crash_at: int | None = None) -> bool:
        """One transaction; False when it crashed on its way or after its commit."""
        self.faults.arm(crash_at)
        try:
            async with self.database.transaction() as session:
                await act(session)
                self.faults.tick()  # before the commit
            self.faults.tick()  # after it
        except Crash:
            return False
        finally:
            self.faults.arm(None)
        return True

    async def reserve(self, item: str, gpu_ms: int = 1000, crash_at: int | None = None) -> bool:
        self.wanted.add(item)
        is_job = item.startswith("job")
        expires_at = None if is_job else self.clock.now + timedelta(seconds=EXPIRY_S)
        reservation = Reservation(
            tenant_id=self.tenant,
            work_item=item,
            key_id=None,
            expert="eye",
            version="eye@1",
            gpu_ms=gpu_ms,
            images=1,
            expires_at=expires_at,
        )
        with suppress(QuotaExhausted):
            return await self.do(
                lambda session: reserve(session, [reservation], BUDGET, self.clock.now), crash_at
            )
        return False

    async def settle(self, item: str, gpu_ms: int, crash_at: int | None = None) -> bool:
        return await self.do(
            lambda session: settle(
                session, self.tenant, item, gpu_ms=gpu_ms, images=1, now=self.clock.now
            ),
            crash_at,
        )

    async def release(self, item: str, crash_at: int | None = None) -> bool:
        return await self.do(
            lambda session: release(session, self.tenant, item, self.clock.now), crash_at
        )

    async def sweep(self, crash_at: int | None = None) -> bool:
        return await self.do(lambda session: release_expired(session, self.clock.now), crash_at)

    async def check(self) -> None:
        counters, sums = await read_counters(self.database), await read_sums(self.database)
        assert counters == sums
        entries = await self.entries()
        for entry in entries:
            assert entry.work_item in self.wanted
            if entry.state is LedgerState.SETTLED:
                assert entry.settled_gpu_ms is not None
                charged = self.charged.setdefault(entry.work_item, entry.settled_gpu_ms)
                assert charged == entry.settled_gpu_ms, f"{entry.work_item} was charged again"
        settled = {each.work_item for each in entries if each.state is LedgerState.SETTLED}
        assert settled == set(self.charged), "what was charged is not taken back"

    async def end(self) -> None:
        """Jobs are ended by whoever claims them next; the rest expires. Nothing stays reserved."""
        for entry in await self.entries():
            if entry.work_item.startswith("job"):
                await self.release(entry.work_item)
        self.clock.advance(EXPIRY_S)
        assert await self.sweep()
        await self.check()
        async with self.database.reading() as session:
            is_open = LedgerEntry.state == LedgerState.RESERVED
            found = select(func.count()).where(is_open, LedgerEntry.tenant_id == self.tenant)
            assert await session.scalar(found) == 0

    async def entries(self) -> Sequence[LedgerEntry]:
        mine = select(LedgerEntry).where(LedgerEntry.tenant_id == self.tenant)
        async with self.database.reading() as session:
            return (await session.scalars(mine)).all()


async def begin(database: Database, faults: Faults) -> World:
    world = World(database, faults)
    async with database.transaction() as session:
        await add_tenant(session, world.tenant)
    return world


@pytest.mark.parametrize("item", ["tr_1", "job_1"])
@pytest.mark.parametrize("crashes_in", ["reserve", "settle", "release", "sweep"])
def test_crash_at_every_write_of_a_work_items_life(
    store_url: str, item: str, crashes_in: str
) -> None:
    """Every n until one run meets no crash; after each the same work begins again and ends."""

    async def live(world: World, crash_at: int) -> bool:
        at = {crashes_in: crash_at}
        reached = await world.reserve(item, crash_at=at.get("reserve"))
        await world.check()
        if crashes_in == "release":
            reached &= await world.release(item, at["release"])
        elif crashes_in == "sweep":
            world.clock.advance(EXPIRY_S)
            reached &= await world.sweep(at["sweep"])
        else:
            reached &= await world.settle(item, 700, at.get("settle"))
        await world.check()
        await world.reserve(item)  # the retry, with another cost
        await world.settle(item, 800)
        await world.check()
        await world.settle(item, 900)
        await world.release(item)
        await world.check()
        assert set(world.charged) == {item}
        await world.end()
        return reached

    async def play() -> None:
        async with opened(store_url) as database:
            faults = Faults(database)
            for crash_at in count():
                if await live(await begin(database, faults), crash_at):
                    # Reserving is four statements, a commit and the silence after it.
                    assert crash_at >= (3 if crashes_in == "sweep" else 5)
                    return

    asyncio.run(play())


ITEMS = st.sampled_from(["tr_1", "tr_2", "job_1", "job_2"])
CRASHES = st.one_of(st.none(), st.integers(0, 8))
STEPS = st.tuples(
    st.sampled_from(["reserve", "settle", "release", "replay", "sweep", "wait"]),
    ITEMS,
    st.integers(0, 2000),
    CRASHES,
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(STEPS, min_size=4, max_size=25))
def test_any_history_with_crashes_balances(
    store_url: str, steps: Sequence[tuple[str, str, int, int | None]]
) -> None:
    async def play() -> None:
        async with opened(store_url) as database:
            world = await begin(database, Faults(database))
            for name, item, gpu_ms, crash_at in steps:
                await step(world, name, item, gpu_ms, crash_at)
                await world.check()
            await world.end()

    async def step(world: World, name: str, item: str, gpu_ms: int, crash_at: int | None) -> None:
        if name == "reserve":
            await world.reserve(item, gpu_ms, crash_at)
        elif name == "settle":
            await world.settle(item, gpu_ms, crash_at)
        elif name == "release":
            await world.release(item, crash_at)
        elif name == "replay":
            await world.reserve(item, gpu_ms)
            await world.settle(item, gpu_ms, crash_at)
            await world.settle(item, gpu_ms + 1)
        elif name == "sweep":
            await world.sweep(crash_at)
        else:
            world.clock.advance(EXPIRY_S * 0.6)

    asyncio.run(play())
