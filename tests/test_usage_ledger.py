"""One transaction for what comes together; a caller waits only for what its answer stands on."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection

from serve.errors import Conflict, QuotaExhausted, StoreUnavailable
from serve.store.engine import Database
from serve.store.ledger import Budget, read_counter, release_expired
from serve.store.tables import LedgerEntry, LedgerState
from serve.tenancy.account import EXPIRY_MARGIN_S, Account, Quote
from serve.tenancy.ledger import MAX_HEAD_START_S, MIN_HEAD_START_S, UsageLedger
from tests.stores import START, FakeClock, add_tenant
from tests.test_ledger import cost, read_counters, read_sums, wish

pytestmark = pytest.mark.anyio

NO_LIMIT = Budget()


class Disk(Database):
    """A database whose transactions can be held up and made to fail."""

    def __init__(self, database: Database):
        self._real = database
        self.num_writes = 0
        self.error: Exception | None = None
        self.is_open = asyncio.Event()
        self.is_open.set()
        self.is_asked = asyncio.Event()

    async def write(self, work: Callable[[Connection], Any]) -> Any:
        self.num_writes += 1
        self.is_asked.set()
        await self.is_open.wait()
        if self.error is not None:
            raise self.error
        return await self._real.write(work)


@pytest.fixture
async def disk(database: Database) -> AsyncIterator[Disk]:
    async with database.transaction() as session:
        for tenant in ("acme", "other"):
            await add_tenant(session, tenant)
    yield Disk(database)
    for _ in range(100):  # a settlement that nobody waits for may come between the two
        if await read_counters(database) == await read_sums(database):
            return
        await asyncio.sleep(0.05)
    assert await read_counters(database) == await read_sums(database)


@pytest.fixture
def ledger(disk: Disk) -> UsageLedger:
    return UsageLedger(disk, FakeClock())


def account(ledger: UsageLedger, work_item: str = "tr_1", budget: Budget = NO_LIMIT) -> Account:
    return Account(ledger=ledger, tenant_id="acme", key_id=None, work_item=work_item, budget=budget)


def quote(gpu_s: float = 1.0) -> Quote:
    return Quote(expert="eye", version="eye@1", gpu_s=gpu_s, images=1, timeout_s=30)


async def entry(database: Disk, work_item: str = "tr_1") -> LedgerEntry:
    async with database._real.reading() as session:
        return await session.get_one(LedgerEntry, ("acme", work_item))


async def test_what_comes_together_is_one_transaction(ledger: UsageLedger, disk: Disk) -> None:
    waiting = [ledger.reserve(wish(f"tr_{index}"), NO_LIMIT) for index in range(20)]
    assert await asyncio.gather(*waiting) == [True] * 20
    assert disk.num_writes == 1


async def test_what_comes_while_one_is_written_is_the_next(ledger: UsageLedger, disk: Disk) -> None:
    disk.is_open.clear()
    first = ledger.reserve(wish("a"), NO_LIMIT)
    await disk.is_asked.wait()
    rest = [ledger.reserve(wish(f"b{index}"), NO_LIMIT) for index in range(5)]
    disk.is_open.set()
    await asyncio.gather(first, *rest)
    assert disk.num_writes == 2


async def test_settlement_rides_with_the_next_reservation(ledger: UsageLedger, disk: Disk) -> None:
    await ledger.reserve(wish("tr_1"), NO_LIMIT)
    ledger.close(cost("tr_1"))
    await ledger.reserve(wish("tr_2"), NO_LIMIT)
    assert disk.num_writes == 2
    assert (await entry(disk)).state is LedgerState.SETTLED


async def test_settlement_alone_is_written_soon(ledger: UsageLedger, disk: Disk) -> None:
    await ledger.reserve(wish("tr_1"), NO_LIMIT)
    disk.is_asked.clear()
    ledger.close(cost("tr_1"))
    await asyncio.wait_for(disk.is_asked.wait(), 5)
    await ledger.flush()
    assert (await entry(disk)).state is LedgerState.SETTLED


async def test_nothing_pending_is_lost_at_shut_down(ledger: UsageLedger, disk: Disk) -> None:
    waiting = [ledger.reserve(wish(f"tr_{index}"), NO_LIMIT) for index in range(600)]
    for index in range(600):
        ledger.close(cost(f"tr_{index}"))
    await ledger.shut_down()
    assert all(each.result() for each in waiting)
    async with disk._real.reading() as session:
        counter = await read_counter(session, "acme", START)
    assert (counter.reserved_gpu_ms, counter.settled_images) == (0, 600)


async def test_released_and_reserved_again_ends_reserved(ledger: UsageLedger, disk: Disk) -> None:
    await ledger.reserve(wish("tr_1"), NO_LIMIT)
    async with account(ledger).charge(quote()):
        pass  # released, not yet written
    await ledger.reserve(wish("tr_1", 5), NO_LIMIT)
    assert (await entry(disk)).state is LedgerState.RESERVED


async def test_one_bad_posting_fails_alone(ledger: UsageLedger) -> None:
    good = ledger.reserve(wish("a"), NO_LIMIT)
    bad = ledger.reserve(wish("b", tenant="nobody"), NO_LIMIT)
    also = ledger.reserve(wish("c"), NO_LIMIT)
    assert await good
    assert await also
    with pytest.raises(Conflict):
        await bad


async def test_refusal_is_the_callers_own(ledger: UsageLedger) -> None:
    fits = ledger.reserve(wish("a", 600), Budget(gpu_ms=1000))
    no = ledger.reserve(wish("b", 600), Budget(gpu_ms=1000))
    other = ledger.reserve(wish("c", 600, tenant="other"), Budget(gpu_ms=1000))
    assert await fits
    assert await other
    with pytest.raises(QuotaExhausted):
        await no


async def test_away_database_fails_who_waits_and_keeps_what_is_settled(
    ledger: UsageLedger, disk: Disk
) -> None:
    await ledger.reserve(wish("tr_1"), NO_LIMIT)
    disk.error = StoreUnavailable("away")
    ledger.close(cost("tr_1"))
    with pytest.raises(StoreUnavailable):
        await ledger.reserve(wish("tr_2"), NO_LIMIT)
    disk.error = None
    await ledger.flush()
    assert (await entry(disk)).state is LedgerState.SETTLED


async def test_commit_that_succeeded_unseen_charges_once(ledger: UsageLedger, disk: Disk) -> None:
    await ledger.reserve(wish("tr_1"), NO_LIMIT)
    write = disk._real.write

    async def write_and_lose(work: Callable[[Connection], Any]) -> Any:
        await write(work)
        raise StoreUnavailable("the connection broke after the commit")

    disk._real.write = write_and_lose  # type: ignore[method-assign]
    ledger.close(cost("tr_1"))
    await ledger.flush()
    disk._real.write = write  # type: ignore[method-assign]
    await ledger.flush()
    assert (await entry(disk)).settled_gpu_ms == 700


async def test_a_mistake_of_ours_leaves_nobody_waiting(ledger: UsageLedger, disk: Disk) -> None:
    disk.error = KeyError("a bug")
    with pytest.raises(StoreUnavailable):
        await ledger.reserve(wish("a"), NO_LIMIT)
    disk.error = None
    assert await ledger.reserve(wish("a"), NO_LIMIT)


async def test_charge_is_settled_with_what_it_took(ledger: UsageLedger, disk: Disk) -> None:
    async with account(ledger).charge(quote(2.0)) as charge:
        await charge.settle(gpu_ms=1234, images=1, upstream_microusd=75_000)
        row = await entry(disk)
        assert (row.state, row.reserved_gpu_ms) == (LedgerState.RESERVED, 2000)
        assert row.expires_at == START + timedelta(seconds=30 + EXPIRY_MARGIN_S)
    await ledger.flush()
    row = await entry(disk)
    assert (row.settled_gpu_ms, row.settled_images, row.upstream_microusd) == (1234, 1, 75_000)


async def test_charge_that_fails_or_is_cancelled_is_released(
    ledger: UsageLedger, disk: Disk
) -> None:
    for work_item, error in (("tr_1", ValueError()), ("tr_2", asyncio.CancelledError())):
        with suppress(type(error)):
            async with account(ledger, work_item).charge(quote()):
                raise error
        await ledger.flush()
        assert (await entry(disk, work_item)).state is LedgerState.RELEASED


async def test_expert_is_asked_before_the_disk_while_the_budget_is_ample(
    ledger: UsageLedger, disk: Disk
) -> None:
    disk.is_open.clear()
    async with account(ledger).charge(quote()) as charge:
        charge.check()  # nothing is known against it
        settling = asyncio.ensure_future(charge.settle(gpu_ms=5, images=1))
        await disk.is_asked.wait()
        assert not settling.done()  # the answer waits for the disk
        disk.is_open.set()
        await settling


async def test_an_answer_waits_for_no_head_start(
    ledger: UsageLedger, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "_head_start_s", 3600.0)
    async with account(ledger).charge(quote()) as charge:
        await asyncio.wait_for(charge.settle(gpu_ms=700, images=1), 5)
    await ledger.flush()
    assert (await entry(disk)).state is LedgerState.SETTLED


async def test_what_comes_while_one_is_written_goes_together_and_waits_for_whoever_waits(
    ledger: UsageLedger, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "_head_start_s", 3600.0)
    disk.is_open.clear()
    first = ledger.reserve(wish("tr_1"), NO_LIMIT)
    await disk.is_asked.wait()
    others = [ledger.reserve(wish(f"tr_{n}"), NO_LIMIT, is_awaited=False) for n in range(2, 9)]
    disk.is_open.set()
    await first
    await asyncio.sleep(0)
    assert not any(other.done() for other in others)  # nobody waits for them yet
    num_before = disk.num_writes
    ledger.hurry()
    await asyncio.wait_for(asyncio.gather(*others), 5)
    assert disk.num_writes == num_before + 1


async def test_the_head_start_is_half_of_what_work_takes_until_it_needs_its_reservation(
    ledger: UsageLedger,
) -> None:
    for lead_s, head_start_s in ((0.012, 0.006), (30.0, MAX_HEAD_START_S), (0.0, MIN_HEAD_START_S)):
        for _ in range(100):
            ledger.note_lead(lead_s)
        assert ledger._head_start_s == pytest.approx(head_start_s, rel=0.01)


async def test_a_reservation_waits_less_than_the_settlement_before_it(
    ledger: UsageLedger, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.tenancy.ledger.LINGER_S", 3600.0)
    await ledger.reserve(wish("tr_1"), NO_LIMIT)
    ledger.close(cost("tr_1"))
    written = ledger.reserve(wish("tr_2"), NO_LIMIT, is_awaited=False)
    assert await asyncio.wait_for(written, 5)
    assert (await entry(disk)).state is LedgerState.SETTLED


async def test_near_its_end_the_budget_is_asked_first(ledger: UsageLedger, disk: Disk) -> None:
    tight = Budget(gpu_ms=100_000)
    async with account(ledger, "tr_0", tight).charge(quote()):  # nothing known: asked
        assert (await entry(disk, "tr_0")).state is LedgerState.RESERVED
    assert ledger.is_ample(wish("tr_1", 5_000), tight)
    assert not ledger.is_ample(wish("tr_1", 10_001), tight)
    with pytest.raises(QuotaExhausted):
        async with account(ledger, "tr_1", tight).charge(quote(200)):
            pytest.fail("the expert would be asked")


async def test_optimism_that_was_wrong_gives_no_answer(ledger: UsageLedger, disk: Disk) -> None:
    budget = Budget(gpu_ms=100_000)
    await ledger.reserve(wish("known", 1), budget)
    elsewhere = UsageLedger(disk, FakeClock())
    await elsewhere.reserve(wish("big", 99_999), budget)
    disk.is_open.clear()
    async with account(ledger, "tr_1", budget).charge(quote()) as charge:
        disk.is_open.set()
        with pytest.raises(QuotaExhausted):
            await charge.settle(gpu_ms=1, images=1)
        with pytest.raises(QuotaExhausted):
            charge.check()


async def test_a_dead_router_costs_the_tenant_nothing(ledger: UsageLedger, disk: Disk) -> None:
    async with account(ledger).charge(quote()) as charge:
        await charge.settle(gpu_ms=5, images=1)
    ledger._pending.clear()  # it died here
    late = START + timedelta(seconds=30 + EXPIRY_MARGIN_S)
    async with disk._real.transaction() as session:
        assert await release_expired(session, late) == 1
    assert (await entry(disk)).state is LedgerState.RELEASED


async def test_month_that_ends_between_the_charge_and_its_writing_loses_no_settlement(
    disk: Disk,
) -> None:
    clock = FakeClock()
    clock.advance(12 * 3600 - 1)  # one second before February
    ledger = UsageLedger(disk, clock)
    disk.is_open.clear()
    before = ledger.reserve(wish("tr_0"), NO_LIMIT)  # what is being written at midnight
    await disk.is_asked.wait()
    async with account(ledger).charge(quote()) as charge:
        clock.advance(2)
        disk.is_open.set()
        await before
        await charge.settle(gpu_ms=700, images=1)
    await ledger.flush()
    assert (await entry(disk)).state is LedgerState.SETTLED


async def test_router_that_takes_work_over_in_the_next_month_settles_it(disk: Disk) -> None:
    clock = FakeClock()
    clock.advance(12 * 3600 - 1)
    died, other = UsageLedger(disk, clock), UsageLedger(disk, clock)
    await died.reserve(wish("tr_1"), NO_LIMIT)
    clock.advance(31)
    async with account(other).charge(quote()) as charge:
        await charge.settle(gpu_ms=700, images=1)
    await other.flush()
    taken_over = await entry(disk)
    assert (taken_over.state, taken_over.day.month) == (LedgerState.SETTLED, 1)
