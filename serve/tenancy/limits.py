"""How often a tenant may ask, and how much it may have under way at once.

Shared by all routers through Redis where one is named. Without it, and while it is down, each
router counts for itself: the service stays up, and several routers let through several times
as much.
"""

import asyncio
import logging
import math
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from serve.errors import RateLimited, StoreUnavailable

WINDOW_S = 60.0
RETRY_SHARED_S = 5.0
"""After Redis did not answer, nobody waits for it during so long."""
LOG_EVERY_S = 60.0
MIN_RETRY_AFTER_S = 0.1
DURATION_GUESS_S = 2.0
"""Of a try-on, until one was measured."""
FORGETTING = 0.9

logger = logging.getLogger("ray.serve")


class SharedCounts(Protocol):
    """What all routers count together. Every method may raise StoreUnavailable."""

    async def hit(self, tenant_id: str, per_minute: int, /) -> float | None: ...
    async def enter(
        self, tenant_id: str, work_item: str, limit: int, expires_s: float, /
    ) -> bool: ...
    async def leave(self, tenant_id: str, work_item: str, /) -> None: ...
    async def close(self) -> None: ...


class Window:
    """When the last requests of one tenant came; at most as many as it may send."""

    def __init__(self) -> None:
        self._hits_s: deque[float] = deque()

    def hit(self, limit: int, now_s: float, *, is_forced: bool = False) -> float | None:
        """Count one request; the seconds until there is room for it, where there is none now."""
        hits = self._hits_s
        while hits and hits[0] <= now_s - WINDOW_S:
            hits.popleft()
        if len(hits) >= limit:
            if not is_forced:
                # There is room when so many have gone that one fewer than the limit is left.
                return hits[len(hits) - limit] + WINDOW_S - now_s
            hits.popleft()
        hits.append(now_s)
        return None


class Running:
    """The try-ons of one tenant in this router, oldest first, and how long they take."""

    def __init__(self) -> None:
        self.starts_s: dict[str, float] = {}
        self._mean_s = DURATION_GUESS_S
        self._is_measured = False

    def end(self, work_item: str, now_s: float, *, is_measured: bool) -> None:
        """Forget it, and learn from it if it did anything."""
        took_s = now_s - self.starts_s.pop(work_item)
        if not is_measured:
            return
        weight = FORGETTING if self._is_measured else 0.0
        self._mean_s = weight * self._mean_s + (1 - weight) * took_s
        self._is_measured = True

    def next_end_s(self, now_s: float) -> float:
        """In how many seconds the oldest should be done."""
        oldest_s = next(iter(self.starts_s.values()), now_s)
        return max(MIN_RETRY_AFTER_S, self._mean_s - (now_s - oldest_s))


class TenantLimits:
    """The limits of all tenants in one router, used from its one event loop."""

    def __init__(
        self,
        shared: SharedCounts | None = None,
        clock_s: Callable[[], float] = time.monotonic,
    ):
        self._shared = shared
        self._clock_s = clock_s
        self._windows: dict[str, Window] = {}
        self._running: dict[str, Running] = {}
        self._shared_from_s = -math.inf
        self._log_from_s = -math.inf
        self._leaving: set[asyncio.Task[None]] = set()

    async def hit(self, tenant_id: str, per_minute: int | None) -> None:
        """Count one request.

        Raises:
            RateLimited: more than `per_minute` in the last 60 s; says when there is room again.
        """
        if per_minute is None:
            return
        shared = self._reachable()
        window = self._windows.setdefault(tenant_id, Window())
        retry_after_s: float | None
        if shared is None:
            retry_after_s = window.hit(per_minute, self._clock_s())
        else:
            try:
                retry_after_s = await shared.hit(tenant_id, per_minute)
            except StoreUnavailable as exc:
                self._leave_shared(exc)
                retry_after_s = window.hit(per_minute, self._clock_s())
            else:
                if retry_after_s is None:  # known here too, for when Redis goes down
                    window.hit(per_minute, self._clock_s(), is_forced=True)
        if retry_after_s is not None:
            raise RateLimited(
                f"more than {per_minute} requests in a minute",
                remedy="spread the requests, or send many try-ons as one batch of jobs",
                retry_after_s=max(MIN_RETRY_AFTER_S, retry_after_s),
            )

    @asynccontextmanager
    async def hold(
        self, tenant_id: str, limit: int | None, expires_s: float
    ) -> AsyncIterator[None]:
        """One of the try-ons that may be under way at once, for the length of the block.

        Args:
            expires_s: after which it is over in any case, should this router die.

        Raises:
            RateLimited: there are `limit` of them already; says when one should be done.
        """
        if limit is None:
            yield
            return
        running = self._running.setdefault(tenant_id, Running())
        work_item = secrets.token_hex(8)
        if len(running.starts_s) >= limit:
            raise self._busy(limit, running)
        # Taken before anything is awaited: whoever comes meanwhile sees it.
        running.starts_s[work_item] = self._clock_s()
        shared, has_begun = self._reachable(), False
        try:
            if shared is not None:
                try:
                    is_held = await shared.enter(tenant_id, work_item, limit, expires_s)
                except StoreUnavailable as exc:
                    self._leave_shared(exc)
                else:
                    if not is_held:
                        raise self._busy(limit, running)
            has_begun = True
            yield
        finally:
            running.end(work_item, self._clock_s(), is_measured=has_begun)
            # Also where this was cancelled while Redis was asked: it may have counted it.
            if shared is not None and self._reachable() is not None:
                self._leave(tenant_id, work_item)

    async def close(self) -> None:
        if self._leaving:
            await asyncio.wait(self._leaving)
        if self._shared is not None:
            await self._shared.close()

    def _busy(self, limit: int, running: Running) -> RateLimited:
        return RateLimited(
            f"{limit} try-ons at once are allowed, and so many are under way",
            remedy="wait for one of them, or send jobs: they wait by themselves",
            retry_after_s=running.next_end_s(self._clock_s()),
        )

    def _reachable(self) -> SharedCounts | None:
        return self._shared if self._clock_s() >= self._shared_from_s else None

    def _leave_shared(self, exc: StoreUnavailable) -> None:
        now_s = self._clock_s()
        self._shared_from_s = now_s + RETRY_SHARED_S
        if now_s >= self._log_from_s:
            self._log_from_s = now_s + LOG_EVERY_S
            logger.error("limits are counted by this router alone: %s", exc.detail)

    def _leave(self, tenant_id: str, work_item: str) -> None:
        """In the background: the answer need not wait for it."""

        async def leave(shared: SharedCounts) -> None:
            try:
                await shared.leave(tenant_id, work_item)
            except StoreUnavailable as exc:
                self._leave_shared(exc)  # it expires

        assert self._shared is not None
        task = asyncio.get_running_loop().create_task(leave(self._shared))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)


def open_limits(redis_url: str | None) -> TenantLimits:
    """Connects to nothing yet; Redis is imported only where it is used."""
    if redis_url is None:
        return TenantLimits()
    from serve.tenancy.redis_counts import RedisCounts

    return TenantLimits(RedisCounts(redis_url))
