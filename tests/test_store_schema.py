"""The migrations make the tables that the code means, on both databases and under a crowd."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import Connection, inspect, text

from serve.store.engine import Database
from serve.store.metadata import METADATA
from serve.store.schema import read_schema, upgrade
from tests.stores import opened

pytestmark = pytest.mark.anyio

# Workers claim across tenants; everything else is found through its tenant.
ACROSS_TENANTS = {
    "ix_exposures_experiment_id_revision_at",
    "ix_jobs_deadlines",
    "ix_jobs_runnable",
    "ix_jobs_leases",
    "ix_webhook_deliveries_due",
}


def describe(connection: Connection) -> dict[str, Any]:
    """What a database says it has, table by table, in an order of its own."""
    found = inspect(connection)

    def words(value: Any) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{key}={words(value[key])}" for key in sorted(value))
        return str(value)

    def sort(rows: Any) -> list[str]:
        return sorted(words(row) for row in rows)

    return {
        name: (
            sort(found.get_columns(name)),
            sort(found.get_indexes(name)),
            sort(found.get_check_constraints(name)),
            sort(found.get_unique_constraints(name)),
            sort(found.get_foreign_keys(name)),
            found.get_pk_constraint(name)["constrained_columns"],
        )
        for name in found.get_table_names()
        if name != "alembic_version"
    }


async def described(database: Database) -> dict[str, Any]:
    async with database.engine.connect() as connection:
        return await connection.run_sync(describe)


async def test_migrated_database_is_what_the_tables_say(database: Database) -> None:
    status = await read_schema(database)
    assert status.differences == []
    assert status.is_current


async def test_migrations_and_create_all_agree_on_every_check_and_index(empty_url: str) -> None:
    """Alembic's own comparison sees neither checks nor the condition of an index."""
    await upgrade(empty_url)
    async with opened(empty_url) as database:
        migrated = await described(database)
        async with database.engine.begin() as connection:
            await connection.run_sync(METADATA.drop_all)
            await connection.run_sync(METADATA.create_all)
        assert migrated == await described(database)


async def test_empty_database_says_what_it_lacks(empty_url: str) -> None:
    async with opened(empty_url) as database:
        status = await read_schema(database)
    assert (status.current, status.is_current) == ("", False)
    assert len(status.differences) >= len(METADATA.tables)


async def test_column_that_nobody_migrated_is_named(database: Database) -> None:
    async with database.transaction() as session:
        await session.execute(text("ALTER TABLE tenants ADD COLUMN colour VARCHAR(10)"))
    status = await read_schema(database)
    assert not status.is_current
    assert "colour" in repr(status.differences)


async def test_upgrades_at_once_leave_one_schema(empty_url: str) -> None:
    revisions = await asyncio.gather(*(upgrade(empty_url) for _ in range(6)))
    assert len(set(revisions)) == 1
    async with opened(empty_url) as database:
        assert (await read_schema(database)).is_current


async def test_upgrade_again_keeps_the_rows(store_url: str) -> None:
    insert = text(
        "INSERT INTO tenants (id, name, policy, created_at, updated_at) "
        "VALUES ('acme', 'Acme', '{}', '2026-01-01 00:00:00', '2026-01-01 00:00:00')"
    )
    async with opened(store_url) as database:
        async with database.transaction() as session:
            await session.execute(insert)
        await upgrade(store_url)
        async with database.reading() as session:
            assert await session.scalar(text("SELECT name FROM tenants")) == "Acme"


def test_every_index_of_a_tenants_rows_begins_with_the_tenant() -> None:
    others = {
        index.name
        for table in METADATA.tables.values()
        if "tenant_id" in table.columns
        for index in table.indexes
        if [column.name for column in index.columns][0] != "tenant_id"
    }
    assert others == ACROSS_TENANTS


def test_a_row_of_one_tenant_cannot_refer_to_a_row_of_another() -> None:
    for table in METADATA.tables.values():
        for constraint in table.foreign_key_constraints:
            if "tenant_id" not in constraint.referred_table.columns:
                continue  # it refers to what is the cluster's, or to a tenant itself
            columns = [column.name for column in constraint.columns]
            assert columns[0] == "tenant_id", constraint.name
