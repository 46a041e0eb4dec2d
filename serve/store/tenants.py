"""Rows of tenants, read and changed in the caller's transaction."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select, tuple_

from serve.errors import Conflict, NotFound
from serve.policy import TenantPolicy
from serve.store.engine import Session
from serve.store.tables import Tenant


async def create_tenant(
    session: Session, *, tenant_id: str, name: str, policy: TenantPolicy, now: datetime
) -> Tenant:
    """
    Raises:
        Conflict: there is one with this id.
    """
    if await session.get(Tenant, tenant_id) is not None:
        raise Conflict(f"there is a tenant {tenant_id!r} already", remedy="choose another id")
    tenant = Tenant(
        id=tenant_id, name=name, policy=dump_policy(policy), created_at=now, updated_at=now
    )
    session.add(tenant)
    await session.flush()
    return tenant


async def find_tenant(session: Session, tenant_id: str) -> Tenant | None:
    return await session.get(Tenant, tenant_id)


async def get_tenant(session: Session, tenant_id: str) -> Tenant:
    """
    Raises:
        NotFound: there is none with this id.
    """
    tenant = await find_tenant(session, tenant_id)
    if tenant is None:
        raise NotFound(f"there is no tenant {tenant_id!r}", remedy="GET /v1/tenants lists them")
    return tenant


async def list_tenants(
    session: Session, *, limit: int, after: str | None = None
) -> Sequence[Tenant]:
    """Newest first; those that come after the tenant `after`.

    Raises:
        NotFound: there is no tenant `after`.
    """
    place = tuple_(Tenant.created_at, Tenant.id)
    query = select(Tenant).order_by(Tenant.created_at.desc(), Tenant.id.desc()).limit(limit)
    if after is not None:
        last = await get_tenant(session, after)
        query = query.where(place < tuple_(last.created_at, last.id))
    return (await session.execute(query)).scalars().all()


def set_policy(tenant: Tenant, policy: TenantPolicy, now: datetime) -> None:
    tenant.policy = dump_policy(policy)
    tenant.updated_at = now


def set_name(tenant: Tenant, name: str, now: datetime) -> None:
    tenant.name = name
    tenant.updated_at = now


def set_disabled(tenant: Tenant, is_disabled: bool, now: datetime) -> None:
    """A tenant that is disabled twice keeps the time of the first."""
    if is_disabled == (tenant.disabled_at is not None):
        return
    tenant.disabled_at = now if is_disabled else None
    tenant.updated_at = now


def dump_policy(policy: TenantPolicy) -> dict[str, object]:
    """Only what was said: a default that a later version changes, changes for these tenants too."""
    return policy.model_dump(mode="json", exclude_unset=True)
