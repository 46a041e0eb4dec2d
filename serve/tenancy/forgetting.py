"""Says twice what is to be forgotten: a request that had the picture in hand when it was erased may
have it remembered again."""

import asyncio
import contextvars
import logging
from collections import deque
from collections.abc import Collection

from serve.tenancy.erasure import Forget

TOGETHER_S = 5.0
"""What was erased within so long is said again in one call."""

logger = logging.getLogger("ray.serve")


class TwiceTold:
    """A `Forget`. Of one process, used from its one event loop.

    What is still to be said again when the process ends is not: in replicas that outlive it such a
    picture leaves when others need its room.
    """

    def __init__(self, tell: Forget, after_s: float):
        """
        Args:
            after_s: the longest that a request takes which has begun.
        """
        self._tell = tell
        self._after_s = after_s
        self._waiting: deque[tuple[float, frozenset[str]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, content_hashes: Collection[str]) -> None:
        loop = asyncio.get_running_loop()
        self._waiting.append((loop.time() + self._after_s, frozenset(content_hashes)))
        if self._task is None:
            # A context of its own: nothing of this request belongs to what comes after it.
            self._task = loop.create_task(self._tell_again(), context=contextvars.Context())
        await self._tell(content_hashes)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _tell_again(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                await asyncio.sleep(self._waiting[0][0] + TOGETHER_S - loop.time())
                gone: set[str] = set()
                while self._waiting and self._waiting[0][0] <= loop.time():
                    gone |= self._waiting.popleft()[1]
                try:
                    await self._tell(gone)
                except Exception:
                    logger.exception("%d pictures were not erased again", len(gone))
        finally:
            self._task = None
