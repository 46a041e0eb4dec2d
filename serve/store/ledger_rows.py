"""The ledger's rows through SQLAlchemy, on either database: six statements, built once."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import fields
from datetime import date
from typing import Any, Protocol

from sqlalchemy import (
    ARRAY,
    Connection,
    Insert,
    Select,
    String,
    Update,
    bindparam,
    func,
    insert,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from serve.store.ledger_records import Counter, CounterKey, Entry, ItemKey
from serve.store.tables import LedgerEntry, UsageCounter

CHUNK = 500
"""Keys in one statement; PostgreSQL's protocol ends at 32,767 parameters."""


class Rows(Protocol):
    """What the book reads and writes, inside one transaction."""

    def lock(self, keys: Sequence[CounterKey], /) -> list[Counter]:
        """Lock the counters in this order; rows that are missing begin at zero."""

    def read_days(self, keys: Collection[ItemKey], /) -> dict[ItemKey, date]: ...

    def read_entries(self, keys: Collection[ItemKey], /) -> list[Entry]:
        """Locked until the end of the transaction."""

    def add(self, entries: Sequence[Entry], /) -> None: ...
    def change(self, entries: Sequence[Entry], /) -> None: ...
    def close(self, entries: Sequence[Entry], /) -> None:
        """Of entries that are otherwise as they were: how they ended, and no index but one."""

    def change_counters(self, counters: Sequence[Counter], /) -> None: ...


class SqlRows:
    """On any connection, also one that a session shares."""

    def __init__(self, connection: Connection):
        self._connection = connection

    def lock(self, keys: Sequence[CounterKey]) -> list[Counter]:
        """An update of nothing is what locks a row that is there, and reads it, in one statement;
        SQLite is locked as a whole already."""
        lock = LOCK_ON[self._connection.dialect.name]
        rows = [{"tenant_id": tenant_id, "period": period, **ZERO} for tenant_id, period in keys]
        return [Counter(*row) for row in self._connection.execute(lock, rows)]

    def read_days(self, keys: Collection[ItemKey]) -> dict[ItemKey, date]:
        return {(row.tenant_id, row.work_item): row.day for row in self._read(DAYS, keys)}

    def read_entries(self, keys: Collection[ItemKey]) -> list[Entry]:
        return [Entry(*row) for row in self._read(ROWS, keys)]

    def add(self, entries: Sequence[Entry]) -> None:
        self._connection.execute(insert(LedgerEntry), [_row(each) for each in entries])

    def change(self, entries: Sequence[Entry]) -> None:
        self._connection.execute(CHANGE_ENTRY, [_bound(each, ENTRY_NAMES) for each in entries])

    def close(self, entries: Sequence[Entry]) -> None:
        rows = [_bound(each, (*ENTRY_NAMES[:2], *CLOSING_NAMES)) for each in entries]
        self._connection.execute(CLOSE_ENTRY, rows)

    def change_counters(self, counters: Sequence[Counter]) -> None:
        rows = [_bound(each, COUNTER_NAMES) for each in counters]
        self._connection.execute(CHANGE_COUNTER, rows)

    def _read(self, read: "_Read", keys: Collection[ItemKey]) -> Iterable[Any]:
        ordered = sorted(keys)
        for start in range(0, len(keys), CHUNK):
            chunk = ordered[start : start + CHUNK]
            if self._connection.dialect.name == "sqlite":
                yield from self._connection.execute(read.on_sqlite, {"keys": chunk})
            else:
                tenant_ids, work_items = map(list, zip(*chunk, strict=True))
                yield from self._connection.execute(
                    read.on_postgres, {"tenant_ids": tenant_ids, "work_items": work_items}
                )


class _Read:
    """Some columns of the entries with the given keys."""

    def __init__(self, names: Sequence[str], *, is_locking: bool):
        columns = select(*(getattr(LedgerEntry, name) for name in names))
        key = tuple_(LedgerEntry.tenant_id, LedgerEntry.work_item)
        self.on_sqlite = columns.where(key.in_(bindparam("keys", expanding=True)))
        # A list of pairs is planned anew each time, pair by pair: 9 ms for 64 of them.
        wanted = (
            func.unnest(
                bindparam("tenant_ids", type_=ARRAY(String)),
                bindparam("work_items", type_=ARRAY(String)),
            )
            .table_valued("tenant_id", "work_item", name="wanted")
            .render_derived()
        )
        is_wanted = (LedgerEntry.tenant_id == wanted.c.tenant_id) & (
            LedgerEntry.work_item == wanted.c.work_item
        )
        found: Select[Any] = columns.join_from(LedgerEntry, wanted, is_wanted)
        if is_locking:
            ordered = found.order_by(LedgerEntry.tenant_id, LedgerEntry.work_item)
            found = ordered.with_for_update(of=LedgerEntry)
        self.on_postgres = found


def _row(entry: Entry) -> dict[str, Any]:
    # `asdict` copies every value: ten times as slow.
    return {name: getattr(entry, name) for name in ENTRY_NAMES}


def _bound(row: Entry | Counter, names: Sequence[str]) -> dict[str, Any]:
    return {f"new_{name}": getattr(row, name) for name in names}


def _lock_statement(insert_counter: Any) -> Insert:
    keep = {"reserved_gpu_ms": UsageCounter.reserved_gpu_ms}
    statement: Insert = insert_counter.on_conflict_do_update(
        index_elements=[UsageCounter.tenant_id, UsageCounter.period], set_=keep
    ).returning(*(getattr(UsageCounter, name) for name in COUNTER_NAMES))
    return statement


def _change_statement(names: Sequence[str]) -> Update:
    statement: Update = update(LedgerEntry.__table__)  # type: ignore[arg-type]
    return statement.where(
        LedgerEntry.tenant_id == bindparam("new_tenant_id"),
        LedgerEntry.work_item == bindparam("new_work_item"),
    ).values({name: bindparam(f"new_{name}") for name in names})


ENTRY_NAMES = tuple(each.name for each in fields(Entry))
CLOSING_NAMES = ("state", "settled_gpu_ms", "settled_images", "upstream_microusd", "closed_at")
COUNTER_NAMES = tuple(each.name for each in fields(Counter))
ZERO = dict.fromkeys(COUNTER_NAMES[2:], 0)
# Built once: SQLAlchemy finds a compiled statement by its construct.
LOCK_ON = {
    "sqlite": _lock_statement(sqlite.insert(UsageCounter)),
    "postgresql": _lock_statement(postgresql.insert(UsageCounter)),
}
DAYS = _Read(("tenant_id", "work_item", "day"), is_locking=False)
# Locked as well: a router whose clock is in another month holds another counter.
ROWS = _Read(ENTRY_NAMES, is_locking=True)
CHANGE_ENTRY = _change_statement(ENTRY_NAMES[2:])
CLOSE_ENTRY = _change_statement(CLOSING_NAMES)
CHANGE_COUNTER = (
    update(UsageCounter.__table__)  # type: ignore[arg-type]
    .where(
        UsageCounter.tenant_id == bindparam("new_tenant_id"),
        UsageCounter.period == bindparam("new_period"),
    )
    .values({name: bindparam(f"new_{name}") for name in COUNTER_NAMES[2:]})
)
