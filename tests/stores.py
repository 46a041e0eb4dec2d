"""Databases for tests: every test that asks for one runs on SQLite and on a real PostgreSQL."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
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


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Migrated once per test run: copying a file is faster."""
    file = tmp_path_factory.mktemp("template") / "sm4ll.db"
    asyncio.run(upgrade(f"sqlite:///{file}"))
    return file


@pytest.fixture(params=["sqlite", "postgres"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without a table."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'sm4ll.db'}"
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    with server.lent_database() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database with the schema and no row."""
    if request.param == "sqlite":
        template: Path = request.getfixturevalue("sqlite_template")
        yield f"sqlite:///{shutil.copy(template, tmp_path)}"
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    with server.lent_database(TEMPLATE) as url:
        yield url


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Iterator[str]:
    """The same, for what only PostgreSQL does."""
    with postgres.lent_database(TEMPLATE) as url:
        yield url


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
