"""What a service without settings starts with: tables, seeds, the tenant `local` and its key."""

import os
from pathlib import Path

from serve.errors import Conflict, Unauthenticated
from serve.experiments.seeds import seed_experiments
from serve.policy import SCOPES, TenantPolicy
from serve.seed_files import load_experiments, load_tenants
from serve.settings import Settings, local_key_file
from serve.store.engine import Database
from serve.store.opening import database_url
from serve.store.schema import upgrade
from serve.store.tenants import find_tenant
from serve.tenancy.key_ring import KeyRing
from serve.tenancy.registry import Registry
from serve.tenancy.seeds import seed_tenants

TENANT = "local"
ACTOR = "sm4ll up"


async def prepare_store(settings: Settings) -> str:
    """Bring the database to where a local cluster can start on it.

    Returns:
        The token of the local key, which also lies in the local key file (mode 0600).

    Raises:
        ConfigError: a URL, configs/tenants.yaml or configs/experiments.yaml cannot be used.
        StoreUnavailable: the database does not answer.
        OSError: the file cannot be written.
    """
    await upgrade(database_url(settings))
    database = Database(database_url(settings))
    try:
        registry = Registry(database)
        await seed_tenants(database, registry, load_tenants(settings.tenants).tenants)
        await seed_experiments(database, load_experiments(settings.experiments).experiments)
        return await _ensure_key(database, registry, local_key_file(settings))
    finally:
        await database.close()


async def _ensure_key(database: Database, registry: Registry, file: Path) -> str:
    token = file.read_text().strip() if file.is_file() else ""
    if await _works(database, token):
        os.chmod(file, 0o600)
        return token
    async with database.reading() as session:
        is_missing = await find_tenant(session, TENANT) is None
    if is_missing:
        await _create_tenant(registry)
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


async def _create_tenant(registry: Registry) -> None:
    try:
        await registry.create_tenant(
            ACTOR, tenant_id=TENANT, name="This machine", policy=TenantPolicy()
        )
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
