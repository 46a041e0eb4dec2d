"""Compatible requests share a pass without waiting for each other, and each keeps its own fate."""

import random
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from deployments.backends.base import OnStep
from deployments.batcher import Batcher, Member
from serve.errors import (
    Cancelled,
    DeadlineExceeded,
    GenerationFailed,
    OutOfDeviceMemory,
    Overloaded,
    SubjectNotFound,
)
from serve.messages import ExpertReply, ExpertRequest
from tests.scripted import WAIT_S, ScriptedBackend, answer, make_request


class FakeUnixTime:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.fixture
def backend() -> ScriptedBackend:
    return ScriptedBackend()


@pytest.fixture
def clock() -> FakeUnixTime:
    return FakeUnixTime()


@pytest.fixture
def batcher(
    thread: ThreadPoolExecutor, backend: ScriptedBackend, clock: FakeUnixTime
) -> Iterator[Batcher]:
    batcher = Batcher(thread.submit, backend.generate, clock)
    yield batcher
    batcher.close()
    backend.tell("step", "finish")


def submit(batcher: Batcher, request_id: str, max_rows: int = 4, **changes: object) -> Member:
    return batcher.submit(make_request(request_id, **changes), max_rows)


def reply_of(member: Member) -> ExpertReply:
    return member.answer.result(WAIT_S)


def error_of(member: Member) -> BaseException | None:
    return member.answer.exception(WAIT_S)


def settle(thread: ThreadPoolExecutor) -> None:
    """Return when everything submitted so far has had its turn: the thread is alive."""
    thread.submit(lambda: None).result(WAIT_S)


def test_lone_request_starts_at_once(batcher: Batcher, backend: ScriptedBackend) -> None:
    member = submit(batcher, "a", max_rows=16)
    assert backend.next_pass() == ["a"]
    backend.tell("finish")
    assert reply_of(member).batch_size == 1


def test_what_waits_when_the_device_comes_free_runs_together(
    batcher: Batcher, backend: ScriptedBackend
) -> None:
    submit(batcher, "a")
    assert backend.next_pass() == ["a"]
    for request_id in ("b", "c", "d"):
        submit(batcher, request_id)
    backend.tell("finish", "finish")
    assert backend.next_pass() == ["b", "c", "d"]


def test_oldest_goes_first_and_only_its_own_kind_joins_it(
    batcher: Batcher, backend: ScriptedBackend
) -> None:
    submit(batcher, "a")
    backend.next_pass()
    submit(batcher, "slow", num_steps=40)
    submit(batcher, "b")
    submit(batcher, "slow too", num_steps=40)
    submit(batcher, "c")
    backend.tell("finish", "finish", "finish")
    assert backend.next_pass() == ["slow", "slow too"]
    assert backend.next_pass() == ["b", "c"]


@pytest.mark.parametrize(
    "difference",
    [
        {"version": "top@other"},
        {"crop_hwc": np.zeros((4, 8, 3), np.uint8)},
        {"product_hwc": np.zeros((2, 4, 4), np.uint8)},
        {"num_steps": 2},
        {"guidance": 3.5},
    ],
    ids=lambda difference: next(iter(difference)),
)
def test_requests_that_differ_in_this_do_not_share_a_pass(
    batcher: Batcher, backend: ScriptedBackend, difference: dict[str, object]
) -> None:
    submit(batcher, "a")
    backend.next_pass()
    submit(batcher, "b")
    submit(batcher, "c", **difference)
    submit(batcher, "d", seed=7)
    backend.tell("finish", "finish", "finish")
    assert backend.next_pass() == ["b", "d"]
    assert backend.next_pass() == ["c"]


def test_limit_counts_pictures_and_smaller_requests_fill_it(
    batcher: Batcher, backend: ScriptedBackend
) -> None:
    submit(batcher, "a")
    backend.next_pass()
    submit(batcher, "two", num_images=2)
    submit(batcher, "three", num_images=3)
    submit(batcher, "one")
    submit(batcher, "another")
    submit(batcher, "too many")
    backend.tell("finish", "finish", "finish")
    assert backend.next_pass() == ["two", "one", "another"]
    assert backend.next_pass() == ["three", "too many"]


def test_request_above_the_limit_runs_alone(batcher: Batcher, backend: ScriptedBackend) -> None:
    submit(batcher, "a")
    backend.next_pass()
    submit(batcher, "four", max_rows=1, num_images=4)
    submit(batcher, "b", max_rows=1)
    submit(batcher, "c", max_rows=1)
    backend.tell(*["finish"] * 4)
    assert [backend.next_pass() for _ in range(3)] == [["four"], ["b"], ["c"]]


def test_reply_says_who_shared_the_pass(batcher: Batcher, backend: ScriptedBackend) -> None:
    alone = submit(batcher, "a")
    backend.next_pass()
    members = [submit(batcher, request_id) for request_id in ("b", "c")]
    backend.tell("finish", "finish")
    assert (reply_of(alone).batch_id, reply_of(alone).batch_size) == ("", 1)
    b, c = map(reply_of, members)
    assert b.batch_id == c.batch_id != ""
    assert [(r.batch_index, r.batch_size) for r in (b, c)] == [(0, 2), (1, 2)]


def start_pair(batcher: Batcher, backend: ScriptedBackend, **changes: object) -> list[Member]:
    """Two members of one running pass."""
    submit(batcher, "before")
    backend.next_pass()
    members = [submit(batcher, "b", **changes), submit(batcher, "c")]
    backend.tell("finish")
    assert backend.next_pass() == ["b", "c"]
    return members


def test_member_that_leaves_is_answered_at_once_and_the_others_get_their_pictures(
    batcher: Batcher, backend: ScriptedBackend
) -> None:
    b, c = start_pair(batcher, backend)
    b.leave()
    assert isinstance(error_of(b), Cancelled)
    assert c.is_waiting
    backend.tell("step", "finish")
    assert (reply_of(c).batch_index, reply_of(c).batch_size) == (1, 2)


def test_pass_stops_at_its_next_step_when_nobody_is_left(
    batcher: Batcher, backend: ScriptedBackend
) -> None:
    b, c = start_pair(batcher, backend)
    b.leave()
    c.leave()
    submit(batcher, "d")
    backend.tell("step")  # and no "finish": the pass must end by itself
    assert backend.next_pass() == ["d"]


def test_deadline_of_one_member_does_not_stop_the_other(
    batcher: Batcher, backend: ScriptedBackend, clock: FakeUnixTime
) -> None:
    b, c = start_pair(batcher, backend, deadline_unix_s=clock.now_s + 1, num_steps=1)
    backend.tell("step")
    clock.now_s += 2
    backend.tell("step", "finish")
    with pytest.raises(DeadlineExceeded, match="stopped at step"):
        reply_of(b)
    assert reply_of(c).batch_size == 2


def test_member_that_left_or_is_late_before_its_turn_never_runs(
    batcher: Batcher, backend: ScriptedBackend, clock: FakeUnixTime, thread: ThreadPoolExecutor
) -> None:
    submit(batcher, "a")
    backend.next_pass()
    left = submit(batcher, "left")
    late = submit(batcher, "late", deadline_unix_s=clock.now_s + 1)
    left.leave()
    clock.now_s += 2
    backend.tell("finish")
    assert isinstance(error_of(late), DeadlineExceeded)
    settle(thread)
    assert not backend.has_started_more


def test_after_200_random_departures_nothing_is_left(
    batcher: Batcher, backend: ScriptedBackend, thread: ThreadPoolExecutor
) -> None:
    rng = random.Random(3)
    present: list[Member] = []
    for index in range(200):
        present.append(submit(batcher, f"r{index}", num_images=rng.randint(1, 4)))
        if rng.random() < 0.7:
            backend.tell("step")
        if rng.random() < 0.5:
            present.pop(rng.randrange(len(present))).leave()
    for member in present:
        member.leave()
    backend.tell(*["step"] * 200)
    settle(thread)
    assert (batcher.num_queued, batcher.num_members) == (0, 0)


class LimitedDevice:
    """Has room for so many pictures, and fails on any request with seed 13."""

    def __init__(self, max_rows: int = 16):
        self._max_rows = max_rows
        self._held: list[weakref.ref[np.ndarray]] = []
        self.passes: list[list[str]] = []

    def generate(self, batch: Sequence[ExpertRequest], on_step: OnStep) -> list[ExpertReply]:
        self.passes.append([request.request_id for request in batch])
        assert all(held() is None for held in self._held), "a failed pass still holds its latents"
        latents = np.zeros(len(batch))
        if len(batch) > 1:  # alone, the caller is given the error and with it the traceback
            self._held.append(weakref.ref(latents))
        if len(batch) > self._max_rows:
            raise OutOfDeviceMemory(f"no room for {len(batch)}")
        if any(request.seed == 13 for request in batch):
            raise SubjectNotFound("no face")
        return [answer(request) for request in batch]


def run_together(
    thread: ThreadPoolExecutor, device: LimitedDevice, batcher: Batcher, seeds: dict[str, int]
) -> list[Member]:
    """One batch of all of them: they are submitted while the thread does something else."""
    gate = threading.Event()
    thread.submit(gate.wait, WAIT_S)
    members = [submit(batcher, name, max_rows=16, seed=seed) for name, seed in seeds.items()]
    device.passes.clear()
    gate.set()
    settle(thread)
    return members


def test_batch_without_room_is_halved_until_it_fits(thread: ThreadPoolExecutor) -> None:
    device = LimitedDevice(max_rows=2)
    batcher = Batcher(thread.submit, device.generate)
    members = run_together(thread, device, batcher, dict.fromkeys("abcde", 1))
    assert device.passes == [list("abcde"), ["a", "b"], ["c", "d", "e"], ["c"], ["d", "e"]]
    assert [reply_of(member).batch_size for member in members] == [2, 2, 1, 2, 2]


def test_size_without_room_is_not_tried_again(thread: ThreadPoolExecutor) -> None:
    device = LimitedDevice(max_rows=2)
    batcher = Batcher(thread.submit, device.generate)
    run_together(thread, device, batcher, dict.fromkeys("abcd", 1))
    run_together(thread, device, batcher, dict.fromkeys("efgh", 1))
    assert device.passes == [["e", "f"], ["g", "h"]]


def test_single_request_without_room_fails_alone(thread: ThreadPoolExecutor) -> None:
    device = LimitedDevice(max_rows=0)
    batcher = Batcher(thread.submit, device.generate)
    members = run_together(thread, device, batcher, dict.fromkeys("ab", 1))
    assert all(isinstance(error_of(member), OutOfDeviceMemory) for member in members)
    assert device.passes == [["a", "b"], ["a"], ["b"]]


def test_one_bad_input_does_not_fail_its_neighbours(thread: ThreadPoolExecutor) -> None:
    device = LimitedDevice()
    batcher = Batcher(thread.submit, device.generate)
    a, bad, c = run_together(thread, device, batcher, {"a": 1, "bad": 13, "c": 1})
    assert isinstance(error_of(bad), SubjectNotFound)
    assert (reply_of(a).batch_size, reply_of(c).batch_size) == (1, 1)
    assert device.passes == [["a", "bad", "c"], ["a"], ["bad"], ["c"]]


def test_progress_is_known_while_a_request_waits_and_runs_and_not_after(
    batcher: Batcher, backend: ScriptedBackend, thread: ThreadPoolExecutor
) -> None:
    assert batcher.progress("a") is None
    submit(batcher, "a", num_steps=4)
    waiting = submit(batcher, "b", num_steps=8)
    backend.next_pass()
    assert batcher.progress("b") == (0, 8)
    backend.tell("step", "step", "finish")
    backend.next_pass()
    backend.tell("step")
    assert batcher.progress("a") is None
    backend.tell("finish")
    reply_of(waiting)
    settle(thread)
    assert batcher.progress("b") is None


def test_progress_counts_the_steps_of_the_pass(
    batcher: Batcher, backend: ScriptedBackend, thread: ThreadPoolExecutor
) -> None:
    member = submit(batcher, "a", num_steps=4)
    backend.next_pass()
    backend.tell("step", "step", GenerationFailed("device lost"))
    assert isinstance(error_of(member), GenerationFailed)
    assert member.progress == (2, 4)


def test_close_answers_everybody_and_stops_the_running_pass(
    batcher: Batcher, backend: ScriptedBackend, thread: ThreadPoolExecutor
) -> None:
    running = submit(batcher, "a")
    backend.next_pass()
    queued = submit(batcher, "b")
    batcher.close()
    assert isinstance(error_of(running), Overloaded)
    assert isinstance(error_of(queued), Overloaded)
    with pytest.raises(Overloaded, match="shutting down"):
        submit(batcher, "c")
    backend.tell("step")
    settle(thread)
    assert not backend.has_started_more


def test_thread_that_is_interrupted_leaves_no_caller_waiting(thread: ThreadPoolExecutor) -> None:
    def interrupted(batch: Sequence[ExpertRequest], on_step: OnStep) -> list[ExpertReply]:
        raise KeyboardInterrupt

    member = submit(Batcher(thread.submit, interrupted), "a")
    with pytest.raises(GenerationFailed, match="without an answer"):
        reply_of(member)
