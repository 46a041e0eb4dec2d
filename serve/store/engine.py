"""One engine per process: connections, transactions and whether the database answers."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from serve.errors import StoreUnavailable
from serve.observing.meter import NO_METER, Meter
from serve.store.address import is_sqlite, parse_address
from serve.store.failures import map_connect_errors, map_database_errors
from serve.store.sqlite_file import create_file
from serve.store.turnstile import Turnstile

Session = AsyncSession
"""What a transaction is worked in; other packages pass it on and know nothing more of it."""

READING = "sm4ll_reading"
PING_TIMEOUT_S = 3.0

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class PoolOptions:
    """How many connections one process may hold, and how long it waits for what."""

    size: int = 10
    max_overflow: int = 10
    wait_s: float = 5.0
    """For a connection of the pool; on SQLite also for the turn to write."""
    connect_timeout_s: float = 5.0
    statement_timeout_s: float = 30.0
    busy_timeout_s: float = 10.0
    """SQLite only: for another process that writes."""


class Database:
    """The engine of one process, used from one event loop; opens nothing before its first use."""

    def __init__(self, url: str, options: PoolOptions | None = None, meter: Meter = NO_METER):
        """
        Args:
            url: `sqlite:///...` with a file, or `postgresql://...`.

        Raises:
            ConfigError: the URL means no database this system speaks to.
        """
        self._options = options or PoolOptions()
        self._meter = meter
        self._url = parse_address(url)
        self._engine = _create_engine(self._url, self._options)
        # SQLite has one writer, and its own waiting is in no order: with 32 writers the p99 of a
        # small write is 110 ms instead of 650 ms.
        self._turnstile = Turnstile(self.file, self._options.wait_s) if self.is_sqlite else None
        self._writer = _ThreadWriter(self._url, self._options) if self.is_sqlite else None

    @property
    def is_sqlite(self) -> bool:
        return is_sqlite(self._url)

    @property
    def file(self) -> Path:
        """Of SQLite only."""
        return Path(str(self._url.database))

    @property
    def engine(self) -> AsyncEngine:
        """For this package's migrations."""
        return self._engine

    def __repr__(self) -> str:
        return f"Database({self._url.render_as_string(hide_password=True)})"

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Session]:
        """Write: committed when the block ends, undone when it raises.

        Only database work belongs inside: on SQLite everybody else waits to write meanwhile.

        Raises:
            StoreUnavailable: nothing was written, unless it was the commit whose answer was lost:
                repeat only what is safe to repeat.
            Conflict: a row that must be unique or must exist is not.
        """
        with self._counting():
            async with self._writers_turn(), self._session({}) as session:
                yield session

    async def write(self, work: Callable[[Connection], T]) -> T:
        """A transaction that is known as a whole before it begins, so that nobody waits inside it.

        On SQLite it is one hop to a thread, instead of one for every statement.

        Raises:
            StoreUnavailable, Conflict: as in `transaction`.
        """
        with self._counting():
            async with self._writers_turn():
                if self._writer is not None:
                    return await self._writer.run(work)
                with map_connect_errors():
                    async with self._engine.begin() as connection:
                        return await connection.run_sync(work)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Session]:
        """Read; waits for no writer and refuses to write where the database can refuse it."""
        with self._counting():
            async with self._session({READING: True, **self._read_only}) as session:
                yield session

    async def ping(self) -> None:
        """
        Raises:
            StoreUnavailable: no answer within three seconds.
        """
        with map_connect_errors():
            async with asyncio.timeout(PING_TIMEOUT_S), self.reading() as session:
                await session.execute(text("SELECT 1"))

    async def close(self) -> None:
        if self._writer is not None:
            await self._writer.close()
        if self._turnstile is not None:
            self._turnstile.close()
        await self._engine.dispose()

    @property
    def _read_only(self) -> dict[str, Any]:
        return {} if self.is_sqlite else {"postgresql_readonly": True}

    @asynccontextmanager
    async def _session(self, options: dict[str, Any]) -> AsyncIterator[Session]:
        with map_database_errors():
            async with AsyncSession(self._engine, expire_on_commit=False) as session:
                with map_connect_errors():
                    await session.connection(execution_options=options)
                yield session
                await session.commit()

    @contextmanager
    def _counting(self) -> Iterator[None]:
        try:
            yield
        except StoreUnavailable:
            self._meter.add("sm4ll_store_errors_total")
            raise

    def _writers_turn(self) -> AbstractAsyncContextManager[None]:
        return nullcontext() if self._turnstile is None else self._turnstile.turn()


class _ThreadWriter:
    """One plain connection to SQLite that lives in a thread of its own."""

    def __init__(self, url: URL, options: PoolOptions):
        self._url = url.set(drivername="sqlite+pysqlite")
        self._arguments = {"timeout": options.busy_timeout_s, "isolation_level": None}
        self._thread: ThreadPoolExecutor | None = None
        self._connection: Connection | None = None

    async def run(self, work: Callable[[Connection], T]) -> T:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite")
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, work)

    def _run(self, work: Callable[[Connection], T]) -> T:
        with map_connect_errors():
            if self._connection is None:
                engine = create_engine(
                    self._url,
                    hide_parameters=True,
                    connect_args=self._arguments,
                    poolclass=NullPool,
                )
                _listen(engine)
                self._connection = engine.connect()
            try:
                with self._connection.begin():
                    return work(self._connection)
            except Exception:
                self._dispose()  # whatever state it is in now, the next one begins clean
                raise

    async def close(self) -> None:
        if self._thread is None:
            return
        await asyncio.get_running_loop().run_in_executor(self._thread, self._dispose)
        self._thread.shutdown(wait=False)
        self._thread = None

    def _dispose(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _create_engine(url: URL, options: PoolOptions) -> AsyncEngine:
    # Errors of SQLAlchemy end in the values of the statement, which are people's.
    pool: dict[str, Any] = {
        "pool_size": options.size,
        "max_overflow": options.max_overflow,
        "pool_timeout": options.wait_s,
    }
    if not is_sqlite(url):
        # A database that was restarted is not an error of the next request.
        return create_async_engine(
            url,
            pool_pre_ping=True,
            hide_parameters=True,
            connect_args=_postgres_arguments(options),
            **pool,
        )
    create_file(Path(str(url.database)))
    arguments = {"timeout": options.busy_timeout_s, "isolation_level": None}
    engine = create_async_engine(url, hide_parameters=True, connect_args=arguments, **pool)
    _listen(engine.sync_engine)
    return engine


def _listen(engine: Engine) -> None:
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)


def _postgres_arguments(options: PoolOptions) -> dict[str, Any]:
    return {
        "timeout": options.connect_timeout_s,
        "command_timeout": options.statement_timeout_s,
        "server_settings": {
            "application_name": "sm4ll",
            # A process that was stopped inside a transaction must not keep its rows locked.
            "idle_in_transaction_session_timeout": str(int(options.statement_timeout_s * 1000)),
        },
    }


def _prepare_sqlite(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    for pragma in (
        # What was answered with 202 survives a power cut too; NORMAL would lose the last commits.
        "synchronous = FULL",
        "foreign_keys = ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    """A write begins as one: upgrading a read that another write overtook cannot be waited for."""
    is_reading = connection.get_execution_options().get(READING, False)
    connection.exec_driver_sql("BEGIN" if is_reading else "BEGIN IMMEDIATE")
