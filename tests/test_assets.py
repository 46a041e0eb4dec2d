"""Bytes and rows of assets stay in step: under crashes, crowds, expiry and other tenants."""

import asyncio
from pathlib import Path

import pytest

from serve.errors import NotFound, NotSupported
from serve.policy import TenantPolicy
from serve.settings import Settings
from serve.store.assets import add_asset, get_asset, list_assets
from serve.store.blobs import BlobKey, Blobs, hash_bytes
from serve.store.engine import Database
from serve.store.opening import open_blobs
from serve.store.tables import Asset, AssetKind, Job, JobState
from serve.tenancy.assets import AssetStore, check_uploads_kept
from tests.stores import FakeClock, add_job, add_tenant

pytestmark = pytest.mark.anyio

POLICY = TenantPolicy()
NOTHING_KEPT = TenantPolicy(input_retention_s=0, result_retention_s=0)
PICTURE = b"\x89PNG a picture"


class Crash(Exception):
    """A process that ends here."""


class Blobstore(Blobs):
    """The real blobs, with a process that ends before or after one of their writes."""

    ends_before: str = ""
    ends_after: str = ""

    async def put(
        self, tenant_id: str, kind: str, data: bytes, *, sha256: str | None = None
    ) -> BlobKey:
        if self.ends_before == "put":
            raise Crash
        key = await super().put(tenant_id, kind, data, sha256=sha256)
        if self.ends_after == "put":
            raise Crash
        return key

    async def delete(self, key: BlobKey) -> None:
        if self.ends_before == "delete":
            raise Crash
        await super().delete(key)
        if self.ends_after == "delete":
            raise Crash


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def blobs(tmp_path: Path) -> Blobstore:
    return Blobstore(open_blobs(Settings(data_dir=tmp_path))._store)


@pytest.fixture
async def assets(database: Database, blobs: Blobstore, clock: FakeClock) -> AssetStore:
    async with database.transaction() as session:
        await add_tenant(session, "acme")
        await add_tenant(session, "other")
    return AssetStore(database, blobs, clock)


async def keep(
    assets: AssetStore, data: bytes = PICTURE, subject: str = "", tenant_id: str = "acme"
) -> Asset:
    return await assets.store(tenant_id, POLICY, AssetKind.INPUT, data, "image/png", subject)


async def rows(database: Database, tenant_id: str = "acme") -> list[str]:
    async with database.reading() as session:
        found = await list_assets(session, tenant_id, now=FakeClock().now, limit=200)
    return [asset.id for asset in found]


async def files(blobs: Blobs, tenant_id: str = "acme") -> set[str]:
    return {info.key.sha256 async for info in blobs.list(tenant_id)}


async def test_what_was_stored_is_loaded_and_the_same_again_is_the_same_asset(
    assets: AssetStore,
) -> None:
    first = await keep(assets)
    assert await assets.load("acme", first.id) == PICTURE
    assert (await keep(assets)).id == first.id
    assert (first.sha256, first.num_bytes) == (hash_bytes(PICTURE), len(PICTURE))


async def test_the_later_expiry_wins_and_for_ever_is_latest(
    assets: AssetStore, database: Database, clock: FakeClock
) -> None:
    first = await keep(assets)
    assert first.expires_at is not None
    clock.advance(60)
    again = await keep(assets)
    assert again.expires_at is not None
    assert (again.expires_at - first.expires_at).total_seconds() == 60
    brief = TenantPolicy(input_retention_s=1)
    kept = await assets.store("acme", brief, AssetKind.INPUT, PICTURE, "image/png")
    assert kept.expires_at == again.expires_at
    async with database.transaction() as session:
        fields = {"tenant_id": "acme", "kind": AssetKind.INPUT, "sha256": kept.sha256}
        fields |= {"num_bytes": kept.num_bytes, "media_type": "image/png", "now": clock()}
        await add_asset(session, **fields, expires_at=None)
    assert (await keep(assets)).expires_at is None


async def test_another_tenants_asset_and_an_unknown_one_are_the_same_words(
    assets: AssetStore, database: Database
) -> None:
    mine = await keep(assets)
    theirs = await keep(assets, tenant_id="other")
    assert mine.id != theirs.id
    for asset_id in (theirs.id, "ast_unknown", "ast_" + "0" * 26, "ast_\0"):
        for act in (assets.load, assets.find, assets.delete):
            with pytest.raises(NotFound) as caught:
                await act("acme", asset_id)
            assert caught.value.detail == f"There is no asset {asset_id}."
    await assets.delete("acme", mine.id)
    assert await assets.load("other", theirs.id) == PICTURE


async def test_deleted_is_gone_with_its_bytes(
    assets: AssetStore, database: Database, blobs: Blobs
) -> None:
    asset = await keep(assets)
    deleted = await assets.delete("acme", asset.id)
    assert (deleted.sha256, deleted.is_blob_deleted) == (hash_bytes(PICTURE), True)
    assert (await rows(database), await files(blobs)) == ([], set())
    with pytest.raises(NotFound):
        await assets.delete("acme", asset.id)


async def test_bytes_of_two_subjects_go_with_the_last(assets: AssetStore, blobs: Blobs) -> None:
    anna, bea = await keep(assets, subject="anna"), await keep(assets, subject="bea")
    assert anna.id != bea.id
    (erased,) = await assets.erase_subject("acme", "anna")
    assert (erased.id, erased.is_blob_deleted) == (anna.id, False)
    assert await assets.load("acme", bea.id) == PICTURE
    (erased,) = await assets.erase_subject("acme", "bea")
    assert erased.is_blob_deleted
    assert await files(blobs) == set()
    assert await assets.erase_subject("acme", "bea") == []


async def test_results_and_inputs_with_the_same_bytes_are_apart(assets: AssetStore) -> None:
    asked = await keep(assets)
    made = await assets.store("acme", POLICY, AssetKind.RESULT, PICTURE, "image/png")
    await assets.delete("acme", asked.id)
    assert await assets.load("acme", made.id) == PICTURE


async def test_crash_before_the_row_leaves_an_orphan_and_no_promise(
    assets: AssetStore, database: Database, blobs: Blobstore
) -> None:
    blobs.ends_after = "put"
    with pytest.raises(Crash):
        await keep(assets)
    assert (await rows(database), await files(blobs)) == ([], {hash_bytes(PICTURE)})
    blobs.ends_after = ""
    asset = await keep(assets)
    assert await assets.load("acme", asset.id) == PICTURE


@pytest.mark.parametrize("moment", ["ends_before", "ends_after"])
async def test_crash_in_a_deletion_leaves_no_row_without_bytes(
    assets: AssetStore, database: Database, blobs: Blobstore, moment: str
) -> None:
    asset = await keep(assets)
    setattr(blobs, moment, "delete")
    with pytest.raises(Crash):
        await assets.delete("acme", asset.id)
    assert await rows(database) == []
    setattr(blobs, moment, "")
    again = await keep(assets)
    assert await assets.load("acme", again.id) == PICTURE


class DeletedMeanwhile(Blobstore):
    """Between an upload's blob and its row, the last row of the same bytes goes, and they do."""

    async def put(
        self, tenant_id: str, kind: str, data: bytes, *, sha256: str | None = None
    ) -> BlobKey:
        key = await super().put(tenant_id, kind, data, sha256=sha256)
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            store, asset_id = meanwhile
            await store.delete(tenant_id, asset_id)
        return key

    meanwhile: tuple[AssetStore, str] | None = None


async def test_upload_that_a_deletion_overtakes_has_its_bytes(
    assets: AssetStore, database: Database, blobs: Blobs, clock: FakeClock
) -> None:
    asset = await keep(assets)
    overtaken = DeletedMeanwhile(blobs._store)
    overtaken.meanwhile = assets, asset.id
    again = await AssetStore(database, overtaken, clock).store(
        "acme", POLICY, AssetKind.INPUT, PICTURE, "image/png"
    )
    assert again.id != asset.id
    assert await assets.load("acme", again.id) == PICTURE


async def test_uploads_and_deletions_at_once_never_leave_a_row_without_bytes(
    assets: AssetStore, database: Database
) -> None:
    async def upload_and_delete(number: int) -> None:
        asset = await keep(assets, subject=f"s{number % 3}")
        if number % 2:
            try:
                await assets.delete("acme", asset.id)
            except NotFound:
                return

    await asyncio.gather(*(upload_and_delete(number) for number in range(16)))
    for asset_id in await rows(database):
        assert await assets.load("acme", asset_id) == PICTURE


async def test_expired_is_not_found_and_dropped_with_its_bytes(
    assets: AssetStore, blobs: Blobs, clock: FakeClock
) -> None:
    asset = await keep(assets)
    assert await assets.drop_expired("acme") == []
    clock.advance(POLICY.input_retention_s)
    with pytest.raises(NotFound):
        await assets.find("acme", asset.id)
    assert [deleted.id for deleted in await assets.drop_expired("other")] == []
    assert [deleted.id for deleted in await assets.drop_expired("acme")] == [asset.id]
    assert await files(blobs) == set()


@pytest.mark.parametrize("picture", ["person", "product", "mask"])
async def test_what_an_unfinished_job_was_given_is_kept_until_it_ends(
    assets: AssetStore, database: Database, clock: FakeClock, picture: str
) -> None:
    asset = await assets.store("acme", NOTHING_KEPT, AssetKind.INPUT, PICTURE, "image/png")
    async with database.transaction() as session:
        job_id = await add_job(session, "acme")
        job = await session.get_one(Job, ("acme", job_id))
        job.request = {"person": {"url": "https://a"}, "mask": None, picture: {"asset": asset.id}}
    clock.advance(1)
    for named in (None, [asset.id]):
        assert await assets.drop_expired("acme", asset_ids=named) == []
    assert await assets.load("acme", asset.id) == PICTURE
    async with database.transaction() as session:
        job = await session.get_one(Job, ("acme", job_id))
        job.state = JobState.SUCCEEDED
    assert len(await assets.drop_expired("acme", asset_ids=[asset.id])) == 1
    with pytest.raises(NotFound):
        await assets.load("acme", asset.id)


async def test_held_asset_is_not_swept_under_the_job_that_is_being_accepted(
    assets: AssetStore, database: Database, clock: FakeClock
) -> None:
    if database.is_sqlite:
        pytest.skip("one writer at a time: the sweep comes before or after")
    asset = await assets.store("acme", NOTHING_KEPT, AssetKind.INPUT, PICTURE, "image/png")
    clock.advance(1)
    async with database.transaction() as session:
        await get_asset(session, "acme", asset.id, is_held=True)
        assert await assets.drop_expired("acme") == []
    assert len(await assets.drop_expired("acme")) == 1


async def test_pages_are_newest_first_and_filtered(assets: AssetStore, database: Database) -> None:
    ids = [(await keep(assets, b"%d" % number, f"s{number % 2}")).id for number in range(5)]
    async with database.reading() as session:
        now = FakeClock().now
        page = await list_assets(session, "acme", now=now, limit=2)
        rest = await list_assets(session, "acme", now=now, after=page[-1].id)
        odd = await list_assets(session, "acme", now=now, subject="s1")
        made = await list_assets(session, "acme", now=now, kind=AssetKind.RESULT)
    assert [asset.id for asset in [*page, *rest]] == sorted(ids, reverse=True)
    assert {asset.subject for asset in odd} == {"s1"}
    assert made == []


async def test_rows_in_one_transaction_are_undone_together(
    assets: AssetStore, database: Database, clock: FakeClock
) -> None:
    async def add_and_end() -> None:
        async with database.transaction() as session:
            await add_asset(
                session,
                tenant_id="acme",
                kind=AssetKind.RESULT,
                sha256=hash_bytes(PICTURE),
                num_bytes=len(PICTURE),
                media_type="image/png",
                expires_at=None,
                now=clock(),
            )
            raise Crash

    with pytest.raises(Crash):
        await add_and_end()
    assert await rows(database) == []


def test_tenant_that_keeps_no_inputs_is_told_what_to_do_instead() -> None:
    check_uploads_kept(POLICY)
    with pytest.raises(NotSupported, match="input_retention_s is 0") as caught:
        check_uploads_kept(NOTHING_KEPT)
    assert caught.value.remedy
