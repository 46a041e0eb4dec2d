"""What work was promised, and what it cost: reserved before it runs, closed once afterwards.

Everything happens in the caller's transaction, so that a job's end and its settlement are one
write. Sums per tenant and month are changed with the entries, never apart from them.

A transaction that touches several tenants does it in order of their ids, and locks its jobs
before it comes here: then no two of them wait for each other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from sqlalchemy import Connection, or_, select

from serve.errors import QuotaExhausted
from serve.store.engine import Session
from serve.store.ledger_book import Book
from serve.store.ledger_records import (
    Budget,
    Closing,
    Counter,
    Release,
    Reservation,
    Settlement,
    period_of,
    utc_day,
)
from serve.store.tables import LedgerEntry, LedgerState, UsageCounter

__all__ = [
    "Budget",
    "Closing",
    "Counter",
    "Opening",
    "Outcome",
    "Posted",
    "Posting",
    "Release",
    "Reservation",
    "Settlement",
    "post",
    "read_counter",
    "release",
    "release_expired",
    "release_many",
    "reserve",
    "reserve_each",
    "settle",
    "settle_each",
]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Opening:
    """A reservation and the budget it must fit."""

    reservation: Reservation
    budget: Budget


Posting = Opening | Closing
Outcome = QuotaExhausted | bool
"""Why it was refused; or True, and False where nothing was open to be closed."""


@dataclass(frozen=True, slots=True)
class Posted:
    """What became of each posting, in the order they were given, and the sums afterwards."""

    outcomes: list[Outcome]
    counters: dict[str, Counter]
    """This month's, of every tenant that reserved."""


async def reserve(
    session: Session, reservations: Sequence[Reservation], budget: Budget, now: datetime
) -> None:
    """Reserve for one tenant, all or nothing.

    A work item that is reserved or settled already is left as it is and needs nothing more, so
    that a retry is free; one that was released is reserved anew.

    Raises:
        QuotaExhausted: together they do not fit what is left of the month's budget.
    """
    if not reservations:
        return

    def work(connection: Connection) -> None:
        book = Book(connection, now)
        book.open(reservations, ())
        free = {each.key: each for each in reservations if book.is_free(each)}.values()
        gpu_ms, images = sum(each.gpu_ms for each in free), sum(each.images for each in free)
        refusal = book.refusal(reservations[0].tenant_id, gpu_ms, images, budget)
        if refusal is not None and free:
            raise refusal
        for reservation in free:
            book.reserve(reservation)
        book.write()

    await _run(session, work)


async def reserve_each(
    session: Session, wanted: Sequence[tuple[Reservation, Budget]], now: datetime
) -> list[QuotaExhausted | None]:
    """Reserve for many tenants in a few statements; says for each why it was refused, or None."""
    postings = [Opening(reservation=each, budget=budget) for each, budget in wanted]
    posted = await _run(session, lambda connection: post(connection, postings, now))
    return [each if isinstance(each, QuotaExhausted) else None for each in posted.outcomes]


async def settle(
    session: Session,
    tenant_id: str,
    work_item: str,
    *,
    gpu_ms: int,
    images: int,
    upstream_microusd: int | None = None,
    now: datetime,
) -> bool:
    """Close a reservation with what was measured, which may be more than was reserved.

    Returns:
        False when none is open. If it was settled before, this is a replay: deliver the answer
        again. If it was released or had expired, the work is not charged any more: deliver it,
        and log that it was free. Either way there is nothing to repeat.
    """
    settlement = Settlement(
        tenant_id=tenant_id,
        work_item=work_item,
        gpu_ms=gpu_ms,
        images=images,
        upstream_microusd=upstream_microusd,
    )
    return (await settle_each(session, [settlement], now))[0]


async def settle_each(session: Session, closings: Sequence[Closing], now: datetime) -> list[bool]:
    """Settle or release many, of many tenants, in a few statements."""
    posted = await _run(session, lambda connection: post(connection, closings, now))
    return [each is True for each in posted.outcomes]


async def release(session: Session, tenant_id: str, work_item: str, now: datetime) -> bool:
    """Close a reservation at no cost; False when none is open."""
    return await release_many(session, tenant_id, [work_item], now) == 1


async def release_many(
    session: Session, tenant_id: str, work_items: Sequence[str], now: datetime
) -> int:
    """Close many of one tenant; says how many were open."""
    closings = [Release(tenant_id=tenant_id, work_item=each) for each in work_items]
    return sum(await settle_each(session, closings, now))


async def release_expired(session: Session, now: datetime, limit: int = 500) -> int:
    """Give back what routers reserved that died before they said what it cost; says how many."""
    # Asked by tenant, as the index is; the sums say which tenants have anything open.
    is_open = or_(UsageCounter.reserved_gpu_ms > 0, UsageCounter.reserved_images > 0)
    expired = (
        select(LedgerEntry.tenant_id, LedgerEntry.work_item, LedgerEntry.day)
        .where(
            LedgerEntry.tenant_id.in_(select(UsageCounter.tenant_id).where(is_open)),
            LedgerEntry.state == LedgerState.RESERVED,
            LedgerEntry.expires_at <= now,
        )
        .limit(limit)
    )
    rows = (await session.execute(expired)).all()
    closings = [
        Release(tenant_id=row.tenant_id, work_item=row.work_item, day=row.day) for row in rows
    ]
    return sum(await settle_each(session, closings, now))


async def read_counter(session: Session, tenant_id: str, now: datetime) -> Counter:
    """The sums of the month that `now` lies in."""
    period = period_of(utc_day(now))
    row = await session.get(UsageCounter, (tenant_id, period), populate_existing=True)
    if row is None:
        return Counter(tenant_id, period)
    return Counter(
        tenant_id,
        period,
        row.reserved_gpu_ms,
        row.reserved_images,
        row.settled_gpu_ms,
        row.settled_images,
    )


def post(connection: Connection, postings: Sequence[Posting], now: datetime) -> Posted:
    """One after the other, in one pass over the book."""
    reservations = [each.reservation for each in postings if isinstance(each, Opening)]
    closings = [each for each in postings if not isinstance(each, Opening)]
    book = Book(connection, now)
    book.open(reservations, closings)
    outcomes = [_post(book, posting) for posting in postings]
    book.write()
    return Posted(outcomes, book.counters(each.tenant_id for each in reservations))


def _post(book: Book, posting: Posting) -> Outcome:
    if not isinstance(posting, Opening):
        return book.close(posting)
    reservation = posting.reservation
    if not book.is_free(reservation):
        return True
    gpu_ms, images = reservation.gpu_ms, reservation.images
    refusal = book.refusal(reservation.tenant_id, gpu_ms, images, posting.budget)
    if refusal is not None:
        return refusal
    book.reserve(reservation)
    return True


async def _run(session: Session, work: Callable[[Connection], T]) -> T:
    # What the entries refer to may still wait in the session.
    await session.flush()
    connection = await session.connection()
    return await connection.run_sync(work)
