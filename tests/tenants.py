"""Tenants and keys for tests, and an embedded store that has the first of both."""

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.observing.meter import NO_METER, Meter
from serve.policy import SCOPES, TenantPolicy
from serve.policy import Scope as KeyScope
from serve.services import Services, open_services
from serve.settings import Settings
from serve.store.engine import Database
from serve.store.keys import insert_key
from serve.store.opening import DATABASE_FILE, database_url
from serve.store.schema import upgrade
from serve.store.tenants import create_tenant, find_tenant, set_policy
from serve.tenancy.keys import hash_token, mint_key, parse_token
from tests.stores import START

LOCAL_TENANT = "local"
LOCAL_TOKEN = f"sk_{'0' * 26}_{'0' * 64}"
"""The key of tenant `local` in every store that `open_local_services` makes; all scopes."""
T = TypeVar("T")


async def add_key(
    database: Database,
    tenant_id: str = "acme",
    scopes: Sequence[KeyScope] = SCOPES,
    policy: TenantPolicy | None = None,
    token: str | None = None,
) -> str:
    """Another key of the tenant, which is made or gets this policy; answers the token."""
    token = token or mint_key().token
    async with database.transaction() as session:
        tenant = await find_tenant(session, tenant_id)
        if tenant is None:
            await create_tenant(
                session,
                tenant_id=tenant_id,
                name=tenant_id,
                policy=policy or TenantPolicy(),
                now=START,
            )
        elif policy is not None:
            set_policy(tenant, policy, START)
        await insert_key(
            session,
            key_id=parse_token(token),
            tenant_id=tenant_id,
            name=f"a key of {tenant_id}",
            secret_sha256=hash_token(token),
            scopes=scopes,
            expires_at=None,
            now=START,
        )
    return token


def add_key_to(
    api: FastAPI,
    tenant_id: str = "acme",
    scopes: Sequence[KeyScope] = SCOPES,
    policy: TenantPolicy | None = None,
) -> str:
    """As `add_key`, for an API of `build_local_api`, from outside its event loop."""

    async def add() -> str:
        database = Database(database_url(api.state.settings))
        try:
            return await add_key(database, tenant_id, scopes, policy)
        finally:
            await database.close()

    return run(add())


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def key_id_of(token: str) -> str:
    return parse_token(token)


def open_local_services(folder: Path, meter: Meter = NO_METER) -> tuple[Services, Settings]:
    """A SQLite store and blobs in the folder, with tenant `local` and its key `LOCAL_TOKEN`."""
    shutil.copy(Path(_template().name) / DATABASE_FILE, folder)
    settings = Settings(data_dir=folder, database_url=None, blobs_url=None)
    return open_services(settings, meter=meter), settings


class KeyAdded:
    """Gives the local key to requests that bring none."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and b"authorization" not in dict(scope["headers"]):
            header = (b"authorization", f"Bearer {LOCAL_TOKEN}".encode())
            scope = {**scope, "headers": [*scope["headers"], header]}
        await self._app(scope, receive, send)


def run(work: Coroutine[Any, Any, T]) -> T:
    """On an event loop of its own, also where the test already runs on one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


@lru_cache
def _template() -> "tempfile.TemporaryDirectory[str]":
    """Migrated once per test run: copying a file is faster."""
    folder = tempfile.TemporaryDirectory(prefix="sm4ll-template-")
    url = f"sqlite:///{folder.name}/{DATABASE_FILE}"

    async def fill() -> None:
        await upgrade(url)
        database = Database(url)
        try:
            await add_key(database, LOCAL_TENANT, token=LOCAL_TOKEN)
        finally:
            await database.close()

    run(fill())
    return folder
