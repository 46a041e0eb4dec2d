"""Databases for tests: every test that asks for one runs on SQLite and on a real PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from serve.store.engine import Database, Session
from serve.store.ids import new_id
from serve.store.schema import upgrade
from serve.store.tables import Job, JobClass, Tenant
from tests.postgres import TEMPLATE, PostgresServer

START = datetime(2026, 1, 31, 12, tzinfo=UTC)


class FakeClock:
    """Stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["sqlite", "postgres"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without a table."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'sm4ll.db'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.create_database()


@pytest.fixture(params=["sqlite", "postgres"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database with the schema and no row."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'sm4ll.db'}"
        asyncio.run(upgrade(url))
        return url
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.create_database(TEMPLATE)


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> str:
    """The same, for what only PostgreSQL does."""
    return postgres.create_database(TEMPLATE)


@pytest.fixture
async def database(store_url: str, anyio_backend: str) -> AsyncIterator[Database]:
    async with opened(store_url) as database:
        yield database


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    database = Database(url)
    try:
        yield database
    finally:
        await database.close()


async def add_tenant(session: Session, tenant_id: str = "acme") -> str:
    session.add(Tenant(id=tenant_id, name=tenant_id, policy={}, created_at=START, updated_at=START))
    await session.flush()
    return tenant_id


async def add_job(
    session: Session,
    tenant_id: str = "acme",
    at: datetime = START,
    priority: JobClass = JobClass.INTERACTIVE,
) -> str:
    job = Job(
        tenant_id=tenant_id,
        id=new_id("job"),
        priority=priority,
        request={"expert": "top"},
        runnable_at=at,
        created_at=at,
    )
    session.add(job)
    await session.flush()
    return job.id
