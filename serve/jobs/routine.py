"""What a runner does over and over, and whether it still does."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from serve.errors import StoreUnavailable

CANCEL_AGAIN_S = 0.5


async def end_all(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel them until they have ended.

    A driver that is cancelled in the middle of a statement may raise something of its own instead:
    whoever takes that for a database that is away goes on, for ever.
    """
    running = set(tasks)
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=CANCEL_AGAIN_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chore:
    """Done at once and then again, so long after it was done."""

    name: str
    every_s: float
    work: Callable[[], Awaitable[object]]
    pause: Callable[[float], Awaitable[object]] = asyncio.sleep
    is_endless: bool = False
    """It loops by itself and is stuck only when its task is gone."""


class Routine:
    """Every chore on its own: one that fails or takes long holds up no other."""

    def __init__(
        self,
        chores: Sequence[Chore],
        logger: logging.Logger | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ):
        self._chores = tuple(chores)
        self._logger = logger or logging.getLogger(__name__)
        self._now_s = now_s
        self._turned_s: dict[str, float] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._is_stopped = False

    def start(self) -> None:
        for chore in self._chores:
            self._turned_s[chore.name] = self._now_s()
            self._tasks.append(asyncio.create_task(self._repeat(chore), name=chore.name))

    async def stop(self) -> None:
        self._is_stopped = True
        await end_all(self._tasks)

    def find_stuck(self, limit_s: float) -> list[str]:
        """Chores that neither ended nor failed for so long, or whose loop is gone."""
        now_s = self._now_s()
        gone = {task.get_name() for task in self._tasks if task.done()}
        endless = {chore.name for chore in self._chores if chore.is_endless}
        return [
            name
            for name, turned_s in self._turned_s.items()
            if name in gone or (now_s - turned_s > limit_s and name not in endless)
        ]

    async def _repeat(self, chore: Chore) -> None:
        while not self._is_stopped:
            try:
                await chore.work()
            except StoreUnavailable as exc:
                # A database that is away is not cured by another runner.
                self._logger.warning("%s: %s", chore.name, exc.detail)
            except Exception:
                self._logger.exception("%s failed and is tried again", chore.name)
            self._turned_s[chore.name] = self._now_s()
            await chore.pause(chore.every_s)
