"""What has outlived its time goes, what has not stays; a subject that is erased leaves a proof."""

import asyncio
import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from serve.errors import NotFound
from serve.policy import DAY_S, TenantPolicy
from serve.settings import Settings
from serve.store.audit import list_records, verify_records
from serve.store.batch_tables import DeliveryState, WebhookDelivery
from serve.store.blobs import Blobs
from serve.store.engine import Database
from serve.store.events import append_event
from serve.store.ids import new_id
from serve.store.ledger import Budget, Reservation, reserve
from serve.store.opening import open_blobs
from serve.store.tables import (
    AssetKind,
    IdempotencyKey,
    Job,
    JobEvent,
    JobState,
    LedgerEntry,
    LedgerState,
    Tenant,
)
from serve.tenancy.assets import AssetStore
from serve.tenancy.erasure import Erasure
from serve.tenancy.idempotency import Answer, FirstAnswers
from serve.tenancy.memory import remembered_as
from serve.tenancy.retention import Sweeper, SweepReport
from tests.stores import FakeClock, add_job, add_tenant

pytestmark = pytest.mark.anyio

POLICY = TenantPolicy()
PICTURE = Answer(status=200, headers=(), media_type="image/png", body=b"\x89PNG")


class House:
    """One store with everything that keeps something in it."""

    def __init__(self, database: Database, blobs: Blobs):
        self.clock = FakeClock()
        self.clock.now = datetime.now(UTC)  # blobs have the age that their store says
        self.database, self.blobs = database, blobs
        self.assets = AssetStore(database, blobs, self.clock)
        self.answers = FirstAnswers(database, blobs, self.clock)
        self.sweeper = Sweeper(database, blobs, self.assets, self.answers, self.clock)
        self.forgotten: set[str] = set()

    async def forget(self, content_hashes: Any) -> None:
        self.forgotten |= set(content_hashes)

    @property
    def erasure(self) -> Erasure:
        return Erasure(self.database, self.assets, self.answers, self.forget, self.clock)

    async def keep(self, data: bytes, subject: str = "", tenant_id: str = "acme") -> str:
        kind = AssetKind.INPUT
        return (await self.assets.store(tenant_id, POLICY, kind, data, "image/png", subject)).id

    async def answer(self, key: str, *refers: str) -> None:
        row = await self.answers.take("acme", key, "a" * 64)
        async with self.answers.holding(row) as held:
            await self.answers.keep(held, PICTURE, POLICY, refers)

    async def add_job(self, state: JobState, subject: str = "", **values: Any) -> str:
        async with self.database.transaction() as session:
            job_id = await add_job(session, "acme", self.clock())
            job = await session.get_one(Job, ("acme", job_id))
            job.state, job.subject = state, subject
            if state is JobState.RUNNING:
                job.lease_token, job.lease_expires_at = "t", self.clock()
            for name, value in values.items():
                setattr(job, name, value)
            await append_event(session, "acme", job_id, "started", {}, self.clock())
        return job_id

    async def add_delivery(self, state: DeliveryState, subject_id: str = "job_1") -> None:
        async with self.database.transaction() as session:
            session.add(
                WebhookDelivery(
                    tenant_id="acme",
                    id=new_id("whd"),
                    event="job.succeeded",
                    subject_id=subject_id,
                    url="https://example.com",
                    payload={},
                    state=state,
                    next_attempt_at=self.clock(),
                    created_at=self.clock(),
                )
            )

    async def count(self, table: Any) -> int:
        async with self.database.reading() as session:
            return int(await session.scalar(select(func.count()).select_from(table)) or 0)

    async def files(self) -> set[str]:
        return {info.key.sha256 async for info in self.blobs.list("acme")}


@pytest.fixture
async def house(database: Database, tmp_path: Path) -> House:
    async with database.transaction() as session:
        for tenant_id in ("acme", "other"):
            await add_tenant(session, tenant_id)
    return House(database, open_blobs(Settings(data_dir=tmp_path)))


async def test_nothing_goes_before_its_time(house: House) -> None:
    await house.keep(b"picture")
    await house.answer("k")
    await house.add_job(JobState.SUCCEEDED, finished_at=house.clock())
    await house.add_delivery(DeliveryState.DELIVERED)
    await house.blobs.put("acme", "input", b"just put, its row is on the way")
    house.clock.advance(DAY_S - 60)
    assert await house.sweeper.run_once() == SweepReport()


async def test_everything_goes_after_its_time_and_only_that(house: House) -> None:
    await house.keep(b"picture")
    await house.answer("k")
    await house.add_job(JobState.SUCCEEDED, finished_at=house.clock())
    waiting = await house.add_job(JobState.QUEUED)
    await house.add_delivery(DeliveryState.DELIVERED)
    await house.add_delivery(DeliveryState.FAILED)
    await house.add_delivery(DeliveryState.PENDING)
    await house.blobs.put("acme", "input", b"orphan")
    await house.blobs.put("acme", "answer", b"orphan")
    house.clock.advance(31 * DAY_S)
    fresh = await house.keep(b"fresh")
    report = await house.sweeper.run_once()
    assert report == SweepReport(
        num_assets=1, num_jobs=1, num_answers=1, num_deliveries=2, num_orphans=2
    )
    assert await house.assets.load("acme", fresh) == b"fresh"
    assert await house.files() == {hashlib.sha256(b"fresh").hexdigest()}
    async with house.database.reading() as session:
        assert list(await session.scalars(select(Job.id))) == [waiting]
        assert list(await session.scalars(select(JobEvent.job_id))) == [waiting]
        (kept,) = await session.scalars(select(WebhookDelivery.state))
    assert kept is DeliveryState.PENDING
    assert await house.sweeper.run_once() == SweepReport()


async def test_reservation_of_a_router_that_died_is_released(house: House) -> None:
    reservation = Reservation(
        tenant_id="acme",
        work_item="tr_1",
        key_id=None,
        expert="top",
        version="top@1",
        gpu_ms=1000,
        images=1,
        expires_at=house.clock() + timedelta(seconds=60),
    )
    async with house.database.transaction() as session:
        await reserve(session, [reservation], Budget(gpu_ms=None, images=None), house.clock())
    assert (await house.sweeper.run_once()).num_reservations == 0
    house.clock.advance(61)
    assert (await house.sweeper.run_once()).num_reservations == 1
    async with house.database.reading() as session:
        assert await session.scalar(select(LedgerEntry.state)) is LedgerState.RELEASED


async def test_sweepers_at_once_delete_everything_once(house: House) -> None:
    for number in range(12):
        await house.keep(b"%d" % number)
    house.clock.advance(31 * DAY_S)
    reports = await asyncio.gather(*(house.sweeper.run_once() for _ in range(3)))
    assert sum(report.num_assets for report in reports) == 12
    assert await house.files() == set()


async def test_tenant_that_cannot_be_swept_keeps_nobody_else_waiting(house: House) -> None:
    class Failing(AssetStore):
        async def drop_expired(self, tenant_id: str, *about: Any, **more: Any) -> Any:
            if tenant_id == "acme":
                raise NotFound("the store is gone")
            return await super().drop_expired(tenant_id, *about, **more)

    failing = Failing(house.database, house.blobs, house.clock)
    sweeper = Sweeper(house.database, house.blobs, failing, house.answers, house.clock)
    await house.keep(b"picture", tenant_id="other")
    house.clock.advance(31 * DAY_S)
    report = await sweeper.run_once()
    assert (report.num_failures, report.num_assets) == (1, 1)


async def test_unreadable_policy_keeps_nobody_else_waiting(house: House) -> None:
    async with house.database.transaction() as session:
        (await session.get_one(Tenant, "acme")).policy = {"weight": "heavy"}
    await house.keep(b"picture", tenant_id="other")
    house.clock.advance(31 * DAY_S)
    report = await house.sweeper.run_once()
    assert (report.num_failures, report.num_assets) == (1, 1)


async def test_result_retention_of_the_tenant_is_what_counts_for_its_jobs(house: House) -> None:
    async with house.database.transaction() as session:
        tenant = await session.get_one(Tenant, "acme")
        tenant.policy = {"result_retention_s": 2 * DAY_S}
    await house.add_job(JobState.FAILED, finished_at=house.clock())
    house.clock.advance(2 * DAY_S - 1)
    assert (await house.sweeper.run_once()).num_jobs == 0
    house.clock.advance(1)
    assert (await house.sweeper.run_once()).num_jobs == 1


async def test_previews_are_kept_no_longer_than_the_results_they_show(house: House) -> None:
    async with house.database.transaction() as session:
        (await session.get_one(Tenant, "acme")).policy = {"result_retention_s": 3600}
    job_id = await house.add_job(JobState.SUCCEEDED, finished_at=house.clock())
    async with house.database.transaction() as session:
        for kind in ("preview", "finished"):
            await append_event(session, "acme", job_id, kind, {}, house.clock())
    house.clock.advance(3599)
    assert (await house.sweeper.run_once()).num_previews == 0
    house.clock.advance(1)
    assert (await house.sweeper.run_once()).num_previews == 1
    async with house.database.reading() as session:
        kinds = await session.scalars(select(JobEvent.kind).order_by(JobEvent.sequence))
        assert list(kinds) == ["started", "finished"]


async def test_erasure_reaches_rows_blobs_answers_caches_and_leaves_a_proof(house: House) -> None:
    hers, his = await house.keep(b"hers", "anna"), await house.keep(b"his", "bob")
    theirs = await house.keep(b"hers", "anna", tenant_id="other")
    sha256 = hashlib.sha256(b"hers").hexdigest()
    await house.answer("by content", sha256)
    await house.answer("of him")
    ended = await house.add_job(JobState.SUCCEEDED, "anna", finished_at=house.clock())
    waiting = await house.add_job(JobState.QUEUED, "anna")
    running = await house.add_job(JobState.RUNNING, "anna")
    of_him = await house.add_job(JobState.QUEUED, "bob")
    await house.add_delivery(DeliveryState.PENDING, ended)
    erased = await house.erasure.erase("acme", "anna", "key_1")
    assert [asset.id for asset in erased.assets] == [hers]
    assert (erased.assets[0].sha256, erased.assets[0].is_blob_deleted) == (sha256, True)
    assert set(erased.jobs_deleted) == {ended, waiting}
    assert (erased.jobs_cancelling, erased.is_complete) == ((running,), False)
    assert (erased.num_answers, erased.num_deliveries, erased.num_bytes) == (1, 1, 4)
    assert house.forgotten == {remembered_as("acme", sha256)}
    with pytest.raises(NotFound):
        await house.assets.load("acme", hers)
    assert await house.assets.load("acme", his) == b"his"
    assert await house.assets.load("other", theirs) == b"hers"
    async with house.database.reading() as session:
        assert set(await session.scalars(select(Job.id))) == {running, of_him}
        assert await session.scalar(select(Job.cancel_requested_at).where(Job.id == running))
        (record,) = await list_records(session, limit=5)
        assert (await verify_records(session)).broken_sequence is None
    assert (record.sequence, record.sha256) == (erased.audit_sequence, erased.audit_sha256)
    assert (record.actor, record.action) == ("key_1", "subject.erase")
    assert record.detail["assets"][0]["sha256"] == sha256
    assert record.target == hashlib.sha256(b"anna").hexdigest()
    assert "anna" not in repr((record.detail, record.target, erased))


async def test_running_job_of_an_erased_subject_goes_when_it_has_ended(house: House) -> None:
    running = await house.add_job(JobState.RUNNING, "anna")
    assert not (await house.erasure.erase("acme", "anna", "key_1")).is_complete
    assert (await house.sweeper.run_once()).num_jobs == 0
    async with house.database.transaction() as session:
        job = await session.get_one(Job, ("acme", running))
        job.state, job.lease_token, job.lease_expires_at = JobState.CANCELLED, None, None
    again = await house.erasure.erase("acme", "anna", "key_1")
    assert (again.jobs_deleted, again.is_complete) == ((running,), True)


async def test_erasing_somebody_unknown_is_proved_too(house: House) -> None:
    erased = await house.erasure.erase("acme", "nobody", "key_1")
    assert (erased.assets, erased.is_complete, erased.audit_sequence) == ((), True, 1)
    assert await house.count(IdempotencyKey) == 0
