"""Spare work never delays other work, and is never taken for load."""

import asyncio
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.batcher import Batcher
from serve.admission.lane import Lane, LaneLimits
from serve.admission.load import report_gate
from serve.admission.ticket import Priority, Share, Ticket
from serve.errors import Cancelled, CapacityError, GenerationFailed, Overloaded
from serve.messages import ExpertReply, ExpertRequest
from tests.scripted import WAIT_S, ScriptedBackend, make_request
from tests.test_gate import NOTHING, build, request, settle, virtually, work
from tests.virtual_time import run_virtually

REPLY = ExpertReply(NOTHING[None, :, :, None], None, "eye@1", generate_ms=500.0)


class Deployment:
    """Answers spare work after so many seconds, and knows who left it."""

    def __init__(self, seconds: float = 1.0):
        self._seconds = seconds
        self.asked: list[ExpertRequest] = []
        self.num_left = 0

    async def __call__(self, request: ExpertRequest) -> ExpertReply:
        self.asked.append(request)
        try:
            await asyncio.sleep(self._seconds)
        except asyncio.CancelledError:
            self.num_left += 1
            raise
        return REPLY


@virtually
async def test_spare_work_is_marked_and_teaches_what_it_cost() -> None:
    gate, lane = build()
    deployment = Deployment()
    assert await gate.spare(request(), deployment) is REPLY
    assert deployment.asked[0].is_spare
    assert gate.quote(request()) == pytest.approx(0.5)
    assert (lane.num_spare, lane.num_in_flight) == (0, 0)


@virtually
async def test_spare_work_never_waits() -> None:
    gate, lane = build(permits=2)
    deployment = Deployment()
    async with gate.admit(request(), Share("a")), gate.admit(request(), Share("a")):
        with pytest.raises(Overloaded, match="spare"):
            await gate.spare(request(), deployment)
    assert (deployment.asked, lane.num_spare) == ([], 0)


@virtually
async def test_spare_work_wakes_no_replica() -> None:
    gate, _ = build()
    gate.let_sleep(["eye@1"])
    with pytest.raises(Overloaded):
        await gate.spare(request(version="eye@2"), Deployment())
    gate.let_sleep([])
    assert await gate.spare(request(version="eye@2"), Deployment()) is REPLY


@virtually
async def test_other_work_starts_at_once_in_the_place_of_the_newest_spare_work() -> None:
    gate, lane = build(permits=2)
    older, newer = Deployment(5.0), Deployment(5.0)
    loop = asyncio.get_running_loop()
    begun_s = loop.time()
    first = asyncio.create_task(gate.spare(request(), older))
    second = asyncio.create_task(gate.spare(request(), newer))
    await settle()
    await work(gate, "a", seconds=2)
    assert loop.time() - begun_s == pytest.approx(2.0)
    with pytest.raises(Cancelled, match="other work"):
        await second
    assert await first is REPLY
    assert (older.num_left, newer.num_left, lane.num_spare) == (0, 1, 0)


@virtually
async def test_versions_on_the_same_replicas_take_each_others_spare_permits() -> None:
    gate, _ = build(permits=1)
    deployment = Deployment()
    spare = asyncio.create_task(gate.spare(request(version="eye@2"), deployment))
    await settle()
    async with gate.admit(request(version="eye@1"), Share("a")):
        with pytest.raises(Cancelled):
            await spare
    assert deployment.num_left == 1


@virtually
async def test_spare_work_that_was_taken_back_teaches_nothing() -> None:
    gate, _ = build()
    spare = asyncio.create_task(gate.spare(request(), Deployment()))
    await settle()
    await work(gate, "a")
    with pytest.raises(Cancelled):
        await spare
    assert gate.quote(request()) == 1.0


@virtually
async def test_fewer_permits_take_spare_ones_back() -> None:
    gate, lane = build(permits=3)
    deployment = Deployment()
    tasks = [asyncio.create_task(gate.spare(request(), deployment)) for _ in range(3)]
    await settle()
    gate.resize({"eye@1": 1})
    await settle()
    assert (lane.num_spare, [task.done() for task in tasks]) == (1, [False, True, True])
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(end) for end in ends] == [ExpertReply, Cancelled, Cancelled]


@virtually
async def test_the_autoscaler_is_told_nothing_of_spare_work() -> None:
    gate, _ = build(permits=2)
    idle = report_gate(gate)
    spare = asyncio.create_task(gate.spare(request(), Deployment()))
    await settle()
    assert report_gate(gate) == idle
    await spare


@virtually
async def test_a_caller_of_spare_work_who_leaves_is_cancelled_and_leaves_nothing() -> None:
    gate, lane = build()
    deployment = Deployment()
    leaver = asyncio.create_task(gate.spare(request(), deployment))
    await settle()
    leaver.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaver
    assert (deployment.num_left, lane.num_spare) == (1, 0)


@virtually
async def test_a_failure_of_spare_work_is_the_callers_to_see() -> None:
    gate, lane = build()

    async def fail(request: ExpertRequest) -> ExpertReply:
        raise GenerationFailed("no")

    with pytest.raises(GenerationFailed):
        await gate.spare(request(), fail)
    assert lane.num_spare == 0


def live_schedule(seed: int, permits: int, is_with_spare: bool) -> list[tuple[int, str, float]]:
    """When each of 40 random requests started, was refused or given up, with its end."""
    told: list[tuple[int, str, float]] = []

    async def main() -> None:
        dice, spare_dice = random.Random(seed), random.Random(seed + 1)
        gate, lane = build(permits, max_waiting=10)
        loop = asyncio.get_running_loop()
        begun_s = loop.time()

        async def caller(number: int, stay_s: float, timeout_s: float | None) -> None:
            priority: Priority = "batch" if number % 3 == 0 else "interactive"
            asked = request(1 + number % 4, timeout_s, f"eye@{number % 2 + 1}")
            try:
                async with gate.admit(asked, Share(str(number % 5), 1.0, priority)):
                    told.append((number, "started", loop.time() - begun_s))
                    assert lane.num_in_flight + lane.num_spare <= permits
                    await asyncio.sleep(stay_s)
            except CapacityError as exc:
                told.append((number, f"{exc.code} {exc.retry_after_s}", loop.time() - begun_s))

        async def answer(asked: ExpertRequest) -> ExpertReply:
            assert not lane.num_waiting
            await asyncio.sleep(spare_dice.random() * 4)
            return ExpertReply(NOTHING[None, :, :, None], None, "eye@1")  # teaches nothing

        async def be_spare() -> None:
            try:
                await gate.spare(request(3), answer)
            except (Overloaded, Cancelled):
                pass

        live, spare = [], []
        for number in range(40):
            live.append(caller(number, dice.random() * 4, dice.choice([None, 3.0, 9.0])))
        tasks = []
        for coroutine in live:
            tasks.append(asyncio.create_task(coroutine))
            for _ in range(spare_dice.randint(0, 3) if is_with_spare else 0):
                spare.append(asyncio.create_task(be_spare()))
            await asyncio.sleep(dice.choice([0.0, 0.3, 2.0]))
            if spare and spare_dice.random() < 0.3:
                spare_dice.choice(spare).cancel()
            if dice.random() < 0.2:
                dice.choice(tasks).cancel()
            if dice.random() < 0.1:
                gate.resize({"eye@1": permits})
        await asyncio.gather(*tasks, *spare, return_exceptions=True)
        assert (lane.num_in_flight, lane.num_waiting, lane.num_spare) == (0, 0, 0)
        assert not gate._spare

    run_virtually(main())
    return told


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_requests_start_when_they_would_have_without_any_spare_work(
    seed: int, permits: int
) -> None:
    told = live_schedule(seed, permits, is_with_spare=True)
    alone = live_schedule(seed, permits, is_with_spare=False)
    assert sorted(told) == sorted(alone)
    assert any(what == "started" for _, what, _ in told)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 3),
    st.lists(st.tuples(st.sampled_from(["offer", "lend", "end"]), st.integers(0, 9)), max_size=60),
)
def test_permits_in_use_are_never_more_than_there_are(
    permits: int, steps: list[tuple[str, int]]
) -> None:
    lane, there = Lane(LaneLimits(permits)), list[Ticket]()
    for now_s, (step, number) in enumerate(steps):
        ticket = Ticket(Share(str(number % 3)), "eye@1", 1.0)
        if step == "offer":
            there.append(ticket)
            lane.offer(ticket, float(now_s))
        elif step == "lend":
            is_free = lane.num_in_flight + lane.num_spare < permits and not lane.num_waiting
            assert lane.lend(ticket) == is_free
            there += [ticket] if is_free else []
        elif there:
            lane.end(there.pop(number % len(there)), float(now_s))
            lane.advance(float(now_s))
        lane.reclaim()
        assert lane.num_in_flight + lane.num_spare <= permits
        assert not (lane.num_waiting and lane.num_spare)


def test_a_replica_stops_spare_work_at_its_next_step_when_other_work_comes() -> None:
    """Also where the gate saw a free permit: another router's, or the second of one device."""
    backend = ScriptedBackend()
    with ThreadPoolExecutor(1) as thread:
        batcher = Batcher(thread.submit, backend.generate)
        running = batcher.submit(make_request("running", is_spare=True), 4)
        assert backend.next_pass() == ["running"]
        waiting = batcher.submit(make_request("waiting", is_spare=True), 4)
        live = batcher.submit(make_request("live"), 4)
        assert isinstance(running.answer.exception(WAIT_S), Cancelled)
        also_live = batcher.submit(make_request("also live"), 4)
        backend.tell("step", "finish", "finish")
        assert backend.next_pass() == ["live", "also live"]  # and no spare one beside them
        assert live.answer.result(WAIT_S).batch_size == 2
        assert also_live.answer.result(WAIT_S).batch_size == 2
        assert backend.next_pass() == ["waiting"]
        assert waiting.answer.result(WAIT_S).batch_size == 1


def test_spare_work_that_comes_to_a_busy_replica_stops_nothing() -> None:
    backend = ScriptedBackend()
    with ThreadPoolExecutor(1) as thread:
        batcher = Batcher(thread.submit, backend.generate)
        live = batcher.submit(make_request("live"), 4)
        assert backend.next_pass() == ["live"]
        spare = batcher.submit(make_request("spare", is_spare=True), 4)
        backend.tell("step", "finish", "finish")
        assert live.answer.result(WAIT_S).batch_size == 1
        assert spare.answer.result(WAIT_S).batch_size == 1
