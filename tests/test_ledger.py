"""A work item is charged once at most, and the sums are always those of the entries."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from random import Random

import pytest
from sqlalchemy import case, event, func, select

from serve.errors import QuotaExhausted
from serve.store.engine import Database
from serve.store.ledger import (
    Budget,
    Release,
    Reservation,
    Settlement,
    read_counter,
    release,
    release_expired,
    release_many,
    reserve,
    reserve_each,
    settle,
    settle_each,
)
from serve.store.tables import LedgerEntry, LedgerState, UsageCounter
from tests.stores import START, FakeClock, add_tenant, opened

pytestmark = pytest.mark.anyio

NO_LIMIT = Budget()
TENANTS = ("acme", "other")


def wish(
    work_item: str, gpu_ms: int = 1000, images: int = 1, tenant: str = "acme", expires_s: float = 0
) -> Reservation:
    return Reservation(
        tenant_id=tenant,
        work_item=work_item,
        key_id=None,
        expert="eye",
        version="eye@1",
        gpu_ms=gpu_ms,
        images=images,
        expires_at=START + timedelta(seconds=expires_s) if expires_s else None,
    )


def cost(work_item: str, gpu_ms: int = 700, images: int = 1, tenant: str = "acme") -> Settlement:
    return Settlement(tenant_id=tenant, work_item=work_item, gpu_ms=gpu_ms, images=images)


@pytest.fixture
async def ledger(database: Database) -> AsyncIterator["Ledger"]:
    async with database.transaction() as session:
        for tenant in TENANTS:
            await add_tenant(session, tenant)
    ledger = Ledger(database)
    yield ledger
    await ledger.check()


class Ledger:
    """Every call a transaction of its own; after a test the sums are compared."""

    def __init__(self, database: Database):
        self.database = database
        self.clock = FakeClock()

    async def reserve(self, *wanted: Reservation, budget: Budget = NO_LIMIT) -> None:
        async with self.database.transaction() as session:
            await reserve(session, wanted, budget, self.clock.now)

    async def reserve_each(
        self, *wanted: tuple[Reservation, Budget]
    ) -> Sequence[QuotaExhausted | None]:
        async with self.database.transaction() as session:
            return await reserve_each(session, wanted, self.clock.now)

    async def settle(self, work_item: str, gpu_ms: int = 700, tenant: str = "acme") -> bool:
        async with self.database.transaction() as session:
            return await settle(
                session, tenant, work_item, gpu_ms=gpu_ms, images=1, now=self.clock.now
            )

    async def release(self, work_item: str, tenant: str = "acme") -> bool:
        async with self.database.transaction() as session:
            return await release(session, tenant, work_item, self.clock.now)

    async def release_expired(self, limit: int = 500) -> int:
        async with self.database.transaction() as session:
            return await release_expired(session, self.clock.now, limit)

    async def sums(self, tenant: str = "acme") -> tuple[int, int, int, int]:
        async with self.database.reading() as session:
            counter = await read_counter(session, tenant, self.clock.now)
        return (
            counter.reserved_gpu_ms,
            counter.reserved_images,
            counter.settled_gpu_ms,
            counter.settled_images,
        )

    async def entry(self, work_item: str, tenant: str = "acme") -> LedgerEntry:
        async with self.database.reading() as session:
            return await session.get_one(LedgerEntry, (tenant, work_item))

    async def check(self) -> None:
        assert await read_sums(self.database) == await read_counters(self.database)


async def read_counters(database: Database) -> dict[tuple[str, str], tuple[int, ...]]:
    async with database.reading() as session:
        rows = (await session.scalars(select(UsageCounter))).all()
    found = {
        (row.tenant_id, row.period): (
            row.reserved_gpu_ms,
            row.reserved_images,
            row.settled_gpu_ms,
            row.settled_images,
        )
        for row in rows
    }
    return {key: sums for key, sums in found.items() if any(sums)}


async def read_sums(database: Database) -> dict[tuple[str, str], tuple[int, ...]]:
    """The same, added up from the entries."""
    is_open = LedgerEntry.state == LedgerState.RESERVED
    columns = (
        func.sum(case((is_open, LedgerEntry.reserved_gpu_ms), else_=0)),
        func.sum(case((is_open, LedgerEntry.reserved_images), else_=0)),
        func.sum(func.coalesce(LedgerEntry.settled_gpu_ms, 0)),
        func.sum(func.coalesce(LedgerEntry.settled_images, 0)),
    )
    by_day = select(LedgerEntry.tenant_id, LedgerEntry.day, *columns)
    sums: dict[tuple[str, str], tuple[int, ...]] = {}
    async with database.reading() as session:
        rows = await session.execute(by_day.group_by(LedgerEntry.tenant_id, LedgerEntry.day))
        for tenant_id, day, *amounts in rows:
            key = (tenant_id, f"{day:%Y-%m}")
            sums[key] = tuple(
                old + int(new) for old, new in zip(sums.get(key, (0,) * 4), amounts, strict=True)
            )
    return {key: found for key, found in sums.items() if any(found)}


async def test_reserved_then_settled_with_what_it_took(ledger: Ledger) -> None:
    await ledger.reserve(wish("a", 1000, 2))
    assert await ledger.sums() == (1000, 2, 0, 0)
    ledger.clock.advance(3)
    assert await ledger.settle("a", 1200)
    assert await ledger.sums() == (0, 0, 1200, 1)
    entry = await ledger.entry("a")
    assert (entry.state, entry.settled_gpu_ms, entry.day) == ("settled", 1200, START.date())
    assert (entry.created_at, entry.closed_at) == (START, START + timedelta(seconds=3))


async def test_released_costs_nothing(ledger: Ledger) -> None:
    await ledger.reserve(wish("a"), wish("b"), wish("c"))
    assert await ledger.release("a")
    async with ledger.database.transaction() as session:
        assert await release_many(session, "acme", ["a", "b", "nothing"], START) == 1
    assert await ledger.sums() == (1000, 1, 0, 0)


async def test_what_is_closed_stays_closed(ledger: Ledger) -> None:
    await ledger.reserve(wish("a"), wish("b"))
    assert await ledger.settle("a")
    assert not await ledger.settle("a", 9999)
    assert not await ledger.release("a")
    assert await ledger.release("b")
    assert not await ledger.settle("b")
    assert not await ledger.release("b")
    assert not await ledger.settle("never reserved")
    assert await ledger.sums() == (0, 0, 700, 1)


async def test_reserving_again_changes_nothing(ledger: Ledger) -> None:
    budget = Budget(gpu_ms=1000, images=1)
    await ledger.reserve(wish("a", 1000), budget=budget)
    await ledger.reserve(wish("a", 5000, 7), wish("a", 5000, 7), budget=budget)
    assert await ledger.sums() == (1000, 1, 0, 0)
    await ledger.settle("a", 900)
    await ledger.reserve(wish("a", 5000, 7), budget=budget)
    assert await ledger.sums() == (0, 0, 900, 1)


async def test_released_is_reserved_anew_so_that_a_second_try_is_paid(ledger: Ledger) -> None:
    await ledger.reserve(wish("a", 1000))
    await ledger.release("a")
    ledger.clock.advance(86_400)  # the next month
    await ledger.reserve(wish("a", 400))
    assert await ledger.sums() == (400, 1, 0, 0)
    assert await ledger.settle("a", 300)
    entry = await ledger.entry("a")
    assert (entry.day, entry.reserved_gpu_ms, entry.settled_gpu_ms) == (
        ledger.clock.now.date(),
        400,
        300,
    )


async def test_the_same_work_item_of_another_tenant_is_another(ledger: Ledger) -> None:
    await ledger.reserve(wish("a"))
    assert not await ledger.settle("a", tenant="other")
    await ledger.reserve(wish("a", 5, tenant="other"))
    assert await ledger.release("a", tenant="other")
    assert await ledger.sums() == (1000, 1, 0, 0)


@pytest.mark.parametrize(
    ("budget", "what"),
    [(Budget(gpu_ms=2500), "GPU-seconds"), (Budget(images=2), "images")],
)
async def test_budget_counts_what_is_reserved_and_settled(
    ledger: Ledger, budget: Budget, what: str
) -> None:
    await ledger.reserve(wish("a"), budget=budget)
    await ledger.settle("a", 1000)
    await ledger.reserve(wish("b"), budget=budget)
    with pytest.raises(QuotaExhausted, match=what) as refused:
        await ledger.reserve(wish("c"), budget=budget)
    assert refused.value.remedy
    await ledger.release("b")
    await ledger.reserve(wish("c"), budget=budget)


async def test_what_just_fits_is_reserved(ledger: Ledger) -> None:
    await ledger.reserve(wish("a", 1000, 2), budget=Budget(gpu_ms=1000, images=2))
    with pytest.raises(QuotaExhausted):
        await ledger.reserve(wish("b", 1, 0), budget=Budget(gpu_ms=1000, images=2))


async def test_refusal_says_when_the_next_month_begins(ledger: Ledger) -> None:
    with pytest.raises(QuotaExhausted) as refused:
        await ledger.reserve(wish("a", 1001), budget=Budget(gpu_ms=1000))
    assert refused.value.retry_after_s == 12 * 3600  # noon of 31 January


async def test_budget_that_only_running_work_fills_is_soon_free(ledger: Ledger) -> None:
    await ledger.reserve(wish("a", 900), budget=Budget(gpu_ms=1000))
    with pytest.raises(QuotaExhausted, match="reserved by work that still runs") as refused:
        await ledger.reserve(wish("b", 900), budget=Budget(gpu_ms=1000))
    assert refused.value.retry_after_s == 30


async def test_many_are_all_or_nothing(ledger: Ledger) -> None:
    with pytest.raises(QuotaExhausted, match="2 GPU-seconds are needed and 1.5"):
        await ledger.reserve(wish("a"), wish("b"), budget=Budget(gpu_ms=1500))
    assert await ledger.sums() == (0, 0, 0, 0)


async def test_refusal_leaves_the_callers_transaction_usable(ledger: Ledger) -> None:
    async with ledger.database.transaction() as session:
        with pytest.raises(QuotaExhausted):
            await reserve(session, [wish("a", 2)], Budget(gpu_ms=1), START)
        await reserve(session, [wish("b", 1)], Budget(gpu_ms=1), START)
    assert await ledger.sums() == (1, 1, 0, 0)


async def test_each_of_many_tenants_is_refused_for_itself(ledger: Ledger) -> None:
    tight, wide = Budget(gpu_ms=1500), Budget()
    outcomes = await ledger.reserve_each(
        (wish("a"), tight),
        (wish("b"), tight),
        (wish("a", tenant="other"), wide),
        (wish("c", 500), tight),
    )
    assert [outcome is None for outcome in outcomes] == [True, False, True, True]
    assert await ledger.sums() == (1500, 2, 0, 0)
    assert await ledger.sums("other") == (1000, 1, 0, 0)


async def test_reserved_and_closed_in_one_pass(ledger: Ledger) -> None:
    async with ledger.database.transaction() as session:
        await reserve(session, [wish("a"), wish("b")], NO_LIMIT, START)
        assert await settle_each(
            session,
            [cost("a"), Release(tenant_id="acme", work_item="b"), cost("a", 5), cost("x")],
            START,
        ) == [True, True, False, False]
    assert await ledger.sums() == (0, 0, 700, 1)


async def test_cost_belongs_to_the_month_of_the_reservation(ledger: Ledger) -> None:
    await ledger.reserve(wish("a"))
    january = await ledger.sums()
    ledger.clock.advance(86_400)
    assert january == (1000, 1, 0, 0)
    assert await ledger.settle("a")
    assert await ledger.sums() == (0, 0, 0, 0)  # February
    ledger.clock.advance(-86_400)
    assert await ledger.sums() == (0, 0, 700, 1)


async def test_month_is_utcs_whatever_the_clock_says(ledger: Ledger) -> None:
    ledger.clock.now = datetime.fromisoformat("2026-02-01T01:00:00+02:00")
    await ledger.reserve(wish("a"))
    assert (await ledger.entry("a")).day.isoformat() == "2026-01-31"
    ledger.clock.now = datetime(2026, 1, 5, tzinfo=UTC)
    assert await ledger.sums() == (1000, 1, 0, 0)


async def test_a_dead_routers_reservations_are_released_when_they_expire(ledger: Ledger) -> None:
    await ledger.reserve(wish("a", expires_s=60), wish("job"), wish("late", expires_s=61))
    await ledger.reserve(wish("o", tenant="other", expires_s=60))
    ledger.clock.advance(59)
    assert await ledger.release_expired() == 0
    ledger.clock.advance(1)
    assert await ledger.release_expired(limit=1) == 1
    assert await ledger.release_expired() == 1
    assert await ledger.release_expired() == 0
    assert not await ledger.settle("a")
    assert await ledger.sums() == (2000, 2, 0, 0)


async def test_expired_and_not_yet_swept_is_still_settled(ledger: Ledger) -> None:
    await ledger.reserve(wish("a", expires_s=60))
    ledger.clock.advance(90)
    assert await ledger.settle("a")
    assert await ledger.release_expired() == 0


async def test_a_batch_of_thousands_is_a_few_statements(ledger: Ledger) -> None:
    statements: list[str] = []
    event.listen(
        ledger.database.engine.sync_engine,
        "before_cursor_execute",
        lambda *args: statements.append(args[2]),
    )
    await ledger.reserve(*(wish(f"cell {index}") for index in range(2000)))
    assert len(statements) < 20
    async with ledger.database.transaction() as session:
        names = [f"cell {index}" for index in range(2000)]
        assert await release_many(session, "acme", names, START) == 2000
    assert await ledger.sums() == (0, 0, 0, 0)


def worth_ms(work_item: str) -> int:
    """The same whoever asks: settled at more than was reserved, a budget may be passed."""
    return Random(work_item).randint(0, 4000)


async def test_crowd_of_writers_never_exceeds_the_budget(store_url: str) -> None:
    """Eight processes' worth of connections over two tenants, two months and one set of items."""
    async with opened(store_url) as database:
        async with database.transaction() as session:
            for tenant in TENANTS:
                await add_tenant(session, tenant)
    budget = Budget(gpu_ms=10_000)
    settled: list[tuple[str, str]] = []

    async def act(index: int) -> None:
        random = Random(index)
        async with opened(store_url) as database:
            for _ in range(25):
                month = random.choice([0, 0, 1])
                now = START + timedelta(days=month)
                keys = random.sample([(t, f"{month}/{n}") for t in TENANTS for n in range(9)], 3)
                wanted = [(wish(n, worth_ms(n), tenant=t), budget) for t, n in keys]
                async with database.transaction() as session:
                    if random.random() < 0.5:
                        await reserve_each(session, wanted, now)
                        continue
                    keys[0] = (keys[0][0], f"{1 - month}/{random.randrange(9)}")
                    closings = [
                        cost(n, worth_ms(n) // 2, tenant=t)
                        if random.random() < 0.3
                        else Release(tenant_id=t, work_item=n)
                        for t, n in keys
                    ]
                    done = await settle_each(session, closings, now)
                for closing, is_closed in zip(closings, done, strict=True):
                    if is_closed and isinstance(closing, Settlement):
                        settled.append(closing.key)

    await asyncio.gather(*map(act, range(8)))
    assert len(settled) == len(set(settled))
    async with opened(store_url) as database:
        counters = await read_counters(database)
        assert counters == await read_sums(database)
        async with database.reading() as session:
            entries = (await session.scalars(select(LedgerEntry))).all()
    rows = {(e.tenant_id, e.work_item) for e in entries if e.state is LedgerState.SETTLED}
    assert rows == set(settled)
    assert all(sums[0] + sums[2] <= 10_000 for sums in counters.values())
