"""Writers of several processes take turns, and none of them waits for another's whole queue."""

import asyncio
import multiprocessing
import time
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest

from serve.errors import StoreUnavailable
from serve.store.turnstile import Turnstile

pytestmark = pytest.mark.anyio


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "sm4ll.db"


async def test_tasks_of_one_process_go_in_order(file: Path) -> None:
    turnstile, order = Turnstile(file, 5.0), []

    async def take(name: int) -> None:
        async with turnstile.turn():
            order.append(name)
            await asyncio.sleep(0)
            order.append(name)

    await asyncio.gather(*(take(name) for name in range(8)))
    assert order == [name for name in range(8) for _ in range(2)]


async def test_two_of_one_process_exclude_each_other(file: Path) -> None:
    """As two engines do; the kernel's locks belong to an open file and not to the process."""
    one, other = Turnstile(file, 5.0), Turnstile(file, 0.05)
    async with one.turn():
        with pytest.raises(StoreUnavailable):
            async with other.turn():
                raise AssertionError("two had the turn at once")
    async with other.turn():
        pass


async def test_who_gives_up_waiting_holds_up_nobody(file: Path) -> None:
    one, other, third = (Turnstile(file, 5.0) for _ in range(3))
    async with one.turn():
        waiting = asyncio.create_task(_take(other))
        for _ in range(3):  # it looks, finds the turn taken, and waits
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
    async with asyncio.timeout(1), third.turn():
        pass
    await _take(other)


async def _take(turnstile: Turnstile) -> None:
    async with turnstile.turn():
        pass


class Busy:
    """A process whose next writer is ready whenever its last one ends, and counts its turns."""

    def __init__(self, file: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._num_turns = context.Value("i", 0)
        self._ended = context.Event()
        arguments = (file, self._num_turns, self._ended)
        self.process = context.Process(target=keep_taking, args=arguments)

    @property
    def num_turns(self) -> int:
        return int(self._num_turns.value)

    async def start(self) -> None:
        self.process.start()
        async with asyncio.timeout(60):
            while not self.num_turns:
                await asyncio.sleep(0)

    def end(self) -> None:
        self._ended.set()
        self.process.join(60)


def keep_taking(file: Path, num_turns: Any, ended: Event) -> None:
    async def take(turnstile: Turnstile) -> None:
        while not ended.is_set():
            async with turnstile.turn():
                num_turns.value += 1
                time.sleep(0.002)

    async def crowd() -> None:
        turnstile = Turnstile(file, 30.0)
        await asyncio.gather(*(take(turnstile) for _ in range(8)))

    asyncio.run(crowd())


async def test_busy_process_has_few_turns_while_another_waits_for_one(file: Path) -> None:
    busy, turnstile = Busy(file), Turnstile(file, 30.0)
    await busy.start()
    try:
        waited = []
        for _ in range(200):
            before = busy.num_turns
            async with turnstile.turn():
                waited.append(busy.num_turns - before)
    finally:
        busy.end()
    assert max(waited) <= 3, waited
    assert busy.process.exitcode == 0


async def test_turn_of_a_process_that_dies_is_free(file: Path) -> None:
    busy = Busy(file)
    await busy.start()
    busy.process.kill()
    busy.process.join(60)
    async with asyncio.timeout(5):
        await _take(Turnstile(file, 5.0))
