"""Group commit of exposures: nobody waits for it, and little is lost while the database is away."""

import asyncio
import contextvars
import logging
from collections import deque
from collections.abc import Callable
from datetime import datetime, timedelta

from serve.errors import Conflict, Sm4llError, StoreUnavailable
from serve.observing.meter import NO_METER, Meter
from serve.store.columns import utc_now
from serve.store.engine import Database
from serve.store.exposures import NewExposure, write_exposures

LINGER_S = 0.5
"""How long an exposure waits for others: a rollout has to act within seconds of what it sees."""
RETRY_S = 1.0
MAX_WRITTEN = 500
"""In one transaction: about 30 ms."""
MAX_WAITING = 10_000
"""Kept while the database is away, the newest of them: about 20 MB."""

logger = logging.getLogger("ray.serve")


class ExposureWriter:
    """Of one process, used from its one event loop.

    What it writes may be written twice: a row that is there stays.
    """

    def __init__(
        self,
        database: Database,
        kept_s: float,
        now: Callable[[], datetime] = utc_now,
        *,
        linger_s: float = LINGER_S,
        max_waiting: int = MAX_WAITING,
        meter: Meter = NO_METER,
    ):
        self._database = database
        self._kept_s = kept_s
        self._meter = meter
        self._now = now
        self._linger_s = linger_s
        self._waiting: deque[NewExposure] = deque()
        self._max_waiting = max_waiting
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_away = False
        self._num_flushing = 0
        self.num_lost = 0

    def add(self, exposure: NewExposure) -> None:
        """Write it soon."""
        self._waiting.append(exposure)
        self._drop_oldest()
        if self._timer is None and self._task is None:
            self._wake_after(self._linger_s)

    async def flush(self) -> None:
        """Wait until all that waits now is written, or cannot be."""
        num_left = len(self._waiting) + 1
        self._num_flushing += 1
        try:
            while self._task is not None or len(self._waiting) < num_left:
                num_left = len(self._waiting)
                self._wake()
                if self._task is None:
                    return
                await asyncio.shield(self._task)
        finally:
            self._num_flushing -= 1

    async def shut_down(self) -> None:
        """Write what waits; what cannot be written is lost."""
        await self.flush()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting:
            self._lose(len(self._waiting), "the process ends")
            self._waiting.clear()

    def _wake_after(self, seconds: float) -> None:
        # A context of its own: nothing of the request that happened to come first belongs here.
        self._timer = asyncio.get_running_loop().call_later(
            seconds, self._wake, context=contextvars.Context()
        )

    def _wake(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._task is None and self._waiting:
            self._task = asyncio.get_running_loop().create_task(
                self._write_all(), context=contextvars.Context()
            )

    async def _write_all(self) -> None:
        pause_s = self._linger_s
        try:
            while self._waiting:
                count = min(len(self._waiting), MAX_WRITTEN)
                taken = [self._waiting.popleft() for _ in range(count)]
                try:
                    await self._write(taken)
                except StoreUnavailable as exc:
                    self._put_back(taken, exc)
                    pause_s = RETRY_S
                    return
                except Exception:
                    logger.exception("a mistake of ours in writing exposures")
                    self._lose(len(taken), "they cannot be written")
                if not self._num_flushing and len(self._waiting) < MAX_WRITTEN:
                    return  # what came meanwhile waits for company, as the first did
        finally:
            self._task = None
            if self._waiting:
                self._wake_after(pause_s)

    async def _write(self, taken: list[NewExposure]) -> None:
        """All in one transaction; one by one where one of them cannot be written."""
        try:
            await self._insert(taken)
        except Conflict as exc:
            if len(taken) == 1:
                # Its tenant or its experiment is gone, and nobody will ask for it.
                self._lose(1, exc.detail)
                return
            while taken:
                await self._write(taken[:1])
                del taken[0]  # what is left is what a database that goes away puts back
        if self._is_away:
            self._is_away = False
            logger.warning("exposures are written again")

    async def _insert(self, exposures: list[NewExposure]) -> None:
        expires_at = self._now() + timedelta(seconds=self._kept_s)
        await self._database.write(lambda to: write_exposures(to, exposures, expires_at))

    def _put_back(self, taken: list[NewExposure], error: Sm4llError) -> None:
        if not self._is_away:
            self._is_away = True
            logger.warning("exposures wait for the database: %s", error.detail)
        self._waiting.extendleft(reversed(taken))
        self._drop_oldest()

    def _drop_oldest(self) -> None:
        excess = len(self._waiting) - self._max_waiting
        if excess <= 0:
            return
        for _ in range(excess):
            self._waiting.popleft()
        self._lose(excess, "too many wait")

    def _lose(self, count: int, why: str) -> None:
        """Counted each time, told at the first and then at every doubling."""
        self._meter.add("sm4ll_exposures_lost_total", count)
        before, self.num_lost = self.num_lost, self.num_lost + count
        if before.bit_length() != self.num_lost.bit_length():
            logger.error("%d exposures are lost so far: %s", self.num_lost, why)
