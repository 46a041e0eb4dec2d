"""Transactions keep their promise on both databases, and a database that fails fails by name."""

import asyncio
import sqlite3
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import exc, select, text, update

from serve.errors import ConfigError, Conflict, Sm4llError, StoreUnavailable
from serve.settings import free_port
from serve.store.address import parse_address
from serve.store.engine import Database, PoolOptions
from serve.store.failures import map_connect_errors, map_database_errors
from serve.store.ids import new_id
from serve.store.schema import upgrade
from serve.store.sqlite_file import switch_to_log
from serve.store.tables import ApiKey, Id, Job, JobClass, JobState, Tenant
from tests.postgres import PostgresServer
from tests.stores import START, add_job, add_tenant, opened

pytestmark = pytest.mark.anyio


async def names(database: Database) -> list[str]:
    async with database.reading() as session:
        return sorted(await session.scalars(select(Tenant.name)))


async def change_job(database: Database, tenant_id: str, job_id: str, **values: object) -> None:
    changed = update(Job).where(Job.tenant_id == tenant_id, Job.id == job_id).values(**values)
    async with database.transaction() as session:
        await session.execute(changed)


async def test_block_that_raises_leaves_nothing_behind(database: Database) -> None:
    async def write_and_fail() -> None:
        async with database.transaction() as session:
            await add_tenant(session)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await write_and_fail()
    assert await names(database) == []
    async with database.transaction() as session:
        await add_tenant(session)
    assert await names(database) == ["acme"]


async def test_cancelled_block_leaves_nothing_behind_and_the_turn_goes_on(
    database: Database,
) -> None:
    inside = asyncio.Event()

    async def write_and_wait() -> None:
        async with database.transaction() as session:
            await add_tenant(session)
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(write_and_wait())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with database.transaction() as session:
        await add_tenant(session, "other")
    assert await names(database) == ["other"]


async def test_what_must_be_unique_or_exist_is_a_conflict(database: Database) -> None:
    async with database.transaction() as session:
        await add_tenant(session)
    with pytest.raises(Conflict):
        async with database.transaction() as session:
            await add_tenant(session)
    with pytest.raises(Conflict):
        async with database.transaction() as session:
            await add_job(session, tenant_id="nobody")


async def test_key_of_one_tenant_cannot_be_used_by_a_job_of_another(database: Database) -> None:
    async with database.transaction() as session:
        await add_tenant(session)
        await add_tenant(session, "other")
        key = ApiKey(
            id="key_1", tenant_id="acme", name="", secret_sha256="0" * 64, scopes=[],
            created_at=START,
        )  # fmt: skip
        session.add(key)
        mine, job_id = await add_job(session), await add_job(session, "other")
    with pytest.raises(Conflict):
        await change_job(database, "other", job_id, key_id="key_1")
    await change_job(database, "acme", mine, key_id="key_1")


async def test_state_without_its_lease_is_refused_by_the_database(database: Database) -> None:
    async with database.transaction() as session:
        await add_tenant(session)
        job_id = await add_job(session)
    with pytest.raises(Conflict):
        await change_job(database, "acme", job_id, state=JobState.RUNNING)


async def test_writers_of_two_processes_lose_no_update(store_url: str) -> None:
    async def raise_by_one(database: Database) -> None:
        async with database.transaction() as session:
            tenant = await session.scalar(select(Tenant).with_for_update())
            assert tenant is not None
            tenant.policy = {"count": tenant.policy.get("count", 0) + 1}

    async with opened(store_url) as one, opened(store_url) as other:
        async with one.transaction() as session:
            await add_tenant(session)
        await asyncio.gather(*(raise_by_one(each) for each in [one, other] * 20))
        async with other.reading() as session:
            assert await session.scalar(select(Tenant.policy)) == {"count": 40}


async def test_reader_waits_for_no_writer_and_sees_only_what_is_committed(
    database: Database,
) -> None:
    async with database.transaction() as session:
        await add_tenant(session)
        assert await names(database) == []
    assert await names(database) == ["acme"]


async def test_times_come_back_as_the_same_instant_in_utc(database: Database) -> None:
    in_delhi = datetime(2026, 5, 1, 4, 30, 0, 123456, timezone(timedelta(hours=5, minutes=30)))
    async with database.transaction() as session:
        await add_tenant(session)
        await add_job(session, at=in_delhi)
    async with database.reading() as session:
        read = await session.scalar(select(Job.created_at).where(Job.created_at <= in_delhi))
    assert read == in_delhi
    assert read is not None
    assert read.tzinfo is UTC


async def test_time_without_a_zone_is_refused(database: Database) -> None:
    async with database.transaction() as session:
        await add_tenant(session)
    with pytest.raises(Sm4llError) as caught:
        async with database.transaction() as session:
            await add_job(session, at=datetime(2026, 5, 1))
    assert "no time zone" in str(caught.value.__cause__)


async def test_documents_keep_their_types_and_none_is_null(database: Database) -> None:
    document = {"seed": 7, "scale": 0.5, "words": ["größe", None], "deep": {"on": True}}
    async with database.transaction() as session:
        await add_tenant(session)
        job = await session.get_one(Job, ("acme", await add_job(session)))
        job.request, job.result = document, None
    async with database.reading() as session:
        found = await session.scalar(select(Job).where(Job.result.is_(None)))
    assert found is not None
    assert (found.request, found.priority) == (document, JobClass.INTERACTIVE)


async def test_wrong_statement_is_our_mistake_and_not_the_databases(database: Database) -> None:
    with pytest.raises(Sm4llError) as caught:
        async with database.reading() as session:
            await session.execute(text("SELECT nothing FROM nowhere"))
    assert not isinstance(caught.value, StoreUnavailable)


async def test_used_up_pool_is_said_to_be_so(store_url: str) -> None:
    database = Database(store_url, PoolOptions(size=1, max_overflow=0, wait_s=0.05))
    async with database.reading():
        with pytest.raises(StoreUnavailable, match="busy") as caught:
            await database.ping()
    assert caught.value.retry_after_s
    await database.ping()
    await database.close()


async def test_sqlite_keeps_a_log_checks_references_and_survives_a_power_cut(
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path}/deep/down/sm4ll.db"
    await upgrade(url)
    async with opened(url) as database:
        async with database.reading() as session:
            pragmas = ("journal_mode", "foreign_keys", "synchronous")
            found = [await session.scalar(text(f"PRAGMA {pragma}")) for pragma in pragmas]
    assert found == ["wal", 1, 2]


async def test_sqlite_file_that_another_process_holds_is_unavailable(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'sm4ll.db'}"
    async with opened(url) as database:
        await database.ping()
    holder = sqlite3.connect(tmp_path / "sm4ll.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    database = Database(url, PoolOptions(busy_timeout_s=0.05))
    with pytest.raises(StoreUnavailable) as caught:
        async with database.transaction():
            pass
    assert caught.value.retry_after_s
    holder.close()
    async with database.transaction():
        pass
    await database.close()


async def test_transaction_inside_a_transaction_is_refused_and_not_waited_for_forever(
    tmp_path: Path,
) -> None:
    database = Database(f"sqlite:///{tmp_path}/sm4ll.db", PoolOptions(wait_s=0.05))
    async with database.transaction():
        with pytest.raises(StoreUnavailable):
            async with database.transaction():
                pass
    await database.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
async def test_database_that_is_not_there_is_unavailable(host: str) -> None:
    async with opened(f"postgresql://me:secret@{host}:{free_port()}/sm4ll") as database:
        with pytest.raises(StoreUnavailable) as caught:
            await database.ping()
    assert caught.value.retry_after_s
    assert "secret" not in f"{caught.value} {caught.value.remedy} {database!r}"


async def test_crash_of_postgres_is_named_and_its_return_needs_no_restart(
    postgres: PostgresServer, postgres_url: str
) -> None:
    async def write_while_it_crashes(database: Database) -> None:
        async with database.transaction() as session:
            await add_tenant(session)
            await asyncio.to_thread(postgres.stop)

    async with opened(postgres_url) as database:
        try:
            with pytest.raises(StoreUnavailable):
                await write_while_it_crashes(database)
            with pytest.raises(StoreUnavailable):
                await database.ping()
        finally:
            await asyncio.to_thread(postgres.start)
        assert await names(database) == []
        async with database.transaction() as session:
            await add_tenant(session)
        await asyncio.to_thread(postgres.stop)
        await asyncio.to_thread(postgres.start)
        assert await names(database) == ["acme"]


async def test_postgres_refuses_a_write_in_a_reading_block(postgres_url: str) -> None:
    async with opened(postgres_url) as database:
        with pytest.raises(Sm4llError):
            async with database.reading() as session:
                await add_tenant(session)
        assert await names(database) == []


def library_errors(kind: type[Exception]) -> list[type[Exception]]:
    return [kind, *(deeper for child in kind.__subclasses__() for deeper in library_errors(child))]


@pytest.mark.parametrize("kind", library_errors(exc.SQLAlchemyError))
def test_no_error_of_the_library_gets_out(kind: type[Exception]) -> None:
    error = kind.__new__(kind)
    error.__dict__.update(orig=Exception(), connection_invalidated=False)
    with pytest.raises(Sm4llError) as caught, map_database_errors():
        raise error
    assert caught.value.__cause__ is error


def test_error_of_the_callers_own_is_left_alone() -> None:
    with pytest.raises(FileNotFoundError), map_database_errors():
        raise FileNotFoundError
    with pytest.raises(StoreUnavailable), map_connect_errors():
        raise OSError("Name or service not known")


async def test_switch_of_a_new_file_waits_for_whoever_is_at_it(tmp_path: Path) -> None:
    file = tmp_path / "sm4ll.db"
    holder = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    holder.execute("CREATE TABLE mine (x)")
    holder.execute("BEGIN")
    holder.execute("SELECT * FROM mine").fetchall()
    switching = asyncio.create_task(asyncio.to_thread(switch_to_log, file))
    _, still_waiting = await asyncio.wait([switching], timeout=0.2)
    assert still_waiting == {switching}
    holder.close()
    await switching
    assert sqlite3.connect(file).execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_file_that_is_no_database_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "sm4ll.db").write_text(
        "a letter, and not a short one, to nobody in particular " * 9
    )
    with pytest.raises(StoreUnavailable):
        switch_to_log(tmp_path / "sm4ll.db")


def test_file_is_for_its_owner_only(tmp_path: Path) -> None:
    """Also in a directory that others may read: it holds what signs webhooks."""
    file = tmp_path / "sm4ll.db"
    asyncio.run(upgrade(f"sqlite:///{file}"))
    for each in tmp_path.iterdir():
        assert each.stat().st_mode & 0o077 == 0, each


def test_directory_that_cannot_be_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be the database"):
        Database(f"sqlite:///{tmp_path}/file/sm4ll.db")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("sqlite:////var/sm4ll.db", "sqlite+aiosqlite:////var/sm4ll.db"),
        ("postgres://u:p@h/d", "postgresql+asyncpg://u:p@h/d"),
        ("postgresql+psycopg://u:p@h/d", "postgresql+asyncpg://u:p@h/d"),
        ("postgresql://u@h/d?sslmode=require", "postgresql+asyncpg://u@h/d?ssl=require"),
    ],
)
def test_urls_as_people_write_them(written: str, meant: str) -> None:
    assert parse_address(written).render_as_string(hide_password=False) == meant


@pytest.mark.parametrize("url", ["", "mysql://me:secret@h/d", "sqlite://", "sqlite:///:memory:"])
def test_url_that_cannot_be_used_says_what_to_write(url: str) -> None:
    with pytest.raises(ConfigError, match=r"postgresql://user:password@host/sm4ll") as caught:
        parse_address(url)
    assert "secret" not in str(caught.value)


def test_ids_differ_sort_by_time_and_fit_their_column() -> None:
    ids = [new_id("job") for _ in range(2000)]
    assert len(set(ids)) == len(ids)
    stamps = [each[4:14] for each in ids]
    assert stamps == sorted(stamps)
    assert len(ids[0]) <= (Id.length or 0)
