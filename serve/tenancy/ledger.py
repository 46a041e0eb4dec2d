"""Group commit: what one router reserves and settles at the same time is one transaction.

Writing is what a request waits for, so it waits for as little as can be: while a budget is
nowhere near its end the expert is asked before the reservation is on disk, and only the answer
waits for it; what it cost is written together with somebody's next reservation.

A router that dies between an answer and its settlement leaves a durable reservation. It expires
and is released: the tenant got a picture for nothing, never paid twice.
"""

import asyncio
import contextvars
import logging
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from serve.errors import QuotaExhausted, Sm4llError, StoreUnavailable
from serve.observing.meter import NO_METER, Meter
from serve.store.columns import utc_now
from serve.store.engine import Database
from serve.store.ledger import (
    Budget,
    Closing,
    Counter,
    Opening,
    Outcome,
    Posting,
    Reservation,
    Settlement,
    post,
)
from serve.store.ledger_records import period_of, utc_day

MIN_HEAD_START_S = 0.001
"""How long the work goes first at least, where it need not wait for its reservation: begun at once,
writing takes the processor from the call to the expert."""
MAX_HEAD_START_S = 0.02
HEAD_START = 0.5
"""Of the time that work took lately until it needed its reservation: so long others may come, to
share the transaction, and there is time left to write it."""
LEARNING = 0.1
LINGER_S = 0.05
"""How long a settlement waits for a reservation to go with."""
RETRY_S = 1.0
MAX_POSTINGS = 256
"""In one transaction: on SQLite about 30 ms in which nobody else writes."""
MAX_UNSETTLED = 50_000
"""Settlements kept while the database is away; more are left to expire in the tenant's favour."""
AMPLE = 10
"""A budget is far from its end when ten times what is open would still fit."""

logger = logging.getLogger("ray.serve")


@dataclass(slots=True, eq=False)
class _Pending:
    """One posting on its way; nobody waits for a closing's outcome."""

    posting: Posting
    written: "asyncio.Future[bool] | None" = None


@dataclass(slots=True)
class _Known:
    """What this router knows of one tenant's month."""

    counter: Counter
    unwritten_gpu_ms: int = 0
    unwritten_images: int = 0


class UsageLedger:
    """The ledger of one process, used from its one event loop.

    Postings are written in the order they came: a work item released and reserved again ends up
    reserved.
    """

    def __init__(
        self,
        database: Database,
        now: Callable[[], datetime] = utc_now,
        meter: Meter = NO_METER,
    ):
        self._database = database
        self._meter = meter
        self._now = now
        self._pending: deque[_Pending] = deque()
        self._known: dict[str, _Known] = {}
        self._writer: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._head_start_s = MIN_HEAD_START_S
        self._is_awaited = False
        """Whether somebody waits for what is pending."""

    def now(self) -> datetime:
        """The clock that its entries are dated by."""
        return self._now()

    def is_ample(self, reservation: Reservation, budget: Budget) -> bool:
        """Whether the budget will do for this and ten times all that is open, as far as is known.

        A hint only: what the database says of the reservation is what counts.
        """
        if budget.gpu_ms is None and budget.images is None:
            return True
        known = self._known.get(reservation.tenant_id)
        if known is None or known.counter.period != period_of(utc_day(self._now())):
            return False
        counter = known.counter
        open_gpu_ms = counter.reserved_gpu_ms + known.unwritten_gpu_ms + reservation.gpu_ms
        open_images = counter.reserved_images + known.unwritten_images + reservation.images
        return _fits(budget.gpu_ms, counter.settled_gpu_ms, open_gpu_ms) and _fits(
            budget.images, counter.settled_images, open_images
        )

    def reserve(
        self, reservation: Reservation, budget: Budget, *, is_awaited: bool = True
    ) -> "asyncio.Future[bool]":
        """Begin to write a reservation; the future is done when it is on disk, or refused.

        Args:
            is_awaited: False where the work goes on meanwhile; `hurry` says when it waits.

        Raises:
            QuotaExhausted, StoreUnavailable: from the future.
        """
        written: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        known = self._known.get(reservation.tenant_id)
        if known is not None:
            known.unwritten_gpu_ms += reservation.gpu_ms
            known.unwritten_images += reservation.images
        opening = Opening(reservation=reservation, budget=budget)
        self._pending.append(_Pending(opening, written))
        if is_awaited:
            self.hurry()
        else:
            self._wake_after(self._head_start_s)
        return written

    def hurry(self) -> None:
        """Somebody waits now for what is pending."""
        self._is_awaited = True
        self._wake()

    def note_lead(self, lead_s: float) -> None:
        """Learn how long work goes on before it needs its reservation."""
        wanted_s = min(max(HEAD_START * lead_s, MIN_HEAD_START_S), MAX_HEAD_START_S)
        self._head_start_s += LEARNING * (wanted_s - self._head_start_s)

    def close(self, closing: Closing) -> None:
        """Settle or release soon; the caller has nothing to wait for."""
        if len(self._pending) >= MAX_UNSETTLED:
            logger.error("usage ledger: %s is left to expire", closing.work_item)
            self._count(closing, "left_to_expire")
            return
        self._pending.append(_Pending(closing))
        self._wake_after(LINGER_S)

    async def flush(self) -> None:
        """Wait until everything pending is written, or cannot be."""
        num_left = len(self._pending) + 1
        while self._writer is not None or len(self._pending) < num_left:
            num_left = len(self._pending)
            self.hurry()
            if self._writer is None:
                return
            await asyncio.shield(self._writer)

    async def shut_down(self) -> None:
        """Write what is pending; what cannot be written expires."""
        await self.flush()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for pending in self._pending:
            logger.error("usage ledger: %s is left to expire", _name(pending.posting))
            self._count(pending.posting, "left_to_expire")
        self._pending.clear()

    def _wake_after(self, seconds: float) -> None:
        if self._writer is not None:
            return  # it takes what came meanwhile
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            if self._timer.when() <= loop.time() + seconds:
                return
            self._timer.cancel()
        # A context of its own: nothing of the request that happened to come first belongs here.
        self._timer = loop.call_later(seconds, self._wake, context=contextvars.Context())

    def _wake(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._writer is None and self._pending:
            self._writer = asyncio.get_running_loop().create_task(
                self._write_all(), context=contextvars.Context()
            )

    async def _write_all(self) -> None:
        retry_s = 0.0
        try:
            while taken := self._take():
                try:
                    await self._write(taken)
                except StoreUnavailable as exc:
                    self._put_off(taken, exc)
                    retry_s = RETRY_S
                    break
                except Exception:
                    # Nobody may wait forever for what a mistake of ours has ended.
                    logger.exception("usage ledger: %d postings are lost", len(taken))
                    self._forget_unwritten(taken)
                    for pending in taken:
                        self._count(pending.posting, "lost")
                        _fail(pending, StoreUnavailable("The usage ledger failed."))
                if not self._is_awaited:
                    break  # what came meanwhile waits for company
        finally:
            self._writer = None
            if self._pending:
                self._wake_after(retry_s or self._patience_s())

    def _patience_s(self) -> float:
        """How long what is pending may wait while nobody waits for it."""
        is_opening = any(pending.written is not None for pending in self._pending)
        return self._head_start_s if is_opening else LINGER_S

    def _take(self) -> list[_Pending]:
        count = min(len(self._pending), MAX_POSTINGS)
        taken = [self._pending.popleft() for _ in range(count)]
        # What is left after so many has been waiting as long as they.
        self._is_awaited = bool(self._pending)
        return taken

    async def _write(self, taken: list[_Pending]) -> None:
        """All in one transaction; one by one where that fails and the database is not to blame.

        Every posting may be written twice: what is reserved or closed is left as it is. So it does
        no harm that a commit may have succeeded unseen.
        """
        try:
            outcomes = await self._post(taken)
        except StoreUnavailable:
            raise
        except Sm4llError as exc:
            if len(taken) == 1:
                self._forget_unwritten(taken)
                self._count(taken[0].posting, "lost")
                _fail(taken[0], exc)
                return
            while taken:
                await self._write(taken[:1])
                del taken[0]
            return
        self._forget_unwritten(taken)
        for pending, outcome in zip(taken, outcomes, strict=True):
            how = "settled" if isinstance(pending.posting, Settlement) else "released"
            self._count(pending.posting, how if outcome is True else "closed_before")
            _resolve(pending, outcome)

    def _count(self, posting: Posting, outcome: str) -> None:
        if not isinstance(posting, Opening):
            self._meter.add("sm4ll_settlements_total", outcome=outcome)

    async def _post(self, taken: list[_Pending]) -> list[Outcome]:
        now = self._now()
        postings = [pending.posting for pending in taken]
        posted = await self._database.write(lambda connection: post(connection, postings, now))
        for tenant_id, counter in posted.counters.items():
            known = self._known.get(tenant_id)
            if known is None:
                self._known[tenant_id] = _Known(counter)
            else:
                known.counter = counter
        return posted.outcomes

    def _forget_unwritten(self, ended: Iterable[_Pending]) -> None:
        for pending in ended:
            if not isinstance(pending.posting, Opening):
                continue
            reservation = pending.posting.reservation
            known = self._known.get(reservation.tenant_id)
            if known is not None:
                known.unwritten_gpu_ms = max(0, known.unwritten_gpu_ms - reservation.gpu_ms)
                known.unwritten_images = max(0, known.unwritten_images - reservation.images)

    def _put_off(self, taken: list[_Pending], error: StoreUnavailable) -> None:
        """The database is away: whoever waits learns it now, what is closed waits for its return.

        All that waits, not only what was taken: each next try could take seconds to fail.
        """
        waiting = [*taken, *self._pending]
        self._forget_unwritten(waiting)
        self._pending.clear()
        for pending in waiting:
            if pending.written is None:
                self._pending.append(pending)
            else:
                _fail(pending, error)


def _fits(limit: int | None, settled: int, is_open: int) -> bool:
    return limit is None or settled + AMPLE * is_open <= limit


def _resolve(pending: _Pending, outcome: Outcome) -> None:
    if pending.written is None:
        if outcome is False:
            # Released by its expiry, or a replay: the answer is out, and stays free.
            logger.info("usage ledger: %s was closed already", _name(pending.posting))
        return
    if pending.written.done():
        return
    if isinstance(outcome, QuotaExhausted):
        _fail(pending, outcome)
    else:
        pending.written.set_result(outcome)


def _fail(pending: _Pending, error: Sm4llError) -> None:
    if pending.written is None:
        logger.error("usage ledger: %s: %s", _name(pending.posting), error)
        return
    with suppress(asyncio.InvalidStateError):
        pending.written.set_exception(error)
        pending.written.exception()  # whoever left does not ask for it


def _name(posting: Posting) -> str:
    return posting.reservation.work_item if isinstance(posting, Opening) else posting.work_item
