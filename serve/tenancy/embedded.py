"""What a service without settings starts with: tables, seeds, the tenant `local` and its key."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from serve.errors import ConfigError, Conflict, Unauthenticated
from serve.experiments.seeds import seed_experiments
from serve.policy import SCOPES, TenantPolicy
from serve.seed_files import load_experiments, load_tenants
from serve.settings import Settings, local_key_file
from serve.store.engine import Database
from serve.store.opening import database_url
from serve.store.schema import upgrade
from serve.store.tenants import find_tenant
from serve.tenancy.key_ring import KeyRing
from serve.tenancy.keys import TOKEN
from serve.tenancy.registry import Registry
from serve.tenancy.seeds import seed_tenants

TENANT = "local"
ACTOR = "sm4ll up"
ADMIN_TENANT = "admin"
ADMIN_ACTOR = "sm4ll store prepare"


async def prepare_store(settings: Settings) -> str:
    """Bring the database to where a local cluster can start on it.

    Returns:
        The token of the local key, which also lies in the local key file (mode 0600).

    Raises:
        ConfigError: a URL, configs/tenants.yaml or configs/experiments.yaml cannot be used.
        StoreUnavailable: the database does not answer.
        OSError: the file cannot be written.
    """
    async with _prepared(settings) as (database, registry):
        return await _ensure_key(database, registry, local_key_file(settings))


async def prepare_with_key(settings: Settings, token: str) -> bool:
    """The same for a cluster, whose first administrator's key is made before it and kept apart:
    nothing is written to disk, and what is logged names no secret.

    Returns:
        Whether the key was taken. It is not where an administrator has one that works.

    Raises:
        ConfigError: as above, or this is no key that could be taken.
        StoreUnavailable: the database does not answer.
    """
    if TOKEN.fullmatch(token) is None:
        raise ConfigError(
            "SM4LL_API_KEY is no key: sk_, 26 letters and digits, _, 64 hexadecimal digits,"
            " and no line's end. `sm4ll store key` makes one."
        )
    async with _prepared(settings) as (database, registry):
        await _ensure_tenant(database, registry, ADMIN_ACTOR, ADMIN_TENANT, "Administrators")
        try:
            return await registry.adopt_first_admin(
                ADMIN_ACTOR, ADMIN_TENANT, token, name="first administrator", scopes=SCOPES
            )
        except Conflict as exc:
            raise ConfigError(
                f"SM4LL_API_KEY: {exc.detail}, and no other administrator's key does."
                " `sm4ll store key` makes a new one."
            ) from exc


@asynccontextmanager
async def _prepared(settings: Settings) -> AsyncIterator[tuple[Database, Registry]]:
    await upgrade(database_url(settings))
    database = Database(database_url(settings))
    try:
        registry = Registry(database)
        await seed_tenants(database, registry, load_tenants(settings.tenants).tenants)
        await seed_experiments(database, load_experiments(settings.experiments).experiments)
        yield database, registry
    finally:
        await database.close()


async def _ensure_key(database: Database, registry: Registry, file: Path) -> str:
    token = file.read_text().strip() if file.is_file() else ""
    if await _works(database, token):
        os.chmod(file, 0o600)
        return token
    await _ensure_tenant(database, registry, ACTOR, TENANT, "This machine")
    key = await registry.create_key(ACTOR, TENANT, name=f"key of {file.parent}", scopes=SCOPES)
    _write_secret(file, key.token)
    return key.token


async def _works(database: Database, token: str) -> bool:
    ring = KeyRing(database)
    try:
        await ring.find_caller(token)
    except Unauthenticated:
        return False
    finally:
        await ring.flush()
    return True


async def _ensure_tenant(
    database: Database, registry: Registry, actor: str, tenant_id: str, name: str
) -> None:
    async with database.reading() as session:
        if await find_tenant(session, tenant_id) is not None:
            return
    try:
        await registry.create_tenant(actor, tenant_id=tenant_id, name=name, policy=TenantPolicy())
    except Conflict:
        pass  # another process was faster


def _write_secret(file: Path, token: str) -> None:
    """Never readable by others, not even for a moment; whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = file.with_suffix(".new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as opened:
        opened.write(f"{token}\n")
    draft.replace(file)
