"""An audit log that somebody changed, cut or reordered says where; one that nobody did is whole."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import delete, update

from serve.errors import Conflict
from serve.store.audit import (
    PAGE,
    Act,
    append_record,
    hash_record,
    list_records,
    verify_records,
)
from serve.store.engine import Database
from serve.store.tables import AuditRecord
from tests.stores import START, opened

pytestmark = pytest.mark.anyio

DETAIL: dict[str, Any] = {"weight": 2.0, "large": 1e22, "text": "Ä\u2028", "none": None, "of": [1]}


def act(number: int = 0) -> Act:
    return Act(
        actor="key_1", action="tenant.change", tenant_id="acme", target=f"t{number}", detail=DETAIL
    )


async def write(database: Database, num_records: int) -> list[str]:
    """The hashes."""
    async with database.transaction() as session:
        return [
            (await append_record(session, act(number), START)).sha256
            for number in range(num_records)
        ]


async def verify(database: Database, anchor: str | None = None) -> tuple[int | None, str]:
    async with database.reading() as session:
        verdict = await verify_records(session, anchor)
    return verdict.broken_sequence, verdict.reason


async def test_whole_log_is_whole_on_both_sides_of_a_page(database: Database) -> None:
    assert await verify(database) == (None, "")
    hashes = await write(database, PAGE + 2)
    async with database.reading() as session:
        verdict = await verify_records(session)
    assert (verdict.num_records, verdict.head_sha256) == (PAGE + 2, hashes[-1])
    assert verdict.broken_sequence is None


@pytest.mark.parametrize(
    "change",
    [
        {"actor": "key_2"},
        {"action": "key.revoke"},
        {"tenant_id": "bolt"},
        {"tenant_id": None},
        {"target": "t9"},
        {"detail": {**DETAIL, "weight": 3.0}},
        {"at": START.replace(microsecond=1)},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_changed_record_is_named(database: Database, change: dict[str, Any]) -> None:
    await write(database, 4)
    async with database.transaction() as session:
        await session.execute(update(AuditRecord).where(AuditRecord.sequence == 3).values(**change))
    assert await verify(database) == (3, "was changed after it was written")


async def test_changed_record_with_a_new_hash_breaks_the_next(database: Database) -> None:
    await write(database, 4)
    async with database.transaction() as session:
        record = await session.get_one(AuditRecord, 2)
        record.actor = "nobody"
        record.sha256 = hash_record(record)
    assert await verify(database) == (3, "does not follow the record before it")


@pytest.mark.parametrize(("removed", "found"), [(1, 2), (2, 3)])
async def test_removed_record_is_missed(database: Database, removed: int, found: int) -> None:
    await write(database, 4)
    async with database.transaction() as session:
        await session.execute(delete(AuditRecord).where(AuditRecord.sequence == removed))
    assert await verify(database) == (found, f"record {removed} is missing")


async def test_swapped_records_are_found(database: Database) -> None:
    await write(database, 4)
    async with database.transaction() as session:
        for old, new in ((2, 99), (3, 2), (99, 3)):
            await session.execute(
                update(AuditRecord).where(AuditRecord.sequence == old).values(sequence=new)
            )
    assert await verify(database) == (2, "does not follow the record before it")


async def test_cut_end_is_found_by_a_head_that_was_kept(database: Database) -> None:
    hashes = await write(database, 3)
    assert await verify(database, hashes[-1]) == (None, "")
    async with database.transaction() as session:
        await session.execute(delete(AuditRecord).where(AuditRecord.sequence == 3))
    assert await verify(database) == (None, "")
    broken, reason = await verify(database, hashes[-1])
    assert broken == 3
    assert "cut off" in reason


async def test_many_writers_make_one_chain(database: Database, store_url: str) -> None:
    async with opened(store_url) as other:  # another process, as far as the database can tell
        await asyncio.gather(*(write(db, 2) for db in (database, other) for _ in range(8)))
    async with database.reading() as session:
        verdict = await verify_records(session)
    assert (verdict.num_records, verdict.broken_sequence) == (32, None)


async def test_record_goes_with_its_transaction(database: Database) -> None:
    async def fail() -> None:
        async with database.transaction() as session:
            await append_record(session, act(), START)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    async with database.reading() as session:
        assert await list_records(session, limit=10) == []


async def test_newest_first_page_by_page(database: Database) -> None:
    await write(database, 5)
    async with database.reading() as session:
        first = await list_records(session, limit=2)
        second = await list_records(session, limit=2, before=first[-1].sequence)
        nobodys = await list_records(session, limit=2, tenant_id="bolt")
    assert [record.sequence for record in (*first, *second)] == [5, 4, 3, 2]
    assert nobodys == []


async def test_two_records_cannot_follow_the_same_one(database: Database) -> None:
    """The lock is not all that stands between two writers and a forked chain."""
    await write(database, 2)

    async def write_beside_the_second() -> None:
        async with database.transaction() as session:
            first = await session.get_one(AuditRecord, 1)
            fork = {"sequence": 3, "previous_sha256": first.sha256, "sha256": "f" * 64}
            kept = ("at", "actor", "action", "tenant_id", "target", "detail")
            session.add(AuditRecord(**fork, **{name: getattr(first, name) for name in kept}))

    with pytest.raises(Conflict):
        await write_beside_the_second()
