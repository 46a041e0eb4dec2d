"""The part of the ledger that one transaction changes, held in memory between reading and writing.

Synchronous, over one connection: a group commit runs all of it in one hop to the database's
thread. Counters are locked before entries are read, tenants in order of their ids, so that two
writers never wait for each other in a circle.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from datetime import datetime

from sqlalchemy import Connection

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
from serve.store.ledger_rows import Rows, SqlRows
from serve.store.ledger_sqlite import SqliteRows
from serve.store.tables import LedgerState


class Book:
    """Entries and counters of some work items: open, change in memory, write once.

    Nothing reaches the database before `write`, so what is refused leaves no trace.
    """

    def __init__(self, connection: Connection, now: datetime):
        self._rows = _open_rows(connection)
        self._now = now
        self._today = utc_day(now)
        self._counters: dict[CounterKey, Counter] = {}
        self._entries: dict[ItemKey, Entry] = {}
        self._stored: set[ItemKey] = set()
        self._changed: dict[ItemKey, Entry] = {}
        self._reserved: set[ItemKey] = set()

    def open(self, reservations: Sequence[Reservation], closings: Sequence[Closing]) -> None:
        """Lock the counters, then read the entries as they are now."""
        counters = {(each.tenant_id, period_of(self._today)) for each in reservations}
        days = {each.key: each.day for each in closings if each.day is not None}
        unknown = [each.key for each in closings if each.day is None]
        # Which counters to lock is read without a lock: a day changes only where an entry was
        # released and reserved anew meanwhile, and then this closing means nothing any more.
        if unknown:
            days |= self._rows.read_days(unknown)
        counters |= {(tenant_id, period_of(day)) for (tenant_id, _), day in days.items()}
        if not counters:
            return
        for counter in self._rows.lock(sorted(counters)):
            self._counters[counter.tenant_id, counter.period] = counter
        keys = {each.key for each in (*reservations, *closings)}
        self._entries = {entry_key(entry): entry for entry in self._rows.read_entries(keys)}
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
        self._reserved.add(reservation.key)

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
        """Everything that changed, in four statements at most."""
        if not self._changed:
            return
        added = [entry for key, entry in self._changed.items() if key not in self._stored]
        stored = [(key, entry) for key, entry in self._changed.items() if key in self._stored]
        anew = [entry for key, entry in stored if key in self._reserved]
        closed = [entry for key, entry in stored if key not in self._reserved]
        if added:
            self._rows.add(added)
        if anew:
            self._rows.change(anew)
        if closed:
            self._rows.close(closed)
        touched = sorted({self._key_of(entry) for entry in self._changed.values()})
        self._rows.change_counters([self._counters[key] for key in touched])

    def _key_of(self, entry: Entry) -> CounterKey:
        return entry.tenant_id, period_of(entry.day)


def entry_key(entry: Entry) -> ItemKey:
    return entry.tenant_id, entry.work_item


def _open_rows(connection: Connection) -> Rows:
    """Without SQLAlchemy where the driver's own connection is at hand, in the writer's thread."""
    driver = connection.connection.driver_connection
    return SqliteRows(driver) if isinstance(driver, sqlite3.Connection) else SqlRows(connection)
