"""No job has two workers while a lease lives, and none is left when its worker is gone.

Two properties over generated histories: one worker at a time against a model, so that a failure
names the step; then eight workers with connections of their own, which die as they please.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, event, func, select, text

from serve.errors import Conflict, NotFound
from serve.store.claims import Claims
from serve.store.engine import Database
from serve.store.events import append_event, read_events
from serve.store.leases import Claim, LeasePolicy
from serve.store.tables import Job, JobClass, JobEvent, JobState, Tenant
from tests.stores import START, FakeClock, add_job, add_tenant, opened

pytestmark = pytest.mark.anyio

POLICY = LeasePolicy(lease_s=60, max_attempts=3, backoff_s=10, max_backoff_s=15)
PROBLEM = {"code": "generation_failed", "detail": "no"}
ENDED = {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.PARKED}


@dataclass
class Desk:
    """Claims as a worker uses them: every step a transaction of its own."""

    database: Database
    clock: FakeClock = field(default_factory=FakeClock)

    @property
    def claims(self) -> Claims:
        return Claims(POLICY, self.clock)

    async def add(self, *, priority: JobClass = JobClass.INTERACTIVE, tenant: str = "acme") -> str:
        async with self.database.transaction() as session:
            if await session.get(Tenant, tenant) is None:
                await add_tenant(session, tenant)
            return await add_job(session, tenant, self.clock.now, priority)

    async def claim(
        self,
        owner: str = "worker",
        limit: int = 1,
        tenant: str | None = None,
        priority: JobClass | None = None,
    ) -> list[Claim]:
        async with self.database.transaction() as session:
            await self.claims.reap(session)
            return await self.claims.claim(
                session, owner, limit, tenant_id=tenant, priority=priority
            )

    async def claim_one(self) -> Claim:
        (claim,) = await self.claim()
        return claim

    async def heartbeat(self, claim: Claim) -> tuple[datetime, bool]:
        async with self.database.transaction() as session:
            beat = await self.claims.heartbeat(session, claim)
        return beat.expires_at, beat.is_cancel_requested

    async def succeed(self, claim: Claim) -> None:
        async with self.database.transaction() as session:
            await self.claims.succeed(session, claim, {"outputs": ["ast_1"]})

    async def fail(self, claim: Claim, *, is_final: bool = False) -> JobState:
        async with self.database.transaction() as session:
            return await self.claims.fail(session, claim, PROBLEM, is_final=is_final)

    async def release(self, claim: Claim) -> None:
        async with self.database.transaction() as session:
            await self.claims.release(session, claim)

    async def cancel(self, job_id: str, tenant: str = "acme") -> JobState:
        async with self.database.transaction() as session:
            return await self.claims.cancel(session, tenant, job_id)

    async def confirm_cancelled(self, claim: Claim) -> None:
        async with self.database.transaction() as session:
            await self.claims.confirm_cancelled(session, claim)

    async def job(self, job_id: str, tenant: str = "acme") -> Job:
        async with self.database.reading() as session:
            return await session.get_one(Job, (tenant, job_id))


@pytest.fixture
def desk(database: Database) -> Desk:
    return Desk(database)


async def test_oldest_first_interactive_before_batch(desk: Desk) -> None:
    batch = await desk.add(priority=JobClass.BATCH)
    desk.clock.advance(1)
    first = await desk.add()
    desk.clock.advance(1)
    second = await desk.add()
    assert [each.job_id for each in await desk.claim(limit=5)] == [first, second, batch]


async def test_claim_tells_the_worker_what_to_do_and_the_table_who_does_it(desk: Desk) -> None:
    job_id = await desk.add()
    claim = await desk.claim_one()
    assert (claim.request, claim.attempt, claim.priority) == ({"expert": "top"}, 1, 0)
    assert (claim.expires_at - START).total_seconds() == POLICY.lease_s
    job = await desk.job(job_id)
    assert (job.state, job.lease_owner, job.started_at) == (JobState.RUNNING, "worker", START)


async def test_only_the_tenant_and_the_class_that_were_asked_for(desk: Desk) -> None:
    mine = await desk.add()
    other = await desk.add(tenant="other")
    batch = await desk.add(tenant="other", priority=JobClass.BATCH)
    claimed = await desk.claim(limit=5, tenant="other", priority=JobClass.BATCH)
    assert [each.job_id for each in claimed] == [batch]
    assert [each.job_id for each in await desk.claim(limit=5, tenant="other")] == [other]
    assert [each.job_id for each in await desk.claim(limit=5)] == [mine]


async def test_job_of_the_future_is_not_runnable_yet(desk: Desk) -> None:
    await desk.add()
    desk.clock.advance(-1)
    assert await desk.claim() == []


async def test_leased_job_is_nobody_elses_until_the_lease_ends(desk: Desk) -> None:
    job_id = await desk.add()
    first = await desk.claim_one()
    desk.clock.advance(POLICY.lease_s - 1)
    assert await desk.claim() == []
    desk.clock.advance(1)
    assert await desk.claim() == []  # given back, and waiting for its backoff
    desk.clock.advance(POLICY.backoff_s)
    second = await desk.claim_one()
    assert (second.job_id, second.attempt) == (job_id, 2)
    for act in (desk.heartbeat, desk.succeed, desk.fail, desk.release, desk.confirm_cancelled):
        with pytest.raises(Conflict):
            await act(first)
    await desk.succeed(second)
    assert (await desk.job(job_id)).state is JobState.SUCCEEDED


async def test_heartbeat_keeps_a_job(desk: Desk) -> None:
    await desk.add()
    claim = await desk.claim_one()
    for _ in range(5):
        desk.clock.advance(POLICY.lease_s - 1)
        assert await desk.claim() == []
        expires_at, _ = await desk.heartbeat(claim)
        assert (expires_at - desk.clock.now).total_seconds() == POLICY.lease_s
    await desk.succeed(claim)


async def test_late_worker_may_finish_what_nobody_else_has_taken(desk: Desk) -> None:
    job_id = await desk.add()
    claim = await desk.claim_one()
    desk.clock.advance(POLICY.lease_s * 10)
    await desk.heartbeat(claim)
    await desk.succeed(claim)
    assert (await desk.job(job_id)).result == {"outputs": ["ast_1"]}


async def test_released_job_runs_again_at_once_and_loses_no_attempt(desk: Desk) -> None:
    await desk.add()
    claim = await desk.claim_one()
    await desk.release(claim)
    again = await desk.claim_one()
    assert (again.job_id, again.attempt) == (claim.job_id, 1)
    with pytest.raises(Conflict):
        await desk.succeed(claim)


async def test_failures_back_off_and_are_parked_in_the_end(desk: Desk) -> None:
    job_id = await desk.add()
    for backoff_s in (10, 15):  # doubled, and capped by the policy
        assert await desk.fail(await desk.claim_one()) is JobState.QUEUED
        desk.clock.advance(backoff_s - 1)
        assert await desk.claim() == []
        desk.clock.advance(1)
    assert await desk.fail(await desk.claim_one()) is JobState.PARKED
    desk.clock.advance(10_000)
    assert await desk.claim() == []
    job = await desk.job(job_id)
    assert (job.attempts, job.error) == (POLICY.max_attempts, PROBLEM)
    assert job.finished_at is not None


async def test_job_that_kills_its_workers_is_parked(desk: Desk) -> None:
    job_id = await desk.add()
    for _ in range(POLICY.max_attempts):
        await desk.claim_one()
        desk.clock.advance(POLICY.lease_s)
        assert await desk.claim() == []
        desk.clock.advance(POLICY.max_backoff_s)
    job = await desk.job(job_id)
    assert job.state is JobState.PARKED
    assert job.error is not None
    assert job.error["code"] == "worker_lost"


async def test_final_failure_is_not_tried_again(desk: Desk) -> None:
    await desk.add()
    assert await desk.fail(await desk.claim_one(), is_final=True) is JobState.FAILED
    desk.clock.advance(10_000)
    assert await desk.claim() == []


async def test_success_forgets_the_failures_before_it(desk: Desk) -> None:
    job_id = await desk.add()
    await desk.fail(await desk.claim_one())
    desk.clock.advance(POLICY.backoff_s)
    await desk.succeed(await desk.claim_one())
    assert (await desk.job(job_id)).error is None


async def test_waiting_job_is_cancelled_at_once(desk: Desk) -> None:
    job_id = await desk.add()
    assert await desk.cancel(job_id) is JobState.CANCELLED
    assert await desk.cancel(job_id) is JobState.CANCELLED
    assert await desk.claim() == []


async def test_running_job_learns_of_its_cancellation_by_heartbeat(desk: Desk) -> None:
    job_id = await desk.add()
    claim = await desk.claim_one()
    assert (await desk.heartbeat(claim))[1] is False
    assert await desk.cancel(job_id) is JobState.RUNNING
    assert (await desk.heartbeat(claim))[1] is True
    await desk.confirm_cancelled(claim)
    assert (await desk.job(job_id)).state is JobState.CANCELLED


@pytest.mark.parametrize("end", ["dies", "releases", "fails"])
async def test_cancelled_job_does_not_run_again_however_its_worker_ends(
    desk: Desk, end: str
) -> None:
    job_id = await desk.add()
    claim = await desk.claim_one()
    await desk.cancel(job_id)
    if end == "releases":
        await desk.release(claim)
    elif end == "fails":
        await desk.fail(claim)
    desk.clock.advance(10_000)
    assert await desk.claim() == []
    assert (await desk.job(job_id)).state is JobState.CANCELLED


async def test_ended_job_cannot_be_cancelled_nor_that_of_another_tenant(desk: Desk) -> None:
    job_id = await desk.add()
    await desk.add(tenant="other")
    with pytest.raises(NotFound):
        await desk.cancel(job_id, tenant="other")
    await desk.succeed(await desk.claim_one())
    with pytest.raises(Conflict):
        await desk.cancel(job_id)


async def test_events_of_many_writers_are_numbered_without_a_gap(desk: Desk) -> None:
    job_id = await desk.add()

    async def append(step: int) -> int:
        async with desk.database.transaction() as session:
            return await append_event(session, "acme", job_id, "step", {"i": step}, START)

    numbers = await asyncio.gather(*(append(step) for step in range(20)))
    assert sorted(numbers) == list(range(1, 21))
    async with desk.database.reading() as session:
        later = await read_events(session, "acme", job_id, after=17)
        assert [event.sequence for event in later] == [18, 19, 20]
        assert await read_events(session, "other", job_id) == []


async def test_event_of_no_job_is_refused_and_an_undone_one_leaves_no_gap(desk: Desk) -> None:
    job_id = await desk.add()

    async def append(tenant: str, *, fail: bool = False) -> int:
        async with desk.database.transaction() as session:
            number = await append_event(session, tenant, job_id, "step", {}, START)
            if fail:
                raise ZeroDivisionError
            return number

    with pytest.raises(NotFound):
        await append("other")
    with pytest.raises(ZeroDivisionError):
        await append("acme", fail=True)
    assert await append("acme") == 1


async def test_events_go_with_their_job(desk: Desk) -> None:
    job_id = await desk.add()
    async with desk.database.transaction() as session:
        await append_event(session, "acme", job_id, "started", {}, START)
        await session.execute(delete(Job))
    async with desk.database.reading() as session:
        assert await session.scalar(select(func.count()).select_from(JobEvent)) == 0


async def test_claiming_walks_an_index_and_not_the_table(desk: Desk) -> None:
    seen: list[tuple[str, tuple[object, ...]]] = []

    @event.listens_for(desk.database.engine.sync_engine, "before_cursor_execute")
    def note(_c: object, _k: object, statement: str, values: Any, *_: object) -> None:
        seen.append((statement, values))

    await desk.claim()
    await desk.claim(tenant="acme")
    lapsed, claimed, _, of_tenant = [each for each in seen if "FROM jobs" in each[0]]
    # A parameter instead would leave it to each database whether it looks at its value.
    assert "state = 'running'" in lapsed[0]
    assert "state = 'queued'" in claimed[0]
    assert "ix_jobs_leases" in await explain(desk.database, *lapsed)
    assert "ix_jobs_runnable" in await explain(desk.database, *claimed)
    assert "ix_jobs_tenant_runnable" in await explain(desk.database, *of_tenant)


async def explain(database: Database, statement: str, values: tuple[object, ...]) -> str:
    async with database.engine.connect() as connection:
        if not database.is_sqlite:
            # A table without rows is read from end to end, whatever its indexes.
            await connection.execute(text("SET LOCAL enable_seqscan = off"))
            await connection.execute(text("SET LOCAL enable_bitmapscan = off"))
        how = "EXPLAIN QUERY PLAN" if database.is_sqlite else "EXPLAIN"
        rows = await connection.exec_driver_sql(f"{how} {statement}", values)
        return "\n".join(str(row) for row in rows)


ACTS = ["heartbeat", "succeed", "fail", "release", "cancel"]
STEPS = st.one_of(
    st.just(("add", 0)),
    st.tuples(st.just("claim"), st.integers(1, 3)),
    st.tuples(st.sampled_from(ACTS), st.integers(0, 9)),
    st.tuples(st.just("wait"), st.sampled_from([1, 10, 15, 30, 60])),
)


class Model:
    """What must be true of the leases, kept beside the database."""

    def __init__(self, desk: Desk):
        self.desk = desk
        self.held: list[Claim] = []
        self.jobs: list[str] = []
        self.until: dict[str, datetime] = {}
        """Until when a job is somebody's, by everything its worker was told."""
        self.ended: set[str] = set()

    async def step(self, name: str, number: int) -> None:
        if name == "add":
            self.jobs.append(await self.desk.add())
        elif name == "wait":
            self.desk.clock.advance(number)
        elif name == "claim":
            await self.claim(number)
        elif name == "cancel" and self.jobs:
            await self.cancel(self.jobs[number % len(self.jobs)])
        elif self.held and name in ("heartbeat", "succeed", "fail", "release"):
            await self.act(name, self.held[number % len(self.held)])

    async def claim(self, limit: int) -> None:
        for claim in await self.desk.claim(limit=limit):
            assert claim.job_id not in self.ended
            assert self.until.get(claim.job_id, START) <= self.desk.clock.now
            assert 1 <= claim.attempt <= POLICY.max_attempts
            self.held.append(claim)
            self.until[claim.job_id] = claim.expires_at

    async def cancel(self, job_id: str) -> None:
        try:
            if await self.desk.cancel(job_id) is JobState.CANCELLED:
                self.ended.add(job_id)
        except Conflict:
            assert (await self.desk.job(job_id)).state in ENDED

    async def act(self, name: str, claim: Claim) -> None:
        newest = [held for held in self.held if held.job_id == claim.job_id][-1]
        is_live = newest is claim and self.until[claim.job_id] > self.desk.clock.now
        try:
            if name == "heartbeat":
                self.until[claim.job_id] = (await self.desk.heartbeat(claim))[0]
                return
            await {"succeed": self.desk.succeed, "fail": self.desk.fail}.get(
                name, self.desk.release
            )(claim)
        except Conflict:
            assert not is_live, "who holds a living lease is never refused"
            return
        assert newest is claim, "who lost a job can change nothing more"
        self.until[claim.job_id] = START
        if (await self.desk.job(claim.job_id)).state in ENDED:
            self.ended.add(claim.job_id)


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(STEPS, min_size=8, max_size=40))
def test_any_history_keeps_the_leases(store_url: str, steps: Sequence[tuple[str, int]]) -> None:
    async def play() -> None:
        async with opened(store_url) as database:
            model = Model(Desk(database))
            await empty(database)
            for name, number in steps:
                await model.step(name, number)
            for job_id in model.ended:
                assert (await model.desk.job(job_id)).state in ENDED

    asyncio.run(play())


async def empty(database: Database) -> None:
    async with database.transaction() as session:
        await session.execute(delete(Job))


@dataclass
class Crowd:
    """Eight workers on one clock; a register outside the database says who has what."""

    clock: FakeClock
    random: Random
    live: dict[str, Claim] = field(default_factory=dict)
    finished: list[str] = field(default_factory=list)

    async def work(self, desk: Desk, owner: str) -> int:
        claims = await desk.claim(owner, limit=self.random.randint(1, 4))
        for claim in claims:
            other = self.live.get(claim.job_id)
            assert other is None or other.expires_at <= self.clock.now, "two workers have it"
            assert claim.job_id not in self.finished
            self.live[claim.job_id] = claim
        for claim in claims:
            await self.end(desk, claim)
        return len(claims)

    async def end(self, desk: Desk, claim: Claim) -> None:
        fate = self.random.choice(["succeed", "succeed", "fail", "release", "die"])
        if fate == "die":
            return
        # Before the database is told: from then on somebody else may have it at any moment.
        del self.live[claim.job_id]
        if fate == "succeed":
            self.finished.append(claim.job_id)
        await {"succeed": desk.succeed, "fail": desk.fail, "release": desk.release}[fate](claim)


@settings(
    max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**32))
def test_workers_at_once_share_no_job_and_leave_none(store_url: str, seed: int) -> None:
    num_jobs, num_workers = 40, 8

    async def play() -> None:
        crowd = Crowd(FakeClock(), Random(seed))
        desks = [Desk(Database(store_url), crowd.clock) for _ in range(num_workers)]
        await empty(desks[0].database)
        for _ in range(num_jobs):
            await desks[0].add()
        for _ in range(500):
            turns = (crowd.work(desk, f"worker-{at}") for at, desk in enumerate(desks))
            if not any(await asyncio.gather(*turns)):
                if await count_open(desks[0].database) == 0:
                    break
                crowd.clock.advance(POLICY.lease_s)
        assert await count_open(desks[0].database) == 0
        assert len(crowd.finished) == len(set(crowd.finished))
        for desk in desks:
            await desk.database.close()

    asyncio.run(play())


async def count_open(database: Database) -> int:
    async with database.reading() as session:
        found = select(func.count()).select_from(Job).where(Job.state.not_in(ENDED))
        return await session.scalar(found) or 0
