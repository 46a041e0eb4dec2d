"""Tenants from configs/tenants.yaml: made where they are missing, never changed afterwards.

What an administrator changed later stays as it is, whatever the file says by then.
"""

from collections.abc import Sequence

from serve.errors import Conflict
from serve.seed_files import TenantSeed
from serve.store.engine import Database
from serve.store.tenants import find_tenant
from serve.tenancy.registry import Registry

ACTOR = "seeds"


async def seed_tenants(
    database: Database, registry: Registry, seeds: Sequence[TenantSeed]
) -> tuple[str, ...]:
    """The ids of those that were made."""
    created = []
    for seed in seeds:
        async with database.reading() as session:
            is_there = await find_tenant(session, seed.id) is not None
        if is_there:
            continue
        try:
            await registry.create_tenant(
                ACTOR, tenant_id=seed.id, name=seed.name, policy=seed.policy
            )
        except Conflict:
            continue  # another process was faster
        created.append(seed.id)
    return tuple(created)
