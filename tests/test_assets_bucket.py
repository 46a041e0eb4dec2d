"""The whole life of an asset in a bucket that speaks S3."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from serve.policy import TenantPolicy
from serve.settings import Settings
from serve.store.engine import Database
from serve.store.opening import open_blobs
from serve.store.tables import AssetKind
from serve.tenancy.assets import AssetStore
from serve.tenancy.idempotency import FirstAnswers
from serve.tenancy.retention import Sweeper
from tests.stores import FakeClock, add_tenant
from tests.test_store_blobs import s3_endpoint  # noqa: F401

pytestmark = pytest.mark.anyio


async def test_asset_is_kept_deleted_expired_and_swept(
    database: Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    s3_endpoint: str,  # noqa: F811
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    query = f"region=us-east-1&endpoint={s3_endpoint}"
    blobs = open_blobs(Settings(blobs_url=f"s3://looks/{tmp_path.name}?{query}"))
    async with database.transaction() as session:
        await add_tenant(session, "acme")
    clock = FakeClock()
    clock.now = datetime.now(UTC)
    assets = AssetStore(database, blobs, clock)
    kind, policy = AssetKind.INPUT, TenantPolicy()
    one = await assets.store("acme", policy, kind, b"one", "image/png")
    two = await assets.store("acme", policy, kind, b"two", "image/png")
    assert await assets.load("acme", one.id) == b"one"
    assert (await assets.delete("acme", one.id)).is_blob_deleted
    await blobs.put("acme", "input", b"orphan")
    clock.advance(policy.input_retention_s + 1)
    answers = FirstAnswers(database, blobs, clock)
    report = await Sweeper(database, blobs, assets, answers, clock).run_once()
    assert (report.num_assets, report.num_orphans, report.num_failures) == (1, 1, 0)
    assert two.sha256 not in {info.key.sha256 async for info in blobs.list("acme")}
