"""What the ledger keeps and is told, and when a budget has no room for more."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from serve.errors import QuotaExhausted
from serve.store.tables import LedgerState

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
    return day.isoformat()[:7]


def utc_day(now: datetime) -> date:
    return now.astimezone(UTC).date()


def month_end(now: datetime) -> datetime:
    """When the next UTC month begins, and with it the next budget."""
    first = now.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return (first + timedelta(days=32)).replace(day=1)


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
