"""Tenants and their keys as administrators change them: each change and its audit record are one
transaction, one after the other."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from serve.errors import Conflict
from serve.policy import Scope, TenantPolicy
from serve.store.audit import Act, append_record, lock_audit
from serve.store.columns import utc_now
from serve.store.engine import Database, Session
from serve.store.ids import new_id
from serve.store.keys import expire, find_keys, get_key, insert_key, list_usable_with, revoke
from serve.store.tables import ApiKey, Tenant
from serve.store.tenants import (
    create_tenant,
    dump_policy,
    get_tenant,
    set_disabled,
    set_name,
    set_policy,
)
from serve.tenancy.keys import MintedKey, mint_key, parse_token


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key's row and, for the one time it is shown, its token."""

    row: ApiKey
    minted: MintedKey

    @property
    def token(self) -> str:
        return self.minted.token


class Registry:
    """Every method takes the actor: the id of the key that asks, or the name of what acts alone."""

    def __init__(self, database: Database, now: Callable[[], datetime] = utc_now):
        self._database = database
        self._now = now

    async def create_tenant(
        self, actor: str, *, name: str, policy: TenantPolicy, tenant_id: str | None = None
    ) -> Tenant:
        """
        Raises:
            Conflict: there is a tenant with this id.
        """
        async with self._act() as (session, now):
            tenant = await create_tenant(
                session, tenant_id=tenant_id or new_id("tnt"), name=name, policy=policy, now=now
            )
            detail = {"name": name, "policy": dump_policy(policy)}
            await _record(session, now, actor, "tenant.create", tenant.id, tenant.id, detail)
        return tenant

    async def change_tenant(
        self,
        actor: str,
        tenant_id: str,
        *,
        name: str | None = None,
        policy: TenantPolicy | None = None,
        is_disabled: bool | None = None,
    ) -> Tenant:
        """Change what is given.

        Args:
            policy: only the fields that were set on it are changed.

        Raises:
            NotFound: there is no such tenant.
            Conflict: nobody with an admin key would be left.
        """
        detail: dict[str, Any] = {}
        async with self._act() as (session, now):
            tenant = await get_tenant(session, tenant_id)
            if name is not None:
                set_name(tenant, name, now)
                detail["name"] = name
            if policy is not None:
                changes = dump_policy(policy)
                set_policy(tenant, TenantPolicy.model_validate({**tenant.policy, **changes}), now)
                detail["policy"] = changes
            if is_disabled is not None:
                async with _keeping_an_admin(session, now):
                    set_disabled(tenant, is_disabled, now)
                detail["disabled"] = is_disabled
            await _record(session, now, actor, "tenant.change", tenant.id, tenant.id, detail)
        return tenant

    async def create_key(
        self,
        actor: str,
        tenant_id: str,
        *,
        name: str,
        scopes: Sequence[Scope],
        lifetime: timedelta | None = None,
    ) -> NewKey:
        """
        Args:
            lifetime: it never expires when absent.

        Raises:
            NotFound: there is no such tenant.
        """
        async with self._act() as (session, now):
            await get_tenant(session, tenant_id)
            expires_at = None if lifetime is None else now + lifetime
            key = await _insert(session, tenant_id, name, scopes, expires_at, now)
            await _record(
                session, now, actor, "key.create", tenant_id, key.row.id, _describe(key.row)
            )
        return key

    async def adopt_first_admin(
        self, actor: str, tenant_id: str, token: str, *, name: str, scopes: Sequence[Scope]
    ) -> bool:
        """Whether the token, which was made elsewhere, became the first key of an administrator.

        Not where one works already: what was rotated or revoked here does not come back because
        somebody's settings still hold it.

        Raises:
            NotFound: there is no such tenant.
            Conflict: there is a key with its id, which does not work any more.
            Unauthenticated: it is no token of this system.
        """
        minted = MintedKey(parse_token(token), token)
        async with self._act() as (session, now):
            if await list_usable_with(session, "admin", now):
                return False
            await get_tenant(session, tenant_id)
            if await find_keys(session, [minted.key_id]):
                raise Conflict(
                    f"the key {minted.key_id!r} does not work any more", remedy="take a new one"
                )
            key = await _insert(session, tenant_id, name, scopes, None, now, minted)
            await _record(
                session, now, actor, "key.create", tenant_id, key.row.id, _describe(key.row)
            )
        return True

    async def rotate_key(
        self, actor: str, tenant_id: str, key_id: str, *, overlap_s: float
    ) -> NewKey:
        """A new key with the same name, scopes and lifetime; the old one works overlap_s longer.

        Raises:
            NotFound: the tenant has no such key.
            Conflict: the key is revoked or has expired: there is nothing to hand over.
        """
        async with self._act() as (session, now):
            old = await get_key(session, tenant_id, key_id)
            if old.revoked_at is not None or (old.expires_at is not None and old.expires_at <= now):
                raise Conflict(
                    f"the key {key_id!r} does not work any more", remedy="make a new key"
                )
            lifetime = None if old.expires_at is None else old.expires_at - old.created_at
            expires_at = None if lifetime is None else now + lifetime
            scopes: Sequence[Any] = old.scopes
            key = await _insert(session, tenant_id, old.name, scopes, expires_at, now)
            expire(old, now + timedelta(seconds=overlap_s))
            detail = {"replaces": key_id, "overlap_s": overlap_s, **_describe(key.row)}
            await _record(session, now, actor, "key.rotate", tenant_id, key.row.id, detail)
        return key

    async def revoke_key(self, actor: str, tenant_id: str, key_id: str) -> ApiKey:
        """
        Raises:
            NotFound: the tenant has no such key.
            Conflict: nobody with an admin key would be left.
        """
        async with self._act() as (session, now):
            key = await get_key(session, tenant_id, key_id)
            async with _keeping_an_admin(session, now):
                revoke(key, now)
            await _record(session, now, actor, "key.revoke", tenant_id, key_id, {"name": key.name})
        return key

    @asynccontextmanager
    async def _act(self) -> AsyncIterator[tuple[Session, datetime]]:
        async with self._database.transaction() as session:
            # First: what is decided here (is another admin left?) must still be so at the commit.
            await lock_audit(session)
            yield session, self._now()


async def _insert(
    session: Session,
    tenant_id: str,
    name: str,
    scopes: Sequence[Scope],
    expires_at: datetime | None,
    now: datetime,
    minted: MintedKey | None = None,
) -> NewKey:
    minted = minted or mint_key()
    row = await insert_key(
        session,
        key_id=minted.key_id,
        tenant_id=tenant_id,
        name=name,
        secret_sha256=minted.secret_sha256,
        scopes=scopes,
        expires_at=expires_at,
        now=now,
    )
    return NewKey(row, minted)


def _describe(key: ApiKey) -> dict[str, Any]:
    expires = None if key.expires_at is None else key.expires_at.isoformat()
    return {"name": key.name, "scopes": list(key.scopes), "expires_at": expires}


@asynccontextmanager
async def _keeping_an_admin(session: Session, now: datetime) -> AsyncIterator[None]:
    """Inside, no change may leave a system that had admins without one."""
    had = await list_usable_with(session, "admin", now)
    yield
    await session.flush()
    if had and not await list_usable_with(session, "admin", now):
        raise Conflict(
            "this is the last admin key that works",
            remedy="make another key with the scope 'admin' first",
        )


async def _record(
    session: Session,
    now: datetime,
    actor: str,
    action: str,
    tenant_id: str,
    target: str,
    detail: Mapping[str, Any],
) -> None:
    act = Act(actor=actor, action=action, tenant_id=tenant_id, target=target, detail=detail)
    await append_record(session, act, now)
