"""What one request is charged to: a reservation around the work, closed however that ends."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from serve.policy import TenantPolicy
from serve.store.ledger import Budget, Release, Reservation, Settlement
from serve.store.ledger_records import period_of, utc_day
from serve.tenancy.ledger import UsageLedger

EXPIRY_MARGIN_S = 60.0
"""After the deadline of a request: its answer may be under way, its settlement not yet written."""
MONTH_MARGIN = timedelta(hours=1)
"""Longer than any try-on and its reservation live."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quote:
    """What is promised to one work item before it runs."""

    expert: str
    version: str
    gpu_s: float
    images: int
    timeout_s: float


def budget_of(policy: TenantPolicy) -> Budget:
    """The month's budget in the ledger's units."""
    gpu_s = policy.monthly_gpu_seconds
    return Budget(
        gpu_ms=None if gpu_s is None else round(gpu_s * 1e3), images=policy.monthly_images
    )


def known_day(now: datetime) -> date | None:
    """The day a reservation of now is written under, as far as its month goes; none near the end
    of one: it may be written after midnight, or stand already, since before, by another router."""
    around = {period_of(utc_day(now + side * MONTH_MARGIN)) for side in (-1, 1)}
    return utc_day(now) if len(around) == 1 else None


class Charge:
    """One open reservation: settled once, or released when its block ends."""

    def __init__(
        self,
        ledger: UsageLedger,
        reservation: Reservation,
        day: date | None,
        written: "asyncio.Future[bool]",
    ):
        self._ledger = ledger
        self._reservation = reservation
        self._day = day
        self._written = written
        self._is_closed = False
        self._began_s = time.monotonic()

    def check(self) -> None:
        """Before something expensive is begun: has it been refused meanwhile?

        Raises:
            QuotaExhausted, StoreUnavailable: it has.
        """
        if self._written.done():
            self._written.result()

    async def settle(
        self, *, gpu_ms: int, images: int, upstream_microusd: int | None = None
    ) -> None:
        """Charge what it took. Waits until the reservation is on disk: only then may be answered.

        Raises:
            QuotaExhausted, StoreUnavailable: it never will be; nothing may be answered.
        """
        self._ledger.note_lead(time.monotonic() - self._began_s)
        if not self._written.done():
            self._ledger.hurry()
        # Nobody else waits for it: a caller who leaves cancels it, and it is written all the same.
        await self._written
        self._is_closed = True
        self._ledger.close(
            Settlement(
                tenant_id=self._reservation.tenant_id,
                work_item=self._reservation.work_item,
                gpu_ms=gpu_ms,
                images=images,
                upstream_microusd=upstream_microusd,
                day=self._day,
            )
        )

    def end(self) -> None:
        """Give back what was not settled; also where its writing is still under way."""
        if self._is_closed or self._is_refused():
            return
        self._is_closed = True
        self._ledger.close(
            Release(
                tenant_id=self._reservation.tenant_id,
                work_item=self._reservation.work_item,
                day=self._day,
            )
        )

    def _is_refused(self) -> bool:
        written = self._written
        return written.done() and not written.cancelled() and written.exception() is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """Who pays for one work item, and what of."""

    ledger: UsageLedger
    tenant_id: str
    key_id: str | None
    work_item: str
    budget: Budget

    @asynccontextmanager
    async def charge(self, quote: Quote) -> AsyncIterator[Charge]:
        """Reserve what is quoted; what the block does not settle is released, however it ends.

        Raises:
            QuotaExhausted: the month's budget has no room for it.
            StoreUnavailable: nothing can be written down.
        """
        now = self.ledger.now()
        reservation = Reservation(
            tenant_id=self.tenant_id,
            work_item=self.work_item,
            key_id=self.key_id,
            expert=quote.expert,
            version=quote.version,
            gpu_ms=max(1, round(quote.gpu_s * 1e3)),
            images=quote.images,
            expires_at=now + timedelta(seconds=quote.timeout_s + EXPIRY_MARGIN_S),
        )
        is_ample = self.ledger.is_ample(reservation, self.budget)
        written = self.ledger.reserve(reservation, self.budget, is_awaited=not is_ample)
        charge = Charge(self.ledger, reservation, known_day(now), written)
        try:
            if not is_ample:
                await written
            yield charge
        finally:
            charge.end()
