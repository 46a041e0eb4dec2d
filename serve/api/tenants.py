"""`/v1/tenants` and `/v1/audit`: for the team that runs this service for all tenants."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query

from serve.api.identity import require
from serve.api.paging import DEFAULT_LIMIT, Limit
from serve.api.responses import problems
from serve.policy import TenantPolicy
from serve.schemas.tenants import (
    TENANT_ID,
    AuditEntry,
    AuditPage,
    AuditVerdict,
    NewTenant,
    TenantCard,
    TenantChange,
    TenantList,
)
from serve.store.audit import list_records, verify_records
from serve.store.engine import Database
from serve.store.tables import AuditRecord, Tenant
from serve.store.tenants import get_tenant, list_tenants
from serve.tenancy.caller import Caller
from serve.tenancy.registry import Registry

ADMIN_ONLY = (
    "Needs a key with the scope `admin`. Such a key administers every tenant; keys without it, "
    "whatever else they may do, see nothing here (403)."
)
TenantPath = Annotated[str, Path(pattern=TENANT_ID)]
Admin = Annotated[Caller, Depends(require("admin"))]


def build_tenants_router(database: Database, registry: Registry) -> APIRouter:
    router = APIRouter(prefix="/v1/tenants", tags=["administration"])

    @router.post(
        "", status_code=201, summary="Create a tenant", description=ADMIN_ONLY,
        responses=problems(409),
    )  # fmt: skip
    async def create(new: NewTenant, caller: Admin) -> TenantCard:
        tenant = await registry.create_tenant(
            caller.key_id, tenant_id=new.id, name=new.name, policy=new.policy
        )
        return _card(tenant)

    @router.get("", summary="List tenants", description=ADMIN_ONLY, responses=problems(404))
    async def list_all(
        caller: Admin,
        limit: Limit = DEFAULT_LIMIT,
        after: Annotated[str | None, Query(pattern=TENANT_ID)] = None,
    ) -> TenantList:
        async with database.reading() as session:
            rows = await list_tenants(session, limit=limit + 1, after=after)
        cards = tuple(map(_card, rows[:limit]))
        return TenantList(items=cards, next=cards[-1].id if len(rows) > limit else None)

    @router.get(
        "/{tenant_id}", summary="Get a tenant", description=ADMIN_ONLY, responses=problems(404)
    )
    async def get(tenant_id: TenantPath, caller: Admin) -> TenantCard:
        async with database.reading() as session:
            return _card(await get_tenant(session, tenant_id))

    @router.patch(
        "/{tenant_id}",
        summary="Change a tenant",
        description=f"{ADMIN_ONLY} Effective within 5 s on every router.",
        responses=problems(404, 409),
    )
    async def change(tenant_id: TenantPath, change: TenantChange, caller: Admin) -> TenantCard:
        tenant = await registry.change_tenant(
            caller.key_id,
            tenant_id,
            name=change.name,
            policy=change.policy,
            is_disabled=change.disabled,
        )
        return _card(tenant)

    return router


def build_audit_router(database: Database) -> APIRouter:
    router = APIRouter(prefix="/v1/audit", tags=["administration"])

    @router.get(
        "", summary="List administrative acts", description=ADMIN_ONLY, responses=problems()
    )
    async def list_acts(
        caller: Admin,
        limit: Limit = DEFAULT_LIMIT,
        after: Annotated[int | None, Query(ge=1, le=2**63 - 1)] = None,
        tenant: Annotated[str | None, Query(pattern=TENANT_ID)] = None,
    ) -> AuditPage:
        async with database.reading() as session:
            rows = await list_records(session, limit=limit + 1, before=after, tenant_id=tenant)
        entries = tuple(map(_entry, rows[:limit]))
        return AuditPage(
            items=entries, next=str(entries[-1].sequence) if len(rows) > limit else None
        )

    @router.get(
        "/verify", summary="Verify the audit log", description=ADMIN_ONLY, responses=problems()
    )
    async def verify(
        caller: Admin,
        head: Annotated[
            str | None,
            Query(pattern="^[0-9a-f]{64}$", description="a `head_sha256` that was kept elsewhere"),
        ] = None,
    ) -> AuditVerdict:
        async with database.reading() as session:
            verdict = await verify_records(session, head)
        return AuditVerdict(
            intact=verdict.broken_sequence is None,
            num_records=verdict.num_records,
            head_sha256=verdict.head_sha256,
            broken_sequence=verdict.broken_sequence,
            reason=verdict.reason or None,
        )

    return router


def _card(tenant: Tenant) -> TenantCard:
    return TenantCard(
        id=tenant.id,
        name=tenant.name,
        policy=TenantPolicy.model_validate(tenant.policy),
        created_at=tenant.created_at,
        updated_at=tenant.updated_at,
        disabled_at=tenant.disabled_at,
    )


def _entry(record: AuditRecord) -> AuditEntry:
    at: datetime = record.at
    return AuditEntry(
        sequence=record.sequence,
        at=at,
        actor=record.actor,
        action=record.action,
        tenant=record.tenant_id,
        target=record.target,
        detail=record.detail,
        previous_sha256=record.previous_sha256,
        sha256=record.sha256,
    )
