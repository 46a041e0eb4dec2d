"""A job is accepted with its reservation or not at all, and ends once with all that hangs on it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import event, func, select

from serve.errors import Conflict, NotFound, QuotaExhausted, RateLimited
from serve.store.claims import Claims
from serve.store.endings import Usage, end_job
from serve.store.engine import Database
from serve.store.events import append_event, read_events
from serve.store.ids import new_id
from serve.store.jobs import (
    NewJob,
    find_place,
    get_job,
    insert_jobs,
    list_jobs,
    sum_runnable_ms,
)
from serve.store.leases import Claim, LeasePolicy
from serve.store.ledger import Budget
from serve.store.picking import count_running, find_waiting
from serve.store.tables import Job, JobClass, JobEvent, JobState, LedgerEntry, LedgerState, Tenant
from tests.stores import START, FakeClock, add_tenant
from tests.test_store_claims import explain

pytestmark = pytest.mark.anyio

POLICY = LeasePolicy(lease_s=10, max_attempts=2, backoff_s=1)
NO_LIMIT = Budget(gpu_ms=None, images=None)
PROBLEM = {"code": "generation_failed", "title": "Generation failed", "detail": "no"}


def new_job(**changes: Any) -> NewJob:
    fields = {
        "id": new_id("job"),
        "version": "top@1",
        "priority": JobClass.INTERACTIVE,
        "request": {"options": {"expert": "top"}},
        "predicted_gpu_ms": 1500,
        "num_images": 1,
    }
    return NewJob(**{**fields, **changes})


@dataclass
class Counter:
    """Where jobs are handed in and taken; every step a transaction of its own."""

    database: Database
    clock: FakeClock = field(default_factory=FakeClock)

    @property
    def claims(self) -> Claims:
        return Claims(POLICY, self.clock)

    async def accept(
        self,
        jobs: Sequence[NewJob],
        tenant: str = "acme",
        budget: Budget = NO_LIMIT,
        max_queued: int = 100,
    ) -> list[str]:
        async with self.database.transaction() as session:
            if await session.get(Tenant, tenant) is None:
                await add_tenant(session, tenant)
        async with self.database.transaction() as session:
            await insert_jobs(
                session,
                tenant,
                None,
                jobs,
                budget=budget,
                max_queued=max_queued,
                now=self.clock(),
            )
        return [job.id for job in jobs]

    async def accept_one(self, **changes: Any) -> str:
        return (await self.accept([new_job(**changes)]))[0]

    async def claim(self, **how: Any) -> list[Claim]:
        async with self.database.transaction() as session:
            return await self.claims.claim(session, "worker", **how)

    async def claim_one(self) -> Claim:
        (claim,) = await self.claim()
        return claim

    async def told(self, job_id: str) -> list[tuple[int, str, dict[str, Any]]]:
        async with self.database.reading() as session:
            events = await read_events(session, "acme", job_id)
        return [(event.sequence, event.kind, event.data) for event in events]

    async def kinds(self, job_id: str) -> list[str]:
        return [kind for _, kind, _ in await self.told(job_id)]

    async def entry(self, job_id: str) -> LedgerEntry:
        async with self.database.reading() as session:
            return await session.get_one(LedgerEntry, ("acme", job_id))

    async def job(self, job_id: str) -> Job:
        async with self.database.reading() as session:
            return await get_job(session, "acme", job_id)


@pytest.fixture
def counter(database: Database) -> Counter:
    return Counter(database)


async def test_accepted_job_has_a_reservation_and_says_that_it_waits(counter: Counter) -> None:
    job_id = await counter.accept_one()
    assert await counter.told(job_id) == [(1, "queued", {"position": 1})]
    entry = await counter.entry(job_id)
    assert (entry.state, entry.reserved_gpu_ms) == (LedgerState.RESERVED, 1500)
    assert entry.expires_at is None


async def test_job_above_the_budget_leaves_nothing_behind(counter: Counter) -> None:
    with pytest.raises(QuotaExhausted):
        await counter.accept([new_job(), new_job()], budget=Budget(gpu_ms=2000, images=None))
    async with counter.database.reading() as session:
        for table in (Job, JobEvent, LedgerEntry):
            assert await session.scalar(select(func.count()).select_from(table)) == 0


async def test_no_more_jobs_wait_than_the_tenant_may_have(counter: Counter) -> None:
    await counter.accept([new_job(), new_job()], max_queued=2)
    with pytest.raises(RateLimited) as caught:
        await counter.accept([new_job()], max_queued=2)
    assert caught.value.retry_after_s
    await counter.claim_one()
    await counter.accept([new_job()], max_queued=2)


async def test_ten_thousand_cells_are_accepted_in_a_few_statements(counter: Counter) -> None:
    seen: list[str] = []

    @event.listens_for(counter.database.engine.sync_engine, "before_cursor_execute")
    def note(_c: object, _k: object, statement: str, *_: object) -> None:
        seen.append(statement)

    cells = [new_job(cell=at, priority=JobClass.BATCH) for at in range(10_000)]
    await counter.accept(cells, max_queued=10_000)
    assert len([each for each in seen if "job" in each.lower()]) < 60
    assert (await counter.told(cells[-1].id))[0][2] == {"position": 10_000}


async def test_place_counts_what_the_own_tenant_has_in_front(counter: Counter) -> None:
    batch = await counter.accept_one(priority=JobClass.BATCH)
    await counter.accept([new_job()], tenant="other")
    first = await counter.accept_one()
    async with counter.database.reading() as session:
        places = [
            await find_place(session, await get_job(session, "acme", each))
            for each in (first, batch)
        ]
    assert [place and (place.position, place.ahead_gpu_ms) for place in places] == [
        (1, 0),
        (2, 1500),
    ]
    claim = await counter.claim_one()
    async with counter.database.reading() as session:
        running = await get_job(session, claim.tenant_id, claim.job_id)
        assert await find_place(session, running) is None


async def test_jobs_are_listed_newest_first_by_page_and_state(counter: Counter) -> None:
    ids = sorted([await counter.accept_one() for _ in range(5)], reverse=True)
    await counter.accept([new_job()], tenant="other")
    async with counter.database.reading() as session:
        page = await list_jobs(session, "acme", limit=2)
        rest = await list_jobs(session, "acme", after=page[-1].id)
        assert [job.id for job in (*page, *rest)] == ids
        assert await list_jobs(session, "acme", states=[JobState.RUNNING]) == []


async def test_another_tenants_job_is_not_found(counter: Counter) -> None:
    (theirs,) = await counter.accept([new_job()], tenant="other")
    with pytest.raises(NotFound):
        await counter.job(theirs)


async def test_waiting_gpu_time_is_summed_per_version_without_what_may_not_run(
    counter: Counter,
) -> None:
    await counter.accept_one()
    await counter.accept_one(predicted_gpu_ms=500)
    await counter.accept_one(version="eye@1", runnable_at=START.replace(year=2030))
    async with counter.database.reading() as session:
        assert await sum_runnable_ms(session, START) == {"top@1": 2000}


async def test_success_is_one_write_of_state_event_and_settlement(counter: Counter) -> None:
    job_id = await counter.accept_one()
    claim = await counter.claim_one()
    result = {"outputs": [{"asset": "ast_1"}], "receipt": {}}
    async with counter.database.transaction() as session:
        await counter.claims.succeed(session, claim, result, Usage(gpu_ms=1200, images=1))
    assert (await counter.told(job_id))[1:] == [
        (2, "started", {"attempt": 1}),
        (3, "finished", {"status": "succeeded", "outputs": [{"asset": "ast_1"}]}),
    ]
    entry = await counter.entry(job_id)
    assert (entry.state, entry.settled_gpu_ms) == (LedgerState.SETTLED, 1200)


async def test_end_that_is_undone_leaves_no_part_of_it(counter: Counter) -> None:
    job_id = await counter.accept_one()
    claim = await counter.claim_one()

    async def end_and_break() -> None:
        async with counter.database.transaction() as session:
            await counter.claims.succeed(session, claim, {}, Usage(gpu_ms=1, images=1))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await end_and_break()
    assert (await counter.job(job_id)).state is JobState.RUNNING
    assert await counter.kinds(job_id) == ["queued", "started"]
    assert (await counter.entry(job_id)).state is LedgerState.RESERVED


async def test_job_ends_once(counter: Counter) -> None:
    job_id = await counter.accept_one()
    claim = await counter.claim_one()
    async with counter.database.transaction() as session:
        await counter.claims.succeed(session, claim, {}, Usage(gpu_ms=7, images=1))

    async def end_again() -> None:
        async with counter.database.transaction() as session:
            job = await get_job(session, "acme", job_id)
            await end_job(session, job, JobState.FAILED, START)

    with pytest.raises(Conflict):
        await end_again()
    with pytest.raises(Conflict):
        async with counter.database.transaction() as session:
            await counter.claims.fail(session, claim, PROBLEM, is_final=True)
    assert (await counter.kinds(job_id)).count("finished") == 1
    assert (await counter.entry(job_id)).settled_gpu_ms == 7


@pytest.mark.parametrize("how", ["fails", "is cancelled", "is parked"])
async def test_what_does_not_succeed_costs_nothing(counter: Counter, how: str) -> None:
    job_id = await counter.accept_one()
    if how == "is cancelled":
        async with counter.database.transaction() as session:
            await counter.claims.cancel(session, "acme", job_id)
    for _ in range(POLICY.max_attempts if how == "is parked" else 0):
        await counter.claim_one()
        counter.clock.advance(POLICY.lease_s)
        async with counter.database.transaction() as session:
            await counter.claims.reap(session)
        counter.clock.advance(POLICY.backoff_s)
    if how == "fails":
        claim = await counter.claim_one()
        async with counter.database.transaction() as session:
            await counter.claims.fail(session, claim, PROBLEM, is_final=True)
    assert (await counter.entry(job_id)).state is LedgerState.RELEASED
    *_, (_, kind, data) = await counter.told(job_id)
    assert kind == "finished"
    if how == "is parked":
        assert (data["status"], data["parked"]) == ("failed", True)
        assert data["error"]["code"] == "worker_lost"
        assert await counter.kinds(job_id) == ["queued", "started", "queued", "started", "finished"]


async def test_lack_of_capacity_is_no_attempt(counter: Counter) -> None:
    job_id = await counter.accept_one()
    for _ in range(POLICY.max_attempts + 1):
        claim = await counter.claim_one()
        assert claim.attempt == 1
        async with counter.database.transaction() as session:
            state = await counter.claims.postpone(session, claim, {"code": "overloaded"}, 5.0)
        assert state is JobState.QUEUED
        counter.clock.advance(4)
        assert await counter.claim() == []
        counter.clock.advance(1)
    assert (await counter.told(job_id))[2][2]["reason"] == "overloaded"


async def test_worker_that_lost_its_job_says_nothing_more_about_it(counter: Counter) -> None:
    job_id = await counter.accept_one()
    claim = await counter.claim_one()
    async with counter.database.transaction() as session:
        await counter.claims.release(session, claim)
    await counter.claim_one()
    with pytest.raises(Conflict):
        async with counter.database.transaction() as session:
            await append_event(
                session, "acme", job_id, "step", {"i": 1}, START, lease_token=claim.token
            )
    assert await counter.kinds(job_id) == ["queued", "started", "queued", "started"]


async def test_full_versions_and_tenants_are_passed_over(counter: Counter) -> None:
    await counter.accept_one()
    eye = await counter.accept_one(version="eye@1")
    (other,) = await counter.accept([new_job()], tenant="other")
    claimed = await counter.claim(limit=9, full_versions=["top@1"])
    assert [claim.job_id for claim in claimed] == [eye]
    claimed = await counter.claim(limit=9, full_tenants=["acme"])
    assert [claim.job_id for claim in claimed] == [other]
    async with counter.database.reading() as session:
        assert await count_running(session) == {"acme": 1, "other": 1}


async def test_many_leases_are_kept_and_looked_at_at_once(counter: Counter) -> None:
    await counter.accept([new_job() for _ in range(3)])
    first, second, third = await counter.claim(limit=3)
    async with counter.database.transaction() as session:
        await counter.claims.release(session, second)
        await counter.claims.cancel(session, "acme", third.job_id)
    counter.clock.advance(3)
    async with counter.database.transaction() as session:
        kept = await counter.claims.keep(session, [first, second, third])
    assert {job_id: beat.is_cancel_requested for job_id, beat in kept.items()} == {
        first.job_id: False,
        third.job_id: True,
    }
    assert (kept[first.job_id].expires_at - counter.clock()).total_seconds() == POLICY.lease_s
    async with counter.database.reading() as session:
        looked = await counter.claims.look(session, [first, second, third])
    assert looked == {first.job_id: False, third.job_id: True}


async def test_tenants_with_work_are_found_by_class(counter: Counter) -> None:
    await counter.accept([new_job() for _ in range(5)], tenant="b")
    await counter.accept([new_job(priority=JobClass.BATCH)], tenant="b")
    await counter.accept([new_job(priority=JobClass.BATCH)], tenant="a")
    await counter.accept([new_job(runnable_at=START.replace(year=2030))], tenant="later")
    await counter.accept([new_job()], tenant="gone")
    async with counter.database.transaction() as session:
        (await session.get_one(Tenant, "gone")).disabled_at = START
    async with counter.database.reading() as session:
        found = await find_waiting(session, START)
    assert [(each.tenant_id, each.priority) for each in found] == [
        ("a", JobClass.BATCH),
        ("b", JobClass.INTERACTIVE),
        ("b", JobClass.BATCH),
    ]


async def test_finding_tenants_steps_through_an_index(counter: Counter) -> None:
    seen: list[tuple[str, Any]] = []

    @event.listens_for(counter.database.engine.sync_engine, "before_cursor_execute")
    def note(_c: object, _k: object, statement: str, values: Any, *_: object) -> None:
        seen.append((statement, values))

    async with counter.database.reading() as session:
        assert await find_waiting(session, START) == []
    ((statement, values),) = [each for each in seen if "jobs" in each[0]]
    plan = await explain(counter.database, statement, values)
    # PostgreSQL prints no plan for what the recursive step selects.
    num_uses = 3 if counter.database.is_sqlite else 2
    assert plan.count("ix_jobs_tenant_runnable") == num_uses
    assert "Aggregate" not in plan, "every waiting job is read"
    # Through that one the walk would read every job that has ended.
    assert "ix_jobs_tenant_id_state" not in plan
