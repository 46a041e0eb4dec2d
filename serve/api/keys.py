"""`/v1/tenants/{id}/keys`: made, rotated and revoked by administrators only."""

from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response

from serve.api.paging import DEFAULT_LIMIT, Limit
from serve.api.responses import problems
from serve.api.tenants import ADMIN_ONLY, Admin, TenantPath
from serve.schemas.keys import KEY_ID, KeyCard, KeyList, KeyMinted, KeyRotation, NewKey
from serve.store.engine import Database
from serve.store.keys import list_keys
from serve.store.tables import ApiKey
from serve.store.tenants import get_tenant
from serve.tenancy.registry import Registry

SHOWN_ONCE = f"{ADMIN_ONLY} The answer holds the token; nobody can show it again."
KeyPath = Annotated[str, Path(pattern=KEY_ID)]
NO_STORE = {"Cache-Control": "no-store"}


def build_keys_router(database: Database, registry: Registry) -> APIRouter:
    router = APIRouter(prefix="/v1/tenants/{tenant_id}/keys", tags=["administration"])

    @router.post(
        "", status_code=201, summary="Create a key", description=SHOWN_ONCE,
        responses=problems(404),
    )  # fmt: skip
    async def create(
        tenant_id: TenantPath, new: NewKey, caller: Admin, response: Response
    ) -> KeyMinted:
        key = await registry.create_key(
            caller.key_id,
            tenant_id,
            name=new.name,
            scopes=tuple(dict.fromkeys(new.scopes)),
            lifetime=None if new.expires_in_s is None else timedelta(seconds=new.expires_in_s),
        )
        response.headers.update(NO_STORE)
        return KeyMinted(**_fields(key.row), token=key.token)

    @router.get("", summary="List keys", description=ADMIN_ONLY, responses=problems(404))
    async def list_all(
        tenant_id: TenantPath,
        caller: Admin,
        limit: Limit = DEFAULT_LIMIT,
        after: Annotated[str | None, Query(pattern=KEY_ID)] = None,
    ) -> KeyList:
        async with database.reading() as session:
            await get_tenant(session, tenant_id)
            rows = await list_keys(session, tenant_id, limit=limit + 1, after=after)
        cards = tuple(KeyCard(**_fields(row)) for row in rows[:limit])
        return KeyList(items=cards, next=cards[-1].id if len(rows) > limit else None)

    @router.post(
        "/{key_id}/rotate",
        status_code=201,
        summary="Replace a key",
        description=f"{SHOWN_ONCE} Same name, scopes and lifetime; the old key works for "
        "`overlap_s` more.",
        responses=problems(404, 409),
    )
    async def rotate(
        tenant_id: TenantPath,
        key_id: KeyPath,
        caller: Admin,
        response: Response,
        rotation: KeyRotation | None = None,
    ) -> KeyMinted:
        overlap_s = (rotation or KeyRotation()).overlap_s
        key = await registry.rotate_key(caller.key_id, tenant_id, key_id, overlap_s=overlap_s)
        response.headers.update(NO_STORE)
        return KeyMinted(**_fields(key.row), token=key.token)

    @router.delete(
        "/{key_id}",
        summary="Revoke a key",
        description=f"{ADMIN_ONLY} Effective within 5 s on every router. The last admin key that "
        "works cannot be revoked (409).",
        responses=problems(404, 409),
    )
    async def revoke(tenant_id: TenantPath, key_id: KeyPath, caller: Admin) -> KeyCard:
        return KeyCard(**_fields(await registry.revoke_key(caller.key_id, tenant_id, key_id)))

    return router


def _fields(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "tenant": key.tenant_id,
        "name": key.name,
        "scopes": tuple(key.scopes),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "last_used_at": key.last_used_at,
    }
