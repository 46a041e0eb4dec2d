"""Rows of API keys, read and changed in the caller's transaction; no secret is ever here."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, or_, select, tuple_, update

from serve.errors import NotFound
from serve.policy import Scope
from serve.store.engine import Session
from serve.store.tables import ApiKey, Tenant


async def insert_key(
    session: Session,
    *,
    key_id: str,
    tenant_id: str,
    name: str,
    secret_sha256: str,
    scopes: Sequence[Scope],
    expires_at: datetime | None,
    now: datetime,
) -> ApiKey:
    key = ApiKey(
        id=key_id,
        tenant_id=tenant_id,
        name=name,
        secret_sha256=secret_sha256,
        scopes=list(scopes),
        created_at=now,
        expires_at=expires_at,
    )
    session.add(key)
    await session.flush()
    return key


async def get_key(session: Session, tenant_id: str, key_id: str) -> ApiKey:
    """
    Raises:
        NotFound: no such key, or it is another tenant's.
    """
    query = select(ApiKey).where(ApiKey.tenant_id == tenant_id, ApiKey.id == key_id)
    key = (await session.execute(query)).scalar_one_or_none()
    if key is None:
        raise NotFound(
            f"there is no key {key_id!r} of this tenant",
            remedy="GET /v1/tenants/{id}/keys lists them",
        )
    return key


async def find_keys(session: Session, key_ids: Collection[str]) -> dict[str, tuple[ApiKey, Tenant]]:
    """Those of the ids that exist, of whatever tenant: who calls is what is asked here."""
    query = (
        select(ApiKey, Tenant)
        .join(Tenant, Tenant.id == ApiKey.tenant_id)
        .where(ApiKey.id.in_(key_ids))
    )
    return {key.id: (key, tenant) for key, tenant in await session.execute(query)}


async def list_keys(
    session: Session, tenant_id: str, *, limit: int, after: str | None = None
) -> Sequence[ApiKey]:
    """Newest first; those that come after the key `after`.

    Raises:
        NotFound: the tenant has no key `after`.
    """
    place = tuple_(ApiKey.created_at, ApiKey.id)
    query = select(ApiKey).where(ApiKey.tenant_id == tenant_id)
    if after is not None:
        last = await get_key(session, tenant_id, after)
        query = query.where(place < tuple_(last.created_at, last.id))
    query = query.order_by(ApiKey.created_at.desc(), ApiKey.id.desc()).limit(limit)
    return (await session.execute(query)).scalars().all()


async def is_usable(session: Session, key_id: str, now: datetime) -> bool:
    """Whether a key works now: for what goes on long after its request was let in."""
    query = (
        select(ApiKey.id)
        .join(Tenant, Tenant.id == ApiKey.tenant_id)
        .where(ApiKey.id == key_id, *_works(now))
    )
    return await session.scalar(query) is not None


def _works(now: datetime) -> tuple[ColumnElement[bool], ...]:
    is_current = or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > now)
    return Tenant.disabled_at.is_(None), ApiKey.revoked_at.is_(None), is_current


def revoke(key: ApiKey, now: datetime) -> None:
    """A key that is revoked twice keeps the time of the first."""
    if key.revoked_at is None:
        key.revoked_at = now


def expire(key: ApiKey, at: datetime) -> None:
    """Never later than it would have expired anyway."""
    if key.expires_at is None or at < key.expires_at:
        key.expires_at = at


async def list_usable_with(session: Session, scope: Scope, now: datetime) -> Sequence[ApiKey]:
    """Every key that works now and has the scope, of tenants that are not disabled."""
    query = select(ApiKey).join(Tenant, Tenant.id == ApiKey.tenant_id).where(*_works(now))
    keys = (await session.execute(query)).scalars()
    return [key for key in keys if scope in key.scopes]


async def touch_keys(
    session: Session, used: Mapping[str, datetime], at_most_every: timedelta
) -> None:
    """Note when keys were last used, unless another process did so a moment ago."""
    for key_id, at in sorted(used.items()):  # in one order, so that two processes do not deadlock
        await session.execute(
            update(ApiKey)
            .where(
                ApiKey.id == key_id,
                or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at <= at - at_most_every),
            )
            .values(last_used_at=at)
        )
