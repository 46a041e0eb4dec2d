"""Pictures of tenants: bytes and rows kept in step, and gone together.

Bytes first, then the row: a crash between the two leaves a blob that nobody was promised, which
the sweeper finds. Gone is the other way round. Nothing is shared between tenants, so neither an
id nor the time an upload takes says what another tenant has.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from serve.errors import NotFound, NotSupported
from serve.policy import TenantPolicy
from serve.store.assets import (
    add_asset,
    get_asset,
    list_assets,
    remove_asset,
    remove_expired,
    remove_subject,
    unknown_asset,
)
from serve.store.audit import Act, append_record
from serve.store.blobs import BlobKey, Blobs
from serve.store.columns import utc_now
from serve.store.contents import is_needed, own_content
from serve.store.engine import Database
from serve.store.ids import new_id
from serve.store.tables import Asset, AssetKind

BATCH = 200


@dataclass(frozen=True, slots=True)
class Deleted:
    """What of one asset is gone."""

    id: str
    kind: AssetKind
    sha256: str
    num_bytes: int
    is_blob_deleted: bool
    """False where another asset of the tenant has the same bytes."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An asset that is kept, and whether it was before."""

    asset: Asset
    is_new: bool


class PictureStore(Protocol):
    """What keeps pictures, as whoever only makes them sees it."""

    async def store(
        self,
        tenant_id: str,
        policy: TenantPolicy,
        kind: AssetKind,
        data: bytes,
        media_type: str,
        subject: str = "",
        *,
        width_px: int | None = None,
        height_px: int | None = None,
    ) -> Asset: ...


class AssetStore:
    """What a tenant was told is kept can be loaded until it expires or is deleted."""

    def __init__(self, database: Database, blobs: Blobs, now: Callable[[], datetime] = utc_now):
        self._database = database
        self._blobs = blobs
        self._now = now

    async def keep(
        self,
        tenant_id: str,
        policy: TenantPolicy,
        kind: AssetKind,
        data: bytes,
        media_type: str,
        subject: str = "",
        *,
        width_px: int | None = None,
        height_px: int | None = None,
    ) -> Stored:
        """Keep a picture; the same bytes and subject are the same asset, kept longer.

        With a retention of 0 it has expired at once, and is kept as long as an unfinished job
        was given it.
        """
        new = new_id("ast")
        key = await self._blobs.put(tenant_id, kind.value, data)
        now = self._now()
        async with self._database.transaction() as session:
            asset = await add_asset(
                session,
                tenant_id=tenant_id,
                kind=kind,
                sha256=key.sha256,
                num_bytes=len(data),
                media_type=media_type,
                subject=subject,
                width_px=width_px,
                height_px=height_px,
                expires_at=expiry(policy, kind, now),
                now=now,
                asset_id=new,
            )
        # Somebody may have deleted the last row of these bytes, and them, just before ours came.
        if not await self._blobs.has(key):
            await self._blobs.put(tenant_id, kind.value, data)
        return Stored(asset, is_new=asset.id == new)

    async def store(
        self,
        tenant_id: str,
        policy: TenantPolicy,
        kind: AssetKind,
        data: bytes,
        media_type: str,
        subject: str = "",
        *,
        width_px: int | None = None,
        height_px: int | None = None,
    ) -> Asset:
        """As `keep`, where nobody asks whether it is new."""
        stored = await self.keep(
            tenant_id,
            policy,
            kind,
            data,
            media_type,
            subject,
            width_px=width_px,
            height_px=height_px,
        )
        return stored.asset

    async def page(
        self,
        tenant_id: str,
        *,
        kind: AssetKind | None = None,
        subject: str | None = None,
        after: str | None = None,
        limit: int = 50,
    ) -> Sequence[Asset]:
        """Newest first, what has not expired; `after` is the last id of the page before."""
        async with self._database.reading() as session:
            return await list_assets(
                session,
                tenant_id,
                now=self._now(),
                kind=kind,
                subject=subject,
                after=after,
                limit=limit,
            )

    async def find(self, tenant_id: str, asset_id: str) -> Asset:
        """
        Raises:
            NotFound: the tenant has no such asset, or it has expired.
        """
        async with self._database.reading() as session:
            return await get_asset(session, tenant_id, asset_id, now=self._now())

    async def load(self, tenant_id: str, asset_id: str, *, is_live: bool = False) -> bytes:
        """Its bytes, also after it has expired while an unfinished job was given it.

        Args:
            is_live: not after it has expired, as for what somebody asks for now.

        Raises:
            NotFound: the tenant has no such asset.
        """
        async with self._database.reading() as session:
            now = self._now() if is_live else None
            asset = await get_asset(session, tenant_id, asset_id, now=now)
        try:
            return await self._blobs.get(_key(asset))
        except NotFound:
            # Deleted between the two, or the store lost it: the blob's name is not for callers.
            raise unknown_asset(asset_id) from None

    async def delete(self, tenant_id: str, asset_id: str, *, actor: str = "") -> Deleted:
        """
        Args:
            actor: the key that asked for it, for the audit log.

        Raises:
            NotFound: the tenant has no such asset.
        """
        async with self._database.transaction() as session:
            asset = await remove_asset(session, tenant_id, asset_id)
            # With the row, so that no crash leaves a deletion that nobody can prove.
            detail = {"kind": asset.kind.value, "sha256": asset.sha256}
            act = Act(
                actor=actor,
                action="asset.delete",
                tenant_id=tenant_id,
                target=asset_id,
                detail=detail,
            )
            await append_record(session, act, self._now())
        (deleted,) = await self._drop_blobs([asset])
        return deleted

    async def erase_subject(self, tenant_id: str, subject: str) -> list[Deleted]:
        """Every asset of a subject, whoever still wanted to use it."""
        deleted: list[Deleted] = []
        while True:
            async with self._database.transaction() as session:
                assets = await remove_subject(session, tenant_id, subject, BATCH)
            if not assets:
                return deleted
            deleted += await self._drop_blobs(assets)

    async def drop_expired(
        self, tenant_id: str, limit: int = BATCH, asset_ids: Sequence[str] | None = None
    ) -> list[Deleted]:
        """Up to `limit` expired assets that no unfinished job was given.

        Args:
            asset_ids: only of these: the inputs of a job that has just ended.
        """
        async with self._database.transaction() as session:
            assets = await remove_expired(session, tenant_id, self._now(), limit, asset_ids)
        return await self._drop_blobs(assets)

    async def drop_blob(self, key: BlobKey) -> bool:
        """Delete a blob unless a row refers to it; says whether it did."""
        async with self._database.transaction() as session:
            await own_content(session, key)
            if await is_needed(session, key):
                return False
            await self._blobs.delete(key)
        return True

    async def _drop_blobs(self, assets: Iterable[Asset]) -> list[Deleted]:
        return [
            Deleted(
                id=asset.id,
                kind=asset.kind,
                sha256=asset.sha256,
                num_bytes=asset.num_bytes,
                is_blob_deleted=await self.drop_blob(_key(asset)),
            )
            for asset in assets
        ]


def check_uploads_kept(policy: TenantPolicy) -> None:
    """
    Raises:
        NotSupported: the tenant keeps no inputs, so an upload would be gone before its first use.
    """
    if policy.input_retention_s == 0:
        raise NotSupported(
            "this tenant keeps no uploads: its input_retention_s is 0",
            remedy="send the pictures with the try-on or the job itself",
        )


def expiry(policy: TenantPolicy, kind: AssetKind, now: datetime) -> datetime:
    """When something of this kind that is kept from now on goes."""
    is_input = kind is AssetKind.INPUT
    kept_s = policy.input_retention_s if is_input else policy.result_retention_s
    return now + timedelta(seconds=kept_s)


def _key(asset: Asset) -> BlobKey:
    return BlobKey(asset.tenant_id, asset.kind.value, asset.sha256)
