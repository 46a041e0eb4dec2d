"""Whose turn it is to write to a SQLite file, over all tasks and processes."""

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from serve.store.failures import map_connect_errors

# A turn takes milliseconds; looking costs microseconds.
POLL_S = 0.001


class Turnstile:
    """One writer at a time, and nobody twice in a row while another process waits.

    SQLite's own waiting sleeps up to 100 ms between two looks: a process whose next writer is
    ready when its last one ends keeps everybody else out, for seconds. Here who waits for the turn
    holds the gate before it, and who has had the turn must pass the gate again.

    Two files beside the database carry the locks; the kernel opens those of a process that dies.
    """

    def __init__(self, file: Path, wait_s: float):
        self._paths = (file.with_name(f"{file.name}-gate"), file.with_name(f"{file.name}-turn"))
        self._wait_s = wait_s
        # The tasks of one process, in order of arrival.
        self._line = asyncio.Lock()
        self._locks: tuple[int, int] | None = None

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """
        Raises:
            StoreUnavailable: it did not come within wait_s.
        """
        with map_connect_errors():
            async with asyncio.timeout(self._wait_s):
                await self._line.acquire()
                try:
                    turn = await self._pass()
                except BaseException:
                    self._line.release()
                    raise
        try:
            yield
        finally:
            fcntl.flock(turn, fcntl.LOCK_UN)
            self._line.release()

    async def _pass(self) -> int:
        gate, turn = self._open()
        await _lock(gate)
        try:
            await _lock(turn)
        finally:
            fcntl.flock(gate, fcntl.LOCK_UN)
        return turn

    def _open(self) -> tuple[int, int]:
        if self._locks is None:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            gate, turn = (os.open(path, flags, 0o600) for path in self._paths)
            self._locks = gate, turn
        return self._locks

    def close(self) -> None:
        if self._locks is not None:
            for lock in self._locks:
                os.close(lock)
            self._locks = None


async def _lock(file: int) -> None:
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            await asyncio.sleep(POLL_S)
