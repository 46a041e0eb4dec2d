"""The part of the ledger that one transaction changes, held in memory between reading and writing.

Synchronous, over one connection: a group commit runs all of it in one hop to the database's
thread. Counters are locked before entries are read, tenants in order of their ids, so that two
writers never wait for each other in a circle.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, date, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Insert, bindparam, insert, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from serve.errors import QuotaExhausted
from serve.store.tables import LedgerEntry, LedgerState, UsageCounter

CHUNK = 500
"""Keys in one statement; PostgreSQL's protocol ends at 32,767 parameters."""
BUSY_RETRY_AFTER_S = 30.0
"""When open reservations alone fill the budget: about as long as a try-on may take."""

ItemKey = tuple[str, str]
"""Tenant and work item."""
CounterKey = tuple[str, str]
"""Tenant and period."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reservation:
    """What one work item may cost, before it runs."""

    tenant_id: str
    work_item: str
    key_id: str | None
    expert: str
    version: str
    gpu_ms: int
    images: int
    expires_at: datetime | None = None
    """When it may be released although nobody said so; none for a job's."""

    @property
    def key(self) -> ItemKey:
        return self.tenant_id, self.work_item


@dataclass(frozen=True, kw_only=True, slots=True)
class Settlement:
    """What one work item did cost."""

    tenant_id: str
    work_item: str
    gpu_ms: int
    images: int
    upstream_microusd: int | None = None
    day: date | None = None
    """Of its reservation, where the caller knows it: saves a statement."""

    @property
    def key(self) -> ItemKey:
        return self.tenant_id, self.work_item


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """That a work item costs nothing."""

    tenant_id: str
    work_item: str
    day: date | None = None

    @property
    def key(self) -> ItemKey:
        return self.tenant_id, self.work_item


Closing = Settlement | Release


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """Of one tenant and one UTC month; what is absent is not limited."""

    gpu_ms: int | None = None
    images: int | None = None


@dataclass(slots=True)
class Entry:
    """A row of the ledger; the names are the table's."""

    tenant_id: str
    work_item: str
    key_id: str | None
    expert: str
    version: str
    state: LedgerState
    reserved_gpu_ms: int
    reserved_images: int
    settled_gpu_ms: int | None
    settled_images: int | None
    upstream_microusd: int | None
    day: date
    created_at: datetime
    expires_at: datetime | None
    closed_at: datetime | None


@dataclass(slots=True)
class Counter:
    """A row of the sums; the names are the table's."""

    tenant_id: str
    period: str
    reserved_gpu_ms: int = 0
    reserved_images: int = 0
    settled_gpu_ms: int = 0
    settled_images: int = 0


def period_of(day: date) -> str:
    return f"{day:%Y-%m}"


def utc_day(now: datetime) -> date:
    return now.astimezone(UTC).date()


def month_end(now: datetime) -> datetime:
    """When the next UTC month begins, and with it the next budget."""
    first = now.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return (first + timedelta(days=32)).replace(day=1)


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

    def write(self) -> None:
        """Everything that changed, in three statements at most."""
        if not self._changed:
            return
        added = [asdict(e) for key, e in self._changed.items() if key not in self._stored]
        changed = [_bound(e) for key, e in self._changed.items() if key in self._stored]
        if added:
            self._connection.execute(insert(LedgerEntry), added)
        if changed:
            self._connection.execute(CHANGE_ENTRY, changed)
        touched = {self._key_of(entry) for entry in self._changed.values()}
        sums = [_bound_counter(self._counters[key]) for key in sorted(touched)]
        self._connection.execute(CHANGE_COUNTER, sums)

    def _key_of(self, entry: Entry) -> CounterKey:
        return entry.tenant_id, period_of(entry.day)

    def _lock(self, keys: Sequence[CounterKey]) -> None:
        """Rows that are missing begin at zero. An update of nothing is what locks a row that is
        there, and reads it, in one statement; SQLite is locked as a whole already."""
        lock = LOCK_ON[self._connection.dialect.name]
        rows = [asdict(Counter(*key)) for key in keys]
        for row in self._connection.execute(lock, rows):
            self._counters[row.tenant_id, row.period] = Counter(*row)

    def _read(self, columns: Any, keys: Collection[ItemKey]) -> Iterable[Any]:
        ordered = sorted(keys)
        for start in range(0, len(keys), CHUNK):
            parameters = {"keys": ordered[start : start + CHUNK]}
            yield from self._connection.execute(columns, parameters)


def refuse(
    counter: Counter, gpu_ms: int, images: int, budget: Budget, now: datetime
) -> QuotaExhausted | None:
    """Compare what is reserved, settled and asked for with the budget."""
    asked = (
        (
            "GPU-seconds",
            1e3,
            budget.gpu_ms,
            counter.settled_gpu_ms,
            counter.reserved_gpu_ms,
            gpu_ms,
        ),
        ("images", 1, budget.images, counter.settled_images, counter.reserved_images, images),
    )
    for what, unit, limit, settled, reserved, new in asked:
        if limit is None or settled + reserved + new <= limit:
            continue
        left = max(0, limit - settled - reserved)
        is_busy = settled + new <= limit
        until_month_end_s = (month_end(now) - now).total_seconds()
        busy = f", {reserved / unit:g} of them reserved by work that still runs" if is_busy else ""
        return QuotaExhausted(
            f"{new / unit:g} {what} are needed and {left / unit:g} of this month's "
            f"{limit / unit:g} are left{busy}",
            remedy="try again when running work has ended"
            if is_busy
            else "ask whoever runs this service for a larger monthly budget, or wait for the next "
            "UTC month",
            retry_after_s=min(BUSY_RETRY_AFTER_S, until_month_end_s)
            if is_busy
            else until_month_end_s,
        )
    return None


def entry_key(row: Any) -> ItemKey:
    return row.tenant_id, row.work_item


def _bound(entry: Entry) -> dict[str, Any]:
    return {f"new_{name}": value for name, value in asdict(entry).items()}


def _bound_counter(counter: Counter) -> dict[str, Any]:
    return {f"new_{name}": value for name, value in asdict(counter).items()}


def _lock_statement(insert_counter: Any) -> Insert:
    keep = {"reserved_gpu_ms": UsageCounter.reserved_gpu_ms}
    statement: Insert = insert_counter.on_conflict_do_update(
        index_elements=[UsageCounter.tenant_id, UsageCounter.period], set_=keep
    ).returning(*(getattr(UsageCounter, each.name) for each in fields(Counter)))
    return statement


# Built once: SQLAlchemy finds a compiled statement by its construct.
LOCK_ON = {
    "sqlite": _lock_statement(sqlite.insert(UsageCounter)),
    "postgresql": _lock_statement(postgresql.insert(UsageCounter)),
}
ENTRY_KEY = tuple_(LedgerEntry.tenant_id, LedgerEntry.work_item)
IS_ONE_OF = ENTRY_KEY.in_(bindparam("keys", expanding=True))
DAYS = select(LedgerEntry.tenant_id, LedgerEntry.work_item, LedgerEntry.day).where(IS_ONE_OF)
# Locked as well: a router whose clock is in another month holds another counter.
ROWS = (
    select(*(getattr(LedgerEntry, each.name) for each in fields(Entry)))
    .where(IS_ONE_OF)
    .order_by(LedgerEntry.tenant_id, LedgerEntry.work_item)
    .with_for_update()
)
CHANGE_ENTRY = (
    update(LedgerEntry.__table__)  # type: ignore[arg-type]
    .where(
        LedgerEntry.tenant_id == bindparam("new_tenant_id"),
        LedgerEntry.work_item == bindparam("new_work_item"),
    )
    .values(
        {
            each.name: bindparam(f"new_{each.name}")
            for each in fields(Entry)
            if each.name not in ("tenant_id", "work_item")
        }
    )
)
CHANGE_COUNTER = (
    update(UsageCounter.__table__)  # type: ignore[arg-type]
    .where(
        UsageCounter.tenant_id == bindparam("new_tenant_id"),
        UsageCounter.period == bindparam("new_period"),
    )
    .values(
        {
            each.name: bindparam(f"new_{each.name}")
            for each in fields(Counter)
            if each.name not in ("tenant_id", "period")
        }
    )
)
