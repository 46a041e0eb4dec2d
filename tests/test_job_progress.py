"""Steps are written no faster than a person can watch; the last one and the preview always are."""

import asyncio
import base64
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import pytest

from serve.errors import Conflict, StoreUnavailable
from serve.jobs.progress import MIN_INTERVAL_S, ProgressWriter, encode_preview
from serve.jobs.routine import Chore, Routine, end_all
from tests.pictures import photo
from tests.virtual_time import run_virtually


@dataclass
class Log:
    """Events with the time they were written at."""

    error: Exception | None = None
    events: list[tuple[float, str, Any]] = field(default_factory=list)

    async def __call__(self, kind: str, data: dict[str, Any]) -> None:
        if self.error is not None:
            raise self.error
        told = data.get("i", "picture")
        self.events.append((asyncio.get_running_loop().time(), kind, told))


def test_sixteen_quick_steps_become_a_few_events_and_the_last_one() -> None:
    log = Log()

    async def play() -> None:
        started_s = asyncio.get_running_loop().time()
        writer = ProgressWriter(log)
        running = asyncio.create_task(writer.run())
        for step in range(1, 17):
            writer.on_step(step, 16)
            await asyncio.sleep(0.1)
        writer.close()
        await running
        times = [at - started_s for at, _, _ in log.events]
        gaps = [late - early for early, late in zip(times[:-1], times[1:-1], strict=False)]
        assert all(gap >= MIN_INTERVAL_S - 1e-6 for gap in gaps)

    run_virtually(play())
    told = [step for _, _, step in log.events]
    assert told[0] == 1
    assert told[-1] == 16
    assert len(told) <= 5


def test_preview_does_not_wait_and_comes_after_its_last_step() -> None:
    log = Log()

    async def play() -> None:
        writer = ProgressWriter(log)
        running = asyncio.create_task(writer.run())
        writer.on_step(1, 2)
        await asyncio.sleep(0)
        writer.on_step(2, 2)
        writer.on_painted(photo()[None])
        writer.close()
        await running

    asyncio.run(play())
    assert [(kind, told) for _, kind, told in log.events][-2:] == [
        ("step", 2),
        ("preview", "picture"),
    ]


def test_database_that_is_away_costs_steps_and_not_the_job() -> None:
    log = Log(error=StoreUnavailable("away"))

    async def play() -> None:
        writer = ProgressWriter(log)
        writer.on_step(1, 1)
        writer.close()
        await writer.run()

    run_virtually(play())
    assert log.events == []


def test_lost_job_ends_the_writing() -> None:
    async def play() -> None:
        writer = ProgressWriter(Log(error=Conflict("somebody else's")))
        writer.on_step(1, 1)
        await writer.run()

    with pytest.raises(Conflict):
        run_virtually(play())


def test_writer_whose_driver_swallows_a_cancellation_ends_all_the_same() -> None:
    """Or its attempt would never end, and no runner that waits for it."""

    async def play() -> None:
        begun = asyncio.Event()

        async def write(kind: str, data: dict[str, Any]) -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise StoreUnavailable("closed in the middle of a statement") from None

        writer = ProgressWriter(write)
        writing = asyncio.create_task(writer.run())
        writer.on_step(1, 2)
        await begun.wait()
        await end_all([writing])
        assert writing.cancelled()

    run_virtually(play())


def test_preview_is_a_small_jpeg_of_the_whole_picture() -> None:
    header, _, data = encode_preview(photo(900, 600)).partition(",")
    assert header == "data:image/jpeg;base64"
    small = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    assert small.shape[:2] == (171, 256)


def test_chore_that_fails_is_done_again_and_one_that_hangs_is_found() -> None:
    num_turns = 0

    async def fail() -> None:
        nonlocal num_turns
        num_turns += 1
        raise ZeroDivisionError

    async def hang() -> None:
        await asyncio.Event().wait()

    async def play() -> None:
        loop = asyncio.get_running_loop()
        chores = [
            Chore(name="fails", every_s=1, work=fail),
            Chore(name="hangs", every_s=1, work=hang),
            Chore(name="loops", every_s=1, work=hang, is_endless=True),
        ]
        routine = Routine(chores, now_s=loop.time)
        routine.start()
        await asyncio.sleep(10.5)
        assert routine.find_stuck(5) == ["hangs"]
        await routine.stop()
        assert routine.find_stuck(5) == ["fails", "hangs", "loops"]

    run_virtually(play())
    assert num_turns == 11


def test_chore_whose_driver_swallows_a_cancellation_ends_all_the_same() -> None:
    num_turns = 0

    async def swallow() -> None:
        nonlocal num_turns
        num_turns += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise StoreUnavailable("the connection was lost") from None

    async def play() -> None:
        routine = Routine([Chore(name="swallows", every_s=300, work=swallow)])
        routine.start()
        await asyncio.sleep(1)
        await routine.stop()

    run_virtually(play())
    assert num_turns == 1
