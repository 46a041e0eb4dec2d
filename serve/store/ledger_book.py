"""The part of the ledger that one transaction changes, held in memory between reading and writing.

Synchronous, over one connection: a group commit runs all of it in one hop to the database's
thread. Counters are locked before entries are read, tenants in order of their ids, so that two
writers never wait for each other in a circle.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ARRAY,
    Connection,
    Insert,
    Select,
    String,
    bindparam,
    func,
    insert,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from serve.errors import QuotaExhausted
from serve.store.ledger_records import (
    Budget,
    Closing,
    Counter,
    CounterKey,
    Entry,
    ItemKey,
    Release,
    Reservation,
    period_of,
    refuse,
    utc_day,
)
from serve.store.tables import LedgerEntry, LedgerState, UsageCounter

CHUNK = 500
"""Keys in one statement; PostgreSQL's protocol ends at 32,767 parameters."""


class Book:
    """Entries and counters of some work items: open, change in memory, write once.

    Nothing reaches the database before `write`, so what is refused leaves no trace.
    """

    def __init__(self, connection: Connection, now: datetime):
        self._connection = connection
        self._now = now
        self._today = utc_day(now)
        self._counters: dict[CounterKey, Counter] = {}
        self._entries: dict[ItemKey, Entry] = {}
        self._stored: set[ItemKey] = set()
        self._changed: dict[ItemKey, Entry] = {}

    def open(self, reservations: Sequence[Reservation], closings: Sequence[Closing]) -> None:
        """Lock the counters, then read the entries as they are now."""
        counters = {(each.tenant_id, period_of(self._today)) for each in reservations}
        days = {each.key: each.day for each in closings if each.day is not None}
        unknown = [each.key for each in closings if each.day is None]
        # Which counters to lock is read without a lock: a day changes only where an entry was
        # released and reserved anew meanwhile, and then this closing means nothing any more.
        days |= {entry_key(row): row.day for row in self._read(DAYS, unknown)}
        counters |= {(tenant_id, period_of(day)) for (tenant_id, _), day in days.items()}
        if not counters:
            return
        self._lock(sorted(counters))
        keys = {each.key for each in (*reservations, *closings)}
        self._entries = {entry_key(row): Entry(*row) for row in self._read(ROWS, keys)}
        self._stored = set(self._entries)

    def reserve(self, reservation: Reservation) -> None:
        """Write one down, unless it is reserved or settled already.

        One that was released may be tried again, and is then reserved anew.
        """
        if not self.is_free(reservation):
            return
        entry = Entry(
            tenant_id=reservation.tenant_id,
            work_item=reservation.work_item,
            key_id=reservation.key_id,
            expert=reservation.expert,
            version=reservation.version,
            state=LedgerState.RESERVED,
            reserved_gpu_ms=reservation.gpu_ms,
            reserved_images=reservation.images,
            settled_gpu_ms=None,
            settled_images=None,
            upstream_microusd=None,
            day=self._today,
            created_at=self._now,
            expires_at=reservation.expires_at,
            closed_at=None,
        )
        counter = self._counters[self._key_of(entry)]
        counter.reserved_gpu_ms += entry.reserved_gpu_ms
        counter.reserved_images += entry.reserved_images
        self._entries[reservation.key] = self._changed[reservation.key] = entry

    def is_free(self, reservation: Reservation) -> bool:
        entry = self._entries.get(reservation.key)
        return entry is None or entry.state is LedgerState.RELEASED

    def refusal(
        self, tenant_id: str, gpu_ms: int, images: int, budget: Budget
    ) -> QuotaExhausted | None:
        """Why so much more does not fit this month's budget; None when it does."""
        counter = self._counters[tenant_id, period_of(self._today)]
        return refuse(counter, gpu_ms, images, budget, self._now)

    def close(self, closing: Closing) -> bool:
        """Settle or release a reservation; False when none is open."""
        entry = self._entries.get(closing.key)
        if entry is None or entry.state is not LedgerState.RESERVED:
            return False
        counter = self._counters.get(self._key_of(entry))
        if counter is None:
            return False
        counter.reserved_gpu_ms -= entry.reserved_gpu_ms
        counter.reserved_images -= entry.reserved_images
        entry.closed_at = self._now
        if isinstance(closing, Release):
            entry.state = LedgerState.RELEASED
        else:
            entry.state = LedgerState.SETTLED
            entry.settled_gpu_ms, entry.settled_images = closing.gpu_ms, closing.images
            entry.upstream_microusd = closing.upstream_microusd
            counter.settled_gpu_ms += closing.gpu_ms
            counter.settled_images += closing.images
        self._changed[closing.key] = entry
        return True

    def counters(self, tenant_ids: Iterable[str]) -> dict[str, Counter]:
        """This month's sums of tenants that reserved."""
        period = period_of(self._today)
        return {tenant_id: self._counters[tenant_id, period] for tenant_id in tenant_ids}

    def write(self) -> None:
        """Everything that changed, in three statements at most."""
        if not self._changed:
            return
        added = [_row(e) for key, e in self._changed.items() if key not in self._stored]
        changed = [
            _bound(e, ENTRY_NAMES) for key, e in self._changed.items() if key in self._stored
        ]
        if added:
            self._connection.execute(insert(LedgerEntry), added)
        if changed:
            self._connection.execute(CHANGE_ENTRY, changed)
        touched = {self._key_of(entry) for entry in self._changed.values()}
        sums = [_bound(self._counters[key], COUNTER_NAMES) for key in sorted(touched)]
        self._connection.execute(CHANGE_COUNTER, sums)

    def _key_of(self, entry: Entry) -> CounterKey:
        return entry.tenant_id, period_of(entry.day)

    def _lock(self, keys: Sequence[CounterKey]) -> None:
        """Rows that are missing begin at zero. An update of nothing is what locks a row that is
        there, and reads it, in one statement; SQLite is locked as a whole already."""
        lock = LOCK_ON[self._connection.dialect.name]
        rows = [{"tenant_id": tenant_id, "period": period, **ZERO} for tenant_id, period in keys]
        for row in self._connection.execute(lock, rows):
            self._counters[row.tenant_id, row.period] = Counter(*row)

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


def entry_key(row: Any) -> ItemKey:
    return row.tenant_id, row.work_item


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


ENTRY_NAMES = tuple(each.name for each in fields(Entry))
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
CHANGE_ENTRY = (
    update(LedgerEntry.__table__)  # type: ignore[arg-type]
    .where(
        LedgerEntry.tenant_id == bindparam("new_tenant_id"),
        LedgerEntry.work_item == bindparam("new_work_item"),
    )
    .values({name: bindparam(f"new_{name}") for name in ENTRY_NAMES[2:]})
)
CHANGE_COUNTER = (
    update(UsageCounter.__table__)  # type: ignore[arg-type]
    .where(
        UsageCounter.tenant_id == bindparam("new_tenant_id"),
        UsageCounter.period == bindparam("new_period"),
    )
    .values({name: bindparam(f"new_{name}") for name in COUNTER_NAMES[2:]})
)
