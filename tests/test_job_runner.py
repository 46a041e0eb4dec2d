"""What a job runner does while it lives; `test_job_crashes.py` is about its dying."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from serve.config import JobsConfig
from serve.errors import (
    BackendError,
    ContentRefused,
    DeadlineExceeded,
    GenerationFailed,
    InvalidImage,
    Overloaded,
    ReplicaLost,
)
from serve.jobs.run import JobOutcome, JobRun
from serve.jobs.runner import Runner
from serve.jobs.windows import Windows
from serve.observing.meter import MemoryMeter
from serve.policy import TenantPolicy
from serve.store.claims import Claims
from serve.store.engine import Database
from serve.store.jobs import insert_jobs
from serve.store.leases import LeasePolicy
from serve.store.ledger import read_counter
from serve.store.tables import (
    Job,
    JobClass,
    JobState,
    LedgerEntry,
    LedgerState,
    Tenant,
)
from tests.stores import START, FakeClock
from tests.test_store_jobs import NO_LIMIT, new_job

pytestmark = pytest.mark.anyio

LEASE = LeasePolicy(lease_s=10, max_attempts=3, backoff_s=1, max_backoff_s=2)
OUTCOME = JobOutcome(result={"outputs": [{"asset": "ast_1"}]}, gpu_ms=1200, images=1)
Answer = Callable[[JobRun], JobOutcome | Exception]


@dataclass
class Routers:
    """Answers attempts at once, or holds them until a test lets them go."""

    answer: Answer = lambda run: OUTCOME
    is_holding: bool = False
    seen: list[JobRun] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    let_go: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, run: JobRun) -> JobOutcome:
        self.seen.append(run)
        try:
            if self.is_holding:
                await self.let_go.wait()
            else:
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.cancelled.append(run.job_id)
            raise
        answer = self.answer(run)
        if isinstance(answer, Exception):
            raise answer
        return answer


@dataclass
class Shop:
    """A database, a clock and runners on it."""

    database: Database
    clock: FakeClock = field(default_factory=FakeClock)
    routers: Routers = field(default_factory=Routers)
    meter: MemoryMeter = field(default_factory=MemoryMeter)

    def runner(
        self, sizes: dict[str, int] | None = None, in_all: int = 100, owner: str = "runner"
    ) -> Runner:
        sizes = sizes or {"top@1": 100, "eye@1": 100}
        return Runner(
            database=self.database,
            config=JobsConfig(lease_s=LEASE.lease_s),
            windows=Windows({name: name for name in sizes}, sizes, in_all),
            dispatch=self.routers,
            owner=owner,
            lease=LEASE,
            now=self.clock,
            meter=self.meter,
        )

    async def accept(
        self, num: int = 1, tenant: str = "acme", policy: TenantPolicy | None = None, **changes: Any
    ) -> list[str]:
        jobs = [new_job(**changes) for _ in range(num)]
        async with self.database.transaction() as session:
            if await session.get(Tenant, tenant) is None:
                document = (policy or TenantPolicy()).model_dump(mode="json")
                row = Tenant(id=tenant, name=tenant, policy=document)
                row.created_at = row.updated_at = START
                session.add(row)
        async with self.database.transaction() as session:
            await insert_jobs(
                session,
                tenant,
                None,
                jobs,
                budget=NO_LIMIT,
                max_queued=10_000,
                now=self.clock(),
            )
        return [job.id for job in jobs]

    async def cancel(self, job_id: str) -> None:
        async with self.database.transaction() as session:
            await Claims(LEASE, self.clock).cancel(session, "acme", job_id)

    async def job(self, job_id: str, tenant: str = "acme") -> Job:
        async with self.database.reading() as session:
            return await session.get_one(Job, (tenant, job_id))

    async def entry(self, job_id: str) -> LedgerEntry:
        async with self.database.reading() as session:
            return await session.get_one(LedgerEntry, ("acme", job_id))


@pytest.fixture
def shop(database: Database) -> Shop:
    return Shop(database)


async def run_once(runner: Runner) -> int:
    num_started = await runner.fill()
    await runner.settled()
    return num_started


async def test_job_runs_and_is_charged_what_it_took(shop: Shop) -> None:
    (job_id,) = await shop.accept()
    assert await run_once(shop.runner()) == 1
    job = await shop.job(job_id)
    assert (job.state, job.result) == (JobState.SUCCEEDED, OUTCOME.result)
    entry = await shop.entry(job_id)
    assert (entry.state, entry.settled_gpu_ms) == (LedgerState.SETTLED, 1200)
    (run,) = shop.routers.seen
    assert (run.version, run.priority, run.tenant_id) == ("top@1", "interactive", "acme")


@pytest.mark.parametrize(
    ("error", "state", "attempts"),
    [
        (InvalidImage("no picture"), JobState.FAILED, 1),
        (ContentRefused("no"), JobState.FAILED, 1),
        (Overloaded("full", retry_after_s=7), JobState.QUEUED, 0),
        (ReplicaLost("gone"), JobState.QUEUED, 1),
        (GenerationFailed("black"), JobState.QUEUED, 1),
        (DeadlineExceeded("slow"), JobState.QUEUED, 1),
        (BackendError("odd"), JobState.QUEUED, 1),
        (KeyError("a mistake of ours"), JobState.QUEUED, 1),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_what_a_failure_means_for_the_job(
    shop: Shop, error: Exception, state: JobState, attempts: int
) -> None:
    shop.routers.answer = lambda run: error
    (job_id,) = await shop.accept()
    await run_once(shop.runner())
    job = await shop.job(job_id)
    assert (job.state, job.attempts) == (state, attempts)
    assert job.error is not None
    released = (await shop.entry(job_id)).state is LedgerState.RELEASED
    assert released == (state is JobState.FAILED)


async def test_job_that_always_fails_is_parked_with_its_last_problem(shop: Shop) -> None:
    shop.routers.answer = lambda run: GenerationFailed("black")
    (job_id,) = await shop.accept()
    runner = shop.runner()
    for _ in range(LEASE.max_attempts):
        assert await run_once(runner) == 1
        shop.clock.advance(LEASE.max_backoff_s)
    job = await shop.job(job_id)
    assert job.state is JobState.PARKED
    assert job.error is not None
    assert job.error["code"] == "generation_failed"
    assert await run_once(runner) == 0


async def test_no_capacity_is_waited_for_as_long_as_it_takes(shop: Shop) -> None:
    shop.routers.answer = lambda run: Overloaded("full", retry_after_s=7)
    (job_id,) = await shop.accept()
    runner = shop.runner()
    for _ in range(LEASE.max_attempts + 2):
        assert await run_once(runner) == 1
        shop.clock.advance(6.9)
        assert await run_once(runner) == 0
        shop.clock.advance(0.1)
    shop.routers.answer = lambda run: OUTCOME
    await run_once(runner)
    assert (await shop.job(job_id)).state is JobState.SUCCEEDED


async def test_cancelled_job_stops_its_attempt(shop: Shop) -> None:
    shop.routers.is_holding = True
    job_id, other = await shop.accept(2)
    runner = shop.runner()
    await runner.fill()
    await asyncio.sleep(0)
    await shop.cancel(job_id)
    await runner.watch()
    await runner.wait(5)
    assert shop.routers.cancelled == [job_id]
    assert (await shop.job(job_id)).state is JobState.CANCELLED
    assert (await shop.entry(job_id)).state is LedgerState.RELEASED
    shop.routers.let_go.set()
    await runner.settled()
    assert (await shop.job(other)).state is JobState.SUCCEEDED


async def test_answer_that_is_there_outlives_a_late_cancellation(shop: Shop) -> None:
    shop.routers.is_holding = True
    (job_id,) = await shop.accept()
    runner = shop.runner()
    await runner.fill()
    await shop.cancel(job_id)
    shop.routers.let_go.set()
    await runner.settled()
    assert (await shop.job(job_id)).state is JobState.SUCCEEDED


async def test_runner_that_lost_its_lease_does_nothing_more(shop: Shop) -> None:
    shop.routers.is_holding = True
    (job_id,) = await shop.accept()
    sleepy, awake = shop.runner(owner="sleepy"), shop.runner(owner="awake")
    await sleepy.fill()
    shop.clock.advance(LEASE.lease_s)
    assert await awake.tidy() == 1
    shop.clock.advance(LEASE.max_backoff_s)
    assert await awake.fill() == 1
    await asyncio.sleep(0)
    await sleepy.beat()
    await sleepy.settled()
    assert shop.routers.cancelled == [job_id]
    job = await shop.job(job_id)
    assert (job.state, job.lease_owner) == (JobState.RUNNING, "awake")
    shop.routers.let_go.set()
    await awake.settled()
    assert (await shop.job(job_id)).state is JobState.SUCCEEDED


async def test_runner_that_wakes_up_with_an_answer_writes_nothing(shop: Shop) -> None:
    shop.routers.is_holding = True
    (job_id,) = await shop.accept()
    sleepy, awake = shop.runner(owner="sleepy"), shop.runner(owner="awake")
    await sleepy.fill()
    shop.clock.advance(LEASE.lease_s)
    await awake.tidy()
    shop.routers.let_go.set()
    await sleepy.settled()
    assert (await shop.job(job_id)).state is JobState.QUEUED
    shop.clock.advance(LEASE.max_backoff_s)
    await run_once(awake)
    async with shop.database.reading() as session:
        assert (await read_counter(session, "acme", START)).settled_gpu_ms == 1200


async def test_beating_runner_keeps_its_jobs(shop: Shop) -> None:
    shop.routers.is_holding = True
    (job_id,) = await shop.accept()
    runner, other = shop.runner(), shop.runner(owner="other")
    await runner.fill()
    for _ in range(5):
        shop.clock.advance(LEASE.lease_s - 1)
        await runner.beat()
        assert await other.tidy() == 0
    shop.routers.let_go.set()
    await runner.settled()
    assert (await shop.job(job_id)).state is JobState.SUCCEEDED


async def test_runner_does_not_take_its_own_jobs_for_lost(shop: Shop) -> None:
    """The database was away for longer than a lease, and nobody could beat."""
    (job_id,) = await shop.accept()
    shop.routers.is_holding = True
    runner = shop.runner()
    await runner.fill()
    shop.clock.advance(2 * LEASE.lease_s)
    assert await runner.tidy() == 0
    shop.routers.let_go.set()
    await runner.settled()
    job = await shop.job(job_id)
    assert (job.state, job.attempts) == (JobState.SUCCEEDED, 1)


async def test_stopped_runner_gives_back_what_it_holds_at_once(shop: Shop) -> None:
    shop.routers.is_holding = True
    ids = await shop.accept(3)
    runner = shop.runner()
    await runner.fill()
    await runner.stop()
    assert runner.num_held == 0
    for job_id in ids:
        job = await shop.job(job_id)
        assert (job.state, job.attempts) == (JobState.QUEUED, 0)
    assert await runner.fill() == 0


async def test_job_whose_deadline_passes_while_it_waits_fails(shop: Shop) -> None:
    (job_id,) = await shop.accept(deadline_at=START)
    await shop.runner().tidy()
    job = await shop.job(job_id)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error["code"] == "deadline_exceeded"
    assert (await shop.entry(job_id)).state is LedgerState.RELEASED
    assert shop.routers.seen == []


async def test_attempt_has_no_more_time_than_the_jobs_deadline(shop: Shop) -> None:
    deadline_at = START.replace(minute=1)
    (job_id,) = await shop.accept(deadline_at=deadline_at)

    def too_late(run: JobRun) -> Exception:
        assert run.timeout_s == 60
        shop.clock.advance(60)
        return DeadlineExceeded("stopped at step 3 of 16")

    shop.routers.answer = too_late
    await run_once(shop.runner())
    job = await shop.job(job_id)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error["code"] == "deadline_exceeded"


async def test_windows_bound_what_is_at_the_routers(shop: Shop) -> None:
    shop.routers.is_holding = True
    await shop.accept(5)
    await shop.accept(5, version="eye@1")
    runner = shop.runner({"top@1": 2, "eye@1": 4}, in_all=5)
    assert await runner.fill() == 5
    await asyncio.sleep(0)
    assert sum(run.version == "top@1" for run in shop.routers.seen) == 2
    assert await runner.fill() == 0
    shop.routers.let_go.set()
    await runner.settled()
    assert await runner.fill() == 5
    await runner.settled()


async def test_tenants_concurrency_holds_over_all_runners(shop: Shop) -> None:
    shop.routers.is_holding = True
    await shop.accept(5, policy=TenantPolicy(concurrency=2))
    await shop.accept(1, tenant="other")
    first, second = shop.runner(), shop.runner(owner="second")
    started = await asyncio.gather(first.fill(), second.fill())
    await asyncio.sleep(0)
    tenants = [run.tenant_id for run in shop.routers.seen]
    assert sum(started) == len(tenants) == 3
    assert tenants.count("acme") == 2
    shop.routers.let_go.set()
    await first.settled()
    await second.settled()


async def test_tenants_take_turns_by_weight_and_batch_work_waits(shop: Shop) -> None:
    await shop.accept(40, tenant="crowd")
    shop.clock.advance(1)
    await shop.accept(10, tenant="heavy", policy=TenantPolicy(weight=2))
    await shop.accept(10, tenant="night", priority=JobClass.BATCH)
    runner = shop.runner(in_all=1)
    for _ in range(30):
        assert await run_once(runner) == 1
    tenants = [run.tenant_id for run in shop.routers.seen]
    assert tenants[:15].count("heavy") >= 8
    assert 2 <= tenants.count("night") <= 4


async def test_crowd_is_passed_by_who_comes_with_one_job(shop: Shop) -> None:
    await shop.accept(20, tenant="crowd")
    runner = shop.runner(in_all=1)
    for _ in range(10):
        await run_once(runner)
    await shop.accept(tenant="late")
    for _ in range(2):
        await run_once(runner)
    assert "late" in [run.tenant_id for run in shop.routers.seen[-2:]]


async def test_waiting_seconds_are_told_per_version(shop: Shop) -> None:
    await shop.accept(2)
    await shop.accept(version="eye@1")
    assert await shop.runner().queued_s() == {"top@1": 3.0, "eye@1": 1.5}


async def test_unreadable_policy_holds_up_nobody_else(shop: Shop) -> None:
    await shop.accept(tenant="broken")
    await shop.accept()
    async with shop.database.transaction() as session:
        (await session.get_one(Tenant, "broken")).policy = {"weight": -1}
    assert await run_once(shop.runner()) == 1
    assert [run.tenant_id for run in shop.routers.seen] == ["acme"]
