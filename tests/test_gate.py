"""Places and permits on an event loop, however callers end."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.admission.cost import CostModel, Line
from serve.admission.gate import Gate
from serve.admission.lane import Lane, LaneLimits
from serve.admission.ticket import Priority, Share
from serve.errors import CapacityError, DeadlineExceeded, Overloaded
from serve.messages import ExpertReply, ExpertRequest, Landmarks
from tests.virtual_time import run_virtually

NOTHING = np.zeros((1, 1), np.uint8)
ONE_SECOND = Line(0.0, 1.0)
"""A GPU-second per step, at one megapixel and one image."""
UNIX_S = 1_700_000_000.0


def request(seconds: int = 1, timeout_s: float | None = None, version: str = "eye@1") -> Any:
    return ExpertRequest(
        request_id="req",
        version=version,
        crop_hwc=np.zeros((1000, 1000, 3), np.uint8),
        region_hw=NOTHING,
        silhouette_hw=None,
        landmarks=Landmarks(),
        product_hwc=NOTHING[:, :, None],
        product_landmarks=Landmarks(),
        seed=0,
        num_steps=seconds,
        deadline_unix_s=None if timeout_s is None else UNIX_S + timeout_s,
    )


def build(permits: int = 1, max_waiting: int = 100) -> tuple[Gate, Lane]:
    lane = Lane(LaneLimits(permits, max_waiting))
    # The request's clock stands still: time left is what the request says when it comes.
    return Gate({"eye@1": lane, "eye@2": lane}, CostModel(ONE_SECOND), lambda: UNIX_S), lane


async def work(
    gate: Gate,
    name: str,
    seconds: int = 1,
    timeout_s: float | None = None,
    done: list[str] | None = None,
    priority: Priority = "interactive",
) -> None:
    async with gate.admit(request(seconds, timeout_s), Share(name, priority=priority)):
        await asyncio.sleep(seconds)
        if done is not None:
            done.append(name)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def virtually(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        run_virtually(test())

    run.__name__ = test.__name__
    return run


@virtually
async def test_free_permits_are_given_without_a_turn_of_the_loop() -> None:
    gate, lane = build(permits=2)
    admission = gate.admit(request(), Share("a"))
    with pytest.raises(StopIteration):
        admission.__aenter__().send(None)
    assert lane.num_in_flight == 1


@virtually
async def test_tenants_take_turns_however_many_one_of_them_sends() -> None:
    gate, _ = build()
    done: list[str] = []
    async with asyncio.TaskGroup() as group:
        for _ in range(6):
            group.create_task(work(gate, "hog", done=done))
        for _ in range(3):
            group.create_task(work(gate, "light", done=done))
    assert done[:7].count("light") == 3


@virtually
async def test_a_permit_comes_back_when_the_expert_fails() -> None:
    gate, lane = build()
    with pytest.raises(ZeroDivisionError):
        async with gate.admit(request(), Share("a")):
            raise ZeroDivisionError
    assert lane.num_in_flight == 0


@virtually
async def test_a_caller_who_leaves_while_waiting_leaves_at_once() -> None:
    gate, lane = build()
    async with gate.admit(request(), Share("a")):
        waiter = asyncio.create_task(work(gate, "b"))
        await settle()
        assert (lane.num_waiting, gate.backlog()) == (1, {"eye@1": 1.0, "eye@2": 0.0})
        waiter.cancel()
        await settle()
        assert (lane.num_waiting, gate.backlog()) == (0, {"eye@1": 0.0, "eye@2": 0.0})
        assert gate.running() == {"eye@1": 1.0, "eye@2": 0.0}


@virtually
async def test_a_caller_who_leaves_as_its_turn_comes_gives_the_permit_to_the_next() -> None:
    gate, lane = build()
    done: list[str] = []
    async with gate.admit(request(), Share("a")):
        leaver = asyncio.create_task(work(gate, "leaver"))
        await settle()
        stayer = asyncio.create_task(work(gate, "stayer", done=done))
        await settle()
    assert lane.num_in_flight == 1  # the leaver's, who has not run yet
    leaver.cancel()
    await stayer
    assert (done, lane.num_in_flight, lane.num_waiting) == (["stayer"], 0, 0)


@virtually
async def test_what_would_be_late_is_refused_at_the_door_with_the_time_to_retry() -> None:
    gate, lane = build()
    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(work(gate, "a"))
        await settle()
        with pytest.raises(Overloaded) as refused:
            await work(gate, "a", timeout_s=3.0)
        # Five seconds of work before its own one, and it has three: one second of work fits into
        # them with caution, and is what is left after four.
        assert refused.value.retry_after_s == pytest.approx(4.0)
        assert lane.num_waiting == 4


@virtually
async def test_a_full_queue_refuses_with_the_time_to_retry() -> None:
    gate, _ = build(max_waiting=0)
    async with gate.admit(request(), Share("a")):
        with pytest.raises(Overloaded) as refused:
            await work(gate, "b")
    assert refused.value.retry_after_s == 1.0


@virtually
async def test_a_deadline_that_cannot_be_met_any_more_ends_the_wait_at_that_moment() -> None:
    gate, lane = build()
    loop = asyncio.get_running_loop()
    begun_s = loop.time()
    async with gate.admit(request(1), Share("a")):  # and takes forever
        with pytest.raises(DeadlineExceeded) as exceeded:
            await work(gate, "b", seconds=2, timeout_s=10.0)
        assert loop.time() - begun_s == pytest.approx(8.0)
        assert (exceeded.value.retry_after_s or 0) >= 1
        assert lane.num_waiting == 0


@virtually
async def test_a_request_whose_deadline_passed_on_the_way_is_not_started() -> None:
    gate, lane = build()
    with pytest.raises(DeadlineExceeded):
        await work(gate, "a", timeout_s=-0.1)
    assert lane.num_in_flight == 0


@virtually
async def test_costs_are_learned_from_this_requests_share_of_its_pass() -> None:
    gate, _ = build()
    reply = ExpertReply(NOTHING[None, :, :, None], None, "eye@1", batch_size=4, generate_ms=800.0)
    async with gate.admit(request(1), Share("a")) as permit:
        assert permit.cost_s == 1.0
        permit.learn(reply)
    async with gate.admit(request(1), Share("a")) as permit:
        assert permit.cost_s == pytest.approx(0.2)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(0, 20))
def test_permits_never_leak_when_callers_leave_at_random(
    seed: int, permits: int, max_waiting: int
) -> None:
    async def main() -> None:
        dice = random.Random(seed)
        gate, lane = build(permits, max_waiting)
        num_inside = 0

        async def caller(number: int) -> None:
            nonlocal num_inside
            timeout_s = dice.choice([None, 2.0, 20.0])
            priority: Priority = dice.choice(["interactive", "batch"])
            asked = request(dice.randint(1, 4), timeout_s, f"eye@{number % 2 + 1}")
            try:
                async with gate.admit(asked, Share(str(number % 3), 1.0, priority)):
                    num_inside += 1
                    assert num_inside <= permits
                    try:
                        await asyncio.sleep(dice.random() * 4)
                        if dice.random() < 0.2:
                            raise OverflowError
                    finally:
                        num_inside -= 1
            except (CapacityError, OverflowError):
                pass

        tasks = []
        for number in range(40):
            tasks.append(asyncio.create_task(caller(number)))
            if dice.random() < 0.5:
                await asyncio.sleep(dice.random())
            if dice.random() < 0.5:
                dice.choice(tasks).cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(end) for end in ends} <= {type(None), asyncio.CancelledError}
        assert (lane.num_in_flight, lane.num_waiting, num_inside) == (0, 0, 0)
        assert set(gate.backlog().values()) | set(gate.running().values()) == {0.0}
        assert not gate._waiters
        async with asyncio.timeout(1), asyncio.TaskGroup() as group:
            for _ in range(permits):
                group.create_task(caller(0)).cancel()

    run_virtually(main())
