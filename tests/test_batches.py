"""A batch ends with its last cell, whichever that is and however many end at once."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from time import perf_counter
from typing import Any

import pytest
from sqlalchemy import event, func, select

from serve.catalog import Choice
from serve.config import FetchConfig
from serve.errors import Conflict, NotFound, QuotaExhausted, RateLimited
from serve.jobs.batches import Batches, UrlRules
from serve.jobs.matrix import read_spec
from serve.policy import SCOPES, TenantPolicy
from serve.schemas.batches import BatchRequest
from serve.store.batch_progress import count_cells
from serve.store.batch_tables import HELD_UNTIL, Batch, BatchState, WebhookDelivery
from serve.store.batches import get_batch, read_cells, remove_subject_batches
from serve.store.claims import Claims
from serve.store.endings import Usage
from serve.store.engine import Database
from serve.store.leases import Claim, LeasePolicy
from serve.store.tables import Asset, AssetKind, Job, JobEvent, JobState, LedgerEntry, LedgerState
from serve.tenancy.caller import Caller
from tests.stores import START, FakeClock, add_tenant, opened

pytestmark = pytest.mark.anyio

POLICY = LeasePolicy(lease_s=60, max_attempts=2, backoff_s=5)
PROBLEM = {"code": "generation_failed", "title": "Generation failed", "detail": "no"}
HOOK = "https://shop.example.org/hook"
PICTURE = "https://shop.example.org/a.png"


@dataclass(frozen=True)
class Version:
    version: str = "top@1"


class Counter:
    """Chooses and prices as a submission does, at one GPU-second a cell."""

    async def choose(self, caller: Caller, options: Any, request_id: str | None) -> Choice:
        return Choice(Version(), "default")  # type: ignore[arg-type]

    def recall(self, caller: Caller, expert: str, version: str, kept: Any) -> Choice:
        return Choice(Version(), "default")  # type: ignore[arg-type]

    def quote_s(self, bundle: Any, options: Any) -> float:
        return 1.0


@dataclass
class Desk:
    database: Database
    clock: FakeClock = field(default_factory=FakeClock)
    policy: TenantPolicy = TenantPolicy()
    tenant_id: str = "acme"

    @property
    def caller(self) -> Caller:
        return Caller(self.tenant_id, None, frozenset(SCOPES), self.policy)  # type: ignore[arg-type]

    @property
    def batches(self) -> Batches:
        return Batches(
            database=self.database,
            submission=Counter(),  # type: ignore[arg-type]
            rules=UrlRules(pictures=FetchConfig(), webhooks=FetchConfig()),
            num_replicas={"top@1": 2},
            now=self.clock,
        )

    @property
    def claims(self) -> Claims:
        return Claims(POLICY, self.clock)

    async def make(
        self, num_products: int = 3, num_persons: int = 4, *, start: bool = True, **changes: Any
    ) -> str:
        request = BatchRequest.model_validate(
            {
                "expert": "top",
                "products": [{"sku": f"s{n}", "image": PICTURE} for n in range(num_products)],
                "persons": [{"name": f"p{n}", "image": PICTURE} for n in range(num_persons)],
                "webhook_url": HOOK,
                "start": start,
                **changes,
            }
        )
        return (await self.batches.make(self.caller, request)).id

    async def claim(self, limit: int = 1) -> list[Claim]:
        async with self.database.transaction() as session:
            return await self.claims.claim(session, "worker", limit)

    async def succeed(self, claim: Claim) -> None:
        async with self.database.transaction() as session:
            usage = Usage(gpu_ms=900, images=1)
            await self.claims.succeed(session, claim, {"outputs": []}, usage)

    async def fail(self, claim: Claim, *, is_final: bool = True) -> None:
        async with self.database.transaction() as session:
            await self.claims.fail(session, claim, PROBLEM, is_final=is_final)

    async def confirm(self, claim: Claim) -> None:
        async with self.database.transaction() as session:
            await self.claims.confirm_cancelled(session, claim)

    async def get(self, batch_id: str) -> Batch:
        async with self.database.reading() as session:
            return await get_batch(session, self.tenant_id, batch_id)

    async def counts(self, batch_id: str) -> Mapping[str, int]:
        async with self.database.reading() as session:
            counts = await count_cells(session, self.tenant_id, batch_id)
        return {status: count for status, count in counts.items() if count}

    async def cells(self, batch_id: str) -> list[Job]:
        async with self.database.reading() as session:
            batch = await get_batch(session, self.tenant_id, batch_id)
            return list(await read_cells(session, batch))

    async def count(self, table: Any) -> int:
        async with self.database.reading() as session:
            return await session.scalar(select(func.count()).select_from(table)) or 0

    async def events(self) -> list[str]:
        async with self.database.reading() as session:
            found = select(WebhookDelivery.event).order_by(WebhookDelivery.id)
            return list(await session.scalars(found))

    async def open_reservations(self) -> int:
        async with self.database.reading() as session:
            counted = select(func.count()).where(LedgerEntry.state == LedgerState.RESERVED)
            return await session.scalar(counted) or 0


@pytest.fixture
async def desk(database: Database) -> Desk:
    async with database.transaction() as session:
        await add_tenant(session, "acme")
        await add_tenant(session, "other")
    return Desk(database)


async def test_every_product_meets_every_person_once(desk: Desk) -> None:
    batch_id = await desk.make()
    jobs = await desk.cells(batch_id)
    spec = read_spec(await desk.get(batch_id))
    assert [job.cell for job in jobs] == list(range(12))
    assert [spec.place(cell) for cell in range(12)] == [
        (f"s{row}", f"p{column}") for row in range(3) for column in range(4)
    ]
    assert {job.version for job in jobs} == {"top@1"}
    assert await desk.open_reservations() == 12


async def test_ten_thousand_cells_start_in_a_bounded_number_of_statements(desk: Desk) -> None:
    batch_id = await desk.make(100, 100, start=False)
    statements: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    event.listen(desk.database.engine.sync_engine, "before_cursor_execute", note)
    started_s = perf_counter()
    await desk.batches.start(desk.caller, batch_id)
    print(f"10,000 cells in {perf_counter() - started_s:.2f} s, {len(statements)} statements")
    assert len(statements) < 100
    assert await desk.count(Job) == 10_000
    assert await desk.open_reservations() == 10_000
    statements.clear()
    started_s = perf_counter()
    await desk.batches.cancel(desk.caller, batch_id)
    print(f"cancelled in {perf_counter() - started_s:.2f} s, {len(statements)} statements")
    assert len(statements) < 100
    assert await desk.open_reservations() == 0
    assert await desk.events() == ["batch.cancelled"]


async def test_double_click_starts_once(desk: Desk) -> None:
    batch_id = await desk.make(start=False)
    starts = (desk.batches.start(desk.caller, batch_id) for _ in range(4))
    await asyncio.gather(*starts)
    assert await desk.count(Job) == 12
    assert await desk.open_reservations() == 12


async def test_batch_finishes_with_its_last_cell_and_says_so_once(desk: Desk) -> None:
    batch_id = await desk.make(1, 3)
    first, second, third = await desk.claim(3)
    await desk.succeed(first)
    await desk.fail(second)
    assert (await desk.get(batch_id)).state is BatchState.RUNNING
    assert await desk.events() == []
    desk.clock.advance(7)
    await desk.succeed(third)
    batch = await desk.get(batch_id)
    assert (batch.state, batch.num_ended) == (BatchState.FINISHED, 3)
    assert batch.finished_at == START + timedelta(seconds=7)
    assert await desk.events() == ["batch.finished"]
    assert await desk.counts(batch_id) == {"succeeded": 2, "failed": 1}


async def test_last_two_cells_that_end_at_once_finish_it_exactly_once(store_url: str) -> None:
    async with opened(store_url) as first, opened(store_url) as second:
        async with first.transaction() as session:
            await add_tenant(session)
        desks = [Desk(first), Desk(second)]
        for _ in range(10):
            batch_id = await desks[0].make(1, 2)
            claims = await desks[0].claim(2)
            await asyncio.gather(
                *(desk.succeed(claim) for desk, claim in zip(desks, claims, strict=True))
            )
            batch = await desks[0].get(batch_id)
            assert (batch.state, batch.num_ended) == (BatchState.FINISHED, 2)
        assert await desks[0].events() == ["batch.finished"] * 10


async def test_paused_batch_begins_no_cell_and_goes_on_afterwards(desk: Desk) -> None:
    batch_id = await desk.make(1, 4)
    (running,) = await desk.claim()
    for _ in range(2):
        await desk.batches.pause(desk.caller, batch_id)
    assert (await desk.get(batch_id)).state is BatchState.PAUSED
    desk.clock.advance(10**6)
    assert await desk.claim() == []
    await desk.succeed(running)
    for _ in range(2):
        await desk.batches.resume(desk.caller, batch_id)
    claims = await desk.claim(9)
    assert len(claims) == 3
    for claim in claims:
        await desk.succeed(claim)
    assert (await desk.get(batch_id)).state is BatchState.FINISHED


async def test_cell_that_fails_while_its_batch_is_paused_waits_with_it(desk: Desk) -> None:
    batch_id = await desk.make(1, 1)
    (running,) = await desk.claim()
    await desk.batches.pause(desk.caller, batch_id)
    await desk.fail(running, is_final=False)
    (job,) = await desk.cells(batch_id)
    assert (job.state, job.runnable_at) == (JobState.QUEUED, HELD_UNTIL)
    await desk.batches.resume(desk.caller, batch_id)
    (again,) = await desk.claim()
    assert again.job_id == running.job_id


async def test_paused_batch_whose_last_cell_ends_is_finished(desk: Desk) -> None:
    batch_id = await desk.make(1, 1)
    (running,) = await desk.claim()
    await desk.batches.pause(desk.caller, batch_id)
    await desk.succeed(running)
    assert (await desk.get(batch_id)).state is BatchState.FINISHED
    with pytest.raises(Conflict):
        await desk.batches.resume(desk.caller, batch_id)


async def test_cancelling_ends_what_waits_and_asks_what_runs(desk: Desk) -> None:
    batch_id = await desk.make(1, 4)
    done, running = await desk.claim(2)
    await desk.succeed(done)
    await desk.batches.cancel(desk.caller, batch_id)
    batch = await desk.get(batch_id)
    assert (batch.state, batch.num_ended, batch.finished_at) == (BatchState.CANCELLED, 3, None)
    assert await desk.counts(batch_id) == {"succeeded": 1, "running": 1, "cancelled": 2}
    assert await desk.events() == []
    async with desk.database.transaction() as session:
        assert (await desk.claims.heartbeat(session, running)).is_cancel_requested
    await desk.confirm(running)
    batch = await desk.get(batch_id)
    assert (batch.state, batch.num_ended) == (BatchState.CANCELLED, 4)
    assert batch.finished_at is not None
    assert await desk.events() == ["batch.cancelled"]
    assert await desk.open_reservations() == 0
    async with desk.database.reading() as session:
        kinds = select(JobEvent.kind, func.count()).group_by(JobEvent.kind)
        counts = {kind: count for kind, count in await session.execute(kinds)}
    assert counts["finished"] == 4


async def test_failed_cells_get_new_jobs_and_the_batch_ends_anew(desk: Desk) -> None:
    batch_id = await desk.make(1, 3)
    good, *bad = await desk.claim(3)
    await desk.succeed(good)
    for claim in bad:
        await desk.fail(claim)
    before = await desk.cells(batch_id)
    failed = [job.cell for job in before if job.state is JobState.FAILED]
    assert failed[0] is not None
    assert await desk.batches.retry(desk.caller, batch_id, failed[0]) == 1
    batch = await desk.get(batch_id)
    assert (batch.state, batch.num_ended, batch.finished_at) == (BatchState.RUNNING, 2, None)
    with pytest.raises(Conflict, match="has not failed"):
        await desk.batches.retry(desk.caller, batch_id, failed[0])
    retries = await asyncio.gather(*(desk.batches.retry(desk.caller, batch_id) for _ in range(3)))
    assert sorted(retries) == [0, 0, 1]
    assert (await desk.get(batch_id)).num_ended == 1
    for claim in await desk.claim(9):
        await desk.succeed(claim)
    assert await desk.counts(batch_id) == {"succeeded": 3}
    assert await desk.count(Job) == 5
    assert await desk.events() == ["batch.finished"] * 2
    after = await desk.cells(batch_id)
    assert [job.cell for job in after] == [0, 1, 2]
    assert {job.id for job in before if job.state is JobState.SUCCEEDED} < {job.id for job in after}


async def test_cell_that_is_tried_again_in_a_paused_batch_waits(desk: Desk) -> None:
    batch_id = await desk.make(1, 2)
    (bad,) = await desk.claim()
    await desk.fail(bad)
    await desk.batches.pause(desk.caller, batch_id)
    assert await desk.batches.retry(desk.caller, batch_id) == 1
    desk.clock.advance(10**6)
    assert await desk.claim() == []
    await desk.batches.resume(desk.caller, batch_id)
    assert len(await desk.claim(9)) == 2


async def test_cells_of_a_cancelled_batch_are_not_tried_again(desk: Desk) -> None:
    batch_id = await desk.make(1, 2)
    (bad,) = await desk.claim()
    await desk.fail(bad)
    await desk.batches.cancel(desk.caller, batch_id)
    with pytest.raises(Conflict):
        await desk.batches.retry(desk.caller, batch_id)
    assert await desk.count(Job) == 2
    assert await desk.open_reservations() == 0


async def test_budget_covers_all_cells_or_none_starts(desk: Desk) -> None:
    desk.policy = TenantPolicy(monthly_gpu_seconds=11.0)
    batch_id = await desk.make(start=False)
    with pytest.raises(QuotaExhausted):
        await desk.batches.start(desk.caller, batch_id)
    assert (await desk.get(batch_id)).state is BatchState.DRAFT
    assert (await desk.count(Job), await desk.open_reservations()) == (0, 0)
    estimate = await desk.batches.estimate(desk.caller, await desk.get(batch_id))
    assert (estimate.gpu_s, estimate.fits_budget, estimate.estimated_duration_s) == (12, False, 6)
    desk.policy = TenantPolicy(monthly_gpu_seconds=12.0)
    await desk.batches.start(desk.caller, batch_id)
    assert await desk.count(Job) == 12


async def test_queue_has_room_for_all_cells_or_none_starts(desk: Desk) -> None:
    desk.policy = TenantPolicy(max_queued_jobs=11)
    with pytest.raises(RateLimited):
        await desk.make()
    assert (await desk.count(Batch), await desk.count(Job)) == (0, 0)


async def test_asset_that_is_gone_or_another_tenants_is_not_found(desk: Desk) -> None:
    asset_id = "ast_" + "0" * 26
    async with desk.database.transaction() as session:
        session.add(
            Asset(
                tenant_id="acme",
                id=asset_id,
                kind=AssetKind.INPUT,
                sha256="0" * 64,
                num_bytes=1,
                media_type="image/png",
                created_at=START,
            )
        )
    products = [{"sku": "a", "image": asset_id}]
    batch_id = await desk.make(products=products, start=False)
    with pytest.raises(NotFound, match="no asset"):
        await Desk(desk.database, tenant_id="other").make(products=products)
    async with desk.database.transaction() as session:
        await session.delete(await session.get_one(Asset, ("acme", asset_id)))
    with pytest.raises(NotFound, match="no asset"):
        await desk.batches.start(desk.caller, batch_id)
    assert (await desk.get(batch_id)).state is BatchState.DRAFT


async def test_batch_of_an_erased_subject_is_gone_and_its_cells_end_without_it(desk: Desk) -> None:
    batch_id = await desk.make(1, 1, subject="anna")
    others = await desk.make(1, 1, subject="berta")
    claims = await desk.claim(2)
    async with desk.database.transaction() as session:
        assert await remove_subject_batches(session, "other", "anna") == []
        assert await remove_subject_batches(session, "acme", "anna") == [batch_id]
    for claim in claims:
        await desk.succeed(claim)
    with pytest.raises(NotFound):
        await desk.get(batch_id)
    assert (await desk.get(others)).state is BatchState.FINISHED


async def test_what_another_tenant_has_is_not_found(desk: Desk) -> None:
    batch_id = await desk.make()
    other = Desk(desk.database, desk.clock, tenant_id="other")
    batches = other.batches
    for act in (batches.start, batches.pause, batches.resume, batches.cancel, batches.retry):
        with pytest.raises(NotFound, match="no such batch"):
            await act(other.caller, batch_id)
    assert (await desk.get(batch_id)).state is BatchState.RUNNING


async def test_job_with_a_webhook_tells_its_end_once(desk: Desk) -> None:
    """As a poll would: the card of the job is the message."""
    await desk.make(1, 1, webhook_url=None)
    async with desk.database.transaction() as session:
        job = (await session.scalars(select(Job))).one()
        job.request = {**job.request, "webhook_url": HOOK}
    (claim,) = await desk.claim()
    await desk.fail(claim)
    async with desk.database.reading() as session:
        (message,) = await session.scalars(select(WebhookDelivery))
    assert (message.event, message.subject_id) == ("job.failed", claim.job_id)
    data = message.payload["data"]
    assert (data["id"], data["status"], data["error"]["code"]) == (
        claim.job_id,
        "failed",
        "generation_failed",
    )
