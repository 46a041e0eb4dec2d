"""The rows of assets: added, read, listed and removed, always through their tenant.

Bytes are not this module's; `serve.tenancy.assets` keeps both in step.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Select, case, delete, or_, select

from serve.errors import NotFound
from serve.store.blobs import BlobKey
from serve.store.contents import share_content
from serve.store.engine import Session
from serve.store.ids import ID, new_id
from serve.store.tables import Asset, AssetKind, Job, JobState
from serve.store.upserts import insert_into

UNFINISHED = (JobState.QUEUED, JobState.RUNNING)
PICTURES = ("person", "product", "mask")


async def add_asset(
    session: Session,
    *,
    tenant_id: str,
    kind: AssetKind,
    sha256: str,
    num_bytes: int,
    media_type: str,
    subject: str = "",
    width_px: int | None = None,
    height_px: int | None = None,
    expires_at: datetime | None,
    now: datetime,
    asset_id: str | None = None,
) -> Asset:
    """Add a row, or meet the one that has the same bytes and subject: the later expiry wins.

    The blob must have been put before, and must be looked at again after the commit (`contents`).

    Args:
        asset_id: of the row, if it is a new one.
    """
    await share_content(session, BlobKey(tenant_id, kind.value, sha256))
    insert = insert_into(session, Asset).values(
        tenant_id=tenant_id,
        id=asset_id or new_id("ast"),
        kind=kind,
        sha256=sha256,
        num_bytes=num_bytes,
        media_type=media_type,
        width_px=width_px,
        height_px=height_px,
        subject=subject,
        created_at=now,
        expires_at=expires_at,
    )
    new = insert.excluded.expires_at
    is_endless = or_(Asset.expires_at.is_(None), new.is_(None))
    later = case((is_endless, None), (Asset.expires_at < new, new), else_=Asset.expires_at)
    upsert = insert.on_conflict_do_update(
        index_elements=["tenant_id", "kind", "sha256", "subject"], set_={"expires_at": later}
    )
    row: Asset = (await session.scalars(upsert.returning(Asset), execution_options=FRESH)).one()
    return row


async def get_asset(
    session: Session,
    tenant_id: str,
    asset_id: str,
    *,
    now: datetime | None = None,
    is_held: bool = False,
) -> Asset:
    """
    Args:
        now: an asset that has expired by then is not found; without it, until it is swept.
        is_held: nobody removes it before this transaction commits, as a job needs that is being
            accepted.

    Raises:
        NotFound: the tenant has no such asset; the same words for another tenant's.
    """
    if ID.fullmatch(asset_id) is None:  # a database may stumble over what no id looks like
        raise unknown_asset(asset_id)
    found = select(Asset).where(Asset.tenant_id == tenant_id, Asset.id == asset_id)
    if is_held:
        found = found.with_for_update(read=True)
    row = await session.scalar(found)
    if row is None or (now is not None and row.expires_at is not None and row.expires_at <= now):
        raise unknown_asset(asset_id)
    return row


def unknown_asset(asset_id: str) -> NotFound:
    """The same words whether it is another tenant's, has gone or never was."""
    return NotFound(
        f"There is no asset {asset_id[:40]}.",
        remedy="GET /v1/assets lists yours; POST /v1/assets uploads a picture and says its id",
    )


async def list_assets(
    session: Session,
    tenant_id: str,
    *,
    now: datetime,
    kind: AssetKind | None = None,
    subject: str | None = None,
    after: str | None = None,
    limit: int = 50,
) -> Sequence[Asset]:
    """Newest first; `after` is the last id of the page before."""
    found = select(Asset).where(
        Asset.tenant_id == tenant_id, or_(Asset.expires_at.is_(None), Asset.expires_at > now)
    )
    if kind is not None:
        found = found.where(Asset.kind == kind)
    if subject is not None:
        found = found.where(Asset.subject == subject)
    if after is not None:
        found = found.where(Asset.id < after)
    return (await session.scalars(found.order_by(Asset.id.desc()).limit(limit))).all()


async def remove_asset(session: Session, tenant_id: str, asset_id: str) -> Asset:
    """
    Raises:
        NotFound: the tenant has no such asset.
    """
    asset = await get_asset(session, tenant_id, asset_id)
    if not await _remove(session, tenant_id, [asset]):
        raise unknown_asset(asset_id)
    return asset


async def remove_subject(
    session: Session, tenant_id: str, subject: str, limit: int
) -> Sequence[Asset]:
    """Up to `limit` of the assets of one subject; jobs that still need them do not count."""
    found = select(Asset).where(Asset.tenant_id == tenant_id, Asset.subject == subject)
    return await _remove(session, tenant_id, await _locked(session, found.limit(limit)))


async def remove_expired(
    session: Session,
    tenant_id: str,
    now: datetime,
    limit: int,
    asset_ids: Sequence[str] | None = None,
) -> Sequence[Asset]:
    """Up to `limit` that have expired and that no unfinished job was given.

    Args:
        asset_ids: only of these, as after a job has ended.
    """
    found = select(Asset).where(Asset.tenant_id == tenant_id, Asset.expires_at <= now)
    if asset_ids is not None:
        found = found.where(Asset.id.in_(asset_ids))
    else:
        found = found.where(Asset.id.not_in(_needed_ids(tenant_id)))
    assets = await _locked(session, found.order_by(Asset.expires_at).limit(limit))
    # Again, now that they are locked: a job that was accepted meanwhile holds what it needs.
    needed = await _find_needed(session, tenant_id, [asset.id for asset in assets])
    return await _remove(session, tenant_id, [one for one in assets if one.id not in needed])


# A row this session has seen already would otherwise come back as it was then.
FRESH = {"populate_existing": True}


async def _locked(session: Session, found: Select[Any]) -> Sequence[Asset]:
    locked = found.with_for_update(skip_locked=True)
    return (await session.scalars(locked, execution_options=FRESH)).all()


async def _remove(session: Session, tenant_id: str, assets: Sequence[Asset]) -> Sequence[Asset]:
    """Those of them that this transaction removed, and no other before it."""
    if not assets:
        return []
    gone = (
        delete(Asset)
        .where(Asset.tenant_id == tenant_id, Asset.id.in_([asset.id for asset in assets]))
        .returning(Asset.id)
        .execution_options(synchronize_session=False)
    )
    removed = set(await session.scalars(gone))
    return [asset for asset in assets if asset.id in removed]


def _given(picture: str) -> Any:
    return Job.request[(picture, "asset")].as_string()


def _needed_ids(tenant_id: str) -> Any:
    """Ids that the tenant's unfinished jobs name as their pictures."""
    unfinished = (Job.tenant_id == tenant_id, Job.state.in_(UNFINISHED))
    first, *others = (
        select(_given(picture)).where(*unfinished, _given(picture).is_not(None))
        for picture in PICTURES
    )
    return first.union_all(*others)


async def _find_needed(session: Session, tenant_id: str, ids: Sequence[str]) -> set[str]:
    if not ids:
        return set()
    named = _needed_ids(tenant_id).subquery()
    column = named.c[0]
    return set(await session.scalars(select(column).where(column.in_(ids))))
