"""Bring a database to the schema of this code, and say whether it is there."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from serve.store.engine import Database, PoolOptions
from serve.store.failures import map_connect_errors
from serve.store.metadata import METADATA
from serve.store.sqlite_file import switch_to_log

MIGRATIONS_DIR = Path(__file__).resolve().parent / "migrations"
MIGRATION_TIMEOUT_S = 900.0  # also the wait for another process's migration
# Any fixed number, the same in every process: "sm4l" as bytes.
LOCK_KEY = int.from_bytes(b"sm4l", "big")


@dataclass(frozen=True)
class SchemaStatus:
    """Where a database stands; `current` is empty where nothing was ever created."""

    current: str
    wanted: str
    differences: Sequence[Any]

    @property
    def is_current(self) -> bool:
        return self.current == self.wanted and not self.differences


async def upgrade(url: str) -> str:
    """Create or change what is missing, all of it or nothing; says the revision.

    Safe at every start and from many processes at once: they go one after the other.

    Raises:
        ConfigError: the URL means no database this system speaks to.
        StoreUnavailable: the database does not answer.
    """
    database = Database(url, PoolOptions(statement_timeout_s=MIGRATION_TIMEOUT_S))
    try:
        if database.is_sqlite:
            await asyncio.to_thread(switch_to_log, database.file)
        with map_connect_errors():
            async with database.engine.begin() as connection:
                if not database.is_sqlite:
                    # Held until the commit. SQLite's transaction is a lock of that kind itself.
                    await connection.execute(
                        text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK_KEY}
                    )
                await connection.run_sync(_upgrade)
        return _script().get_current_head() or ""
    finally:
        await database.close()


async def read_schema(database: Database) -> SchemaStatus:
    """Compare a database with this code; changes nothing.

    Raises:
        StoreUnavailable: the database does not answer.
    """
    async with database.reading() as session:
        connection = await session.connection()
        return await connection.run_sync(_read_status)


def _upgrade(connection: Connection) -> None:
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _read_status(connection: Connection) -> SchemaStatus:
    context = MigrationContext.configure(connection)
    current = context.get_current_revision() or ""
    differences = compare_metadata(context, METADATA)
    return SchemaStatus(current, _script().get_current_head() or "", differences)


def _config() -> Config:
    config = Config()
    # A per cent sign in a path would be read as the start of a variable.
    config.set_main_option("script_location", str(MIGRATIONS_DIR).replace("%", "%%"))
    logging.getLogger("alembic.runtime.migration").setLevel(logging.WARNING)
    return config


def _script() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())
