"""What has a value at any time: how late the event loop is, and what is read every two seconds."""

import asyncio
import contextvars
import logging
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from serve.observing.meter import Meter

TICK_S = 0.1
TICKS_PER_LOOK = 20
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

logger = logging.getLogger("ray.serve")

Look = Callable[[], None]
"""Sets its gauges; on the event loop, so it must be done at once."""


class Sampler:
    """One task of one event loop. What fails to be looked at is logged once, and looked at again.

    Args:
        build: what this process was made from.
    """

    def __init__(
        self,
        meter: Meter,
        build: str,
        *,
        now_s: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ):
        self._meter = meter
        self._build = build
        self._now_s = now_s
        self._sleep = sleep
        self._looks: list[Look] = [self._look_at_process]
        self._failed: set[Look] = set()
        self._task: asyncio.Task[None] | None = None

    def also(self, look: Look) -> None:
        """Have this called every two seconds as well."""
        self._looks.append(look)

    def start(self) -> None:
        if self._task is None:
            # A context of its own: no request that happens to start it is measured by it.
            loop = asyncio.get_running_loop()
            self._task = loop.create_task(self._run(), context=contextvars.Context())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _run(self) -> None:
        while True:
            for look in self._looks:
                self._try(look)
            for _ in range(TICKS_PER_LOOK):
                wanted_s = self._now_s() + TICK_S
                await self._sleep(TICK_S)
                late_s = max(0.0, self._now_s() - wanted_s)
                self._meter.observe("sm4ll_event_loop_lag_seconds", late_s)

    def _try(self, look: Look) -> None:
        try:
            look()
        except Exception:
            if look not in self._failed:
                self._failed.add(look)
                logger.exception("something is not measured")

    def _look_at_process(self) -> None:
        self._meter.set("sm4ll_build_info", 1.0, build=self._build)
        self._meter.set("sm4ll_replica_memory_bytes", read_resident_bytes())


def read_resident_bytes() -> int:
    """Of this process. Source: proc_pid_statm(5): the second number, in pages."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES
