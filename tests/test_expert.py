"""ExpertReplica without Ray: one pass at a time, stopped within a step, honest about health."""

import asyncio
import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deployments.backends.base import Memory, OnStep
from deployments.backends.noop import NoopBackend
from deployments.bundle import Bundle, Licence
from deployments.expert import MAX_FAILURES_IN_A_ROW, ExpertReplica
from deployments.golden import record_golden
from deployments.golden_set import golden_folder, write_golden
from deployments.measured import save_footprint
from deployments.recipes import NoopConfig
from serve.config import ReplicaPlan
from serve.errors import (
    BundleInvalid,
    Cancelled,
    DeadlineExceeded,
    GenerationFailed,
    OutOfDeviceMemory,
    Overloaded,
    Sm4llError,
    SubjectNotFound,
)
from serve.messages import ExpertReply, ExpertRequest
from tests.scripted import WAIT_S, ScriptedBackend, answer, make_request
from tests.test_guard import GPU, footprint
from tests.test_guard import bundle as diffusion_bundle
from tests.test_guard import request as diffusion_request

BUNDLE = Bundle(
    expert="top",
    name="noop",
    title="t",
    status="benchmark",
    licence=Licence(name="none", commercial_use=True),
    backend=NoopConfig(),
)
PLAN = ReplicaPlan(name="Expert-top@noop")


class SteppingBackend:
    """Takes steps until told to stop, and remembers how many."""

    kind = "noop"
    is_preview = False

    def __init__(self) -> None:
        self.num_steps_done = 0
        self.is_running = threading.Event()
        self.error: Exception | None = None

    def load(self) -> None: ...

    def unload(self) -> None: ...

    def memory(self) -> Memory:
        return Memory()

    def generate(self, batch: Sequence[ExpertRequest], on_step: OnStep) -> list[ExpertReply]:
        if self.error is not None:
            raise self.error
        self.is_running.set()
        while True:
            self.num_steps_done += 1
            on_step(self.num_steps_done, 1_000_000)


def stepping_replica() -> tuple[ExpertReplica, SteppingBackend]:
    backend = SteppingBackend()
    return ExpertReplica((BUNDLE,), PLAN, lambda bundles, plan: backend), backend


def test_noop_gives_the_crop_back_as_often_as_asked() -> None:
    reply = asyncio.run(ExpertReplica((BUNDLE,), PLAN).generate(make_request(num_images=2)))
    assert reply.images_nhwc.shape == (2, 4, 4, 3)
    assert (reply.images_nhwc[1] == make_request().crop_hwc).all()
    assert reply.version == "top@noop"


def test_noop_takes_its_time_in_equal_steps_and_stops_at_any_of_them() -> None:
    slept: list[float] = []
    noop = NoopBackend("top@noop", NoopConfig(seconds=2.0, steps=4), slept.append)
    steps: list[tuple[int, int]] = []
    noop.generate([make_request()], lambda *step: steps.append(step))
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert slept == [0.5] * 4

    def stop(step: int, num_steps: int) -> None:
        if step == 2:
            raise Cancelled("stopped")

    slept.clear()
    spread = NoopBackend("top@noop", NoopConfig(seconds=1.0, spread=0.2), slept.append)
    for _ in range(10):
        spread.generate([make_request()], lambda *step: None)
    assert len(set(slept)) > 1
    assert all(0.8 <= seconds <= 1.2 for seconds in slept)
    slept.clear()
    with pytest.raises(Cancelled):
        noop.generate([make_request()], stop)
    assert slept == [0.5] * 2


def test_a_noop_bundle_says_how_long_it_takes() -> None:
    bundle = BUNDLE.model_copy(update={"backend": NoopConfig(seconds=0.02, steps=2)})
    reply = asyncio.run(ExpertReplica((bundle,), PLAN).generate(make_request()))
    assert reply.generate_ms >= 20


def test_cancel_stops_the_backend_and_frees_the_replica() -> None:
    replica, backend = stepping_replica()

    async def cancel_then_reuse() -> None:
        task = asyncio.create_task(replica.generate(make_request()))
        await asyncio.to_thread(backend.is_running.wait, 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        backend.error = SubjectNotFound("next request reached the backend")
        with pytest.raises(SubjectNotFound):
            await asyncio.wait_for(replica.generate(make_request()), 5)

    asyncio.run(cancel_then_reuse())


def test_deadline_stops_the_backend_at_a_step() -> None:
    replica, backend = stepping_replica()
    with pytest.raises(DeadlineExceeded, match="stopped at step"):
        asyncio.run(replica.generate(make_request(deadline_unix_s=time.time() + 0.05)))
    assert backend.num_steps_done >= 1


def test_request_past_its_deadline_never_reaches_the_backend() -> None:
    replica, backend = stepping_replica()
    with pytest.raises(DeadlineExceeded, match="step 0"):
        asyncio.run(replica.generate(make_request(deadline_unix_s=1.0)))
    assert backend.num_steps_done == 0


def test_backend_failure_becomes_generation_failed_with_its_words() -> None:
    replica, backend = stepping_replica()
    backend.error = RuntimeError("device lost")
    with pytest.raises(GenerationFailed, match="top@noop: RuntimeError: device lost"):
        asyncio.run(replica.generate(make_request()))


def test_replica_is_unhealthy_only_after_failures_in_a_row() -> None:
    replica, backend = stepping_replica()

    async def fail(error: Exception, times: int) -> None:
        backend.error = error
        for _ in range(times):
            with pytest.raises(type(error)):
                await replica.generate(make_request())

    asyncio.run(fail(SubjectNotFound("no face"), MAX_FAILURES_IN_A_ROW))
    asyncio.run(replica.check_health())
    asyncio.run(fail(GenerationFailed("x"), MAX_FAILURES_IN_A_ROW))
    with pytest.raises(RuntimeError, match="failed in a row"):
        asyncio.run(replica.check_health())


def scripted_replica(
    *bundles: Bundle, memory: Memory | None = None
) -> tuple[ExpertReplica, ScriptedBackend]:
    backend = ScriptedBackend(memory or Memory())
    return ExpertReplica(bundles or (BUNDLE,), PLAN, lambda bundles, plan: backend), backend


def measured_replica(
    home: Path, cap_gib: float | None = None
) -> tuple[ExpertReplica, ScriptedBackend]:
    bundle = diffusion_bundle(home)
    save_footprint(bundle, footprint())
    return scripted_replica(bundle, memory=Memory(device=GPU, cap_gib=cap_gib))


async def start(
    replica: ExpertReplica, backend: ScriptedBackend, *requests: ExpertRequest
) -> list[asyncio.Task[ExpertReply]]:
    """The first one running, the others waiting behind it."""
    first = asyncio.create_task(replica.generate(requests[0]))
    await asyncio.to_thread(backend.next_pass)
    others = [asyncio.create_task(replica.generate(request)) for request in requests[1:]]
    # Tasks run in their order: when this one has, those were handed over.
    await asyncio.create_task(replica.ping())
    return [first, *others]


def three_at_once(replica: ExpertReplica, backend: ScriptedBackend) -> list[ExpertReply]:
    async def run() -> list[ExpertReply]:
        requests = [replace(diffusion_request(), request_id=name) for name in "abc"]
        tasks = await start(replica, backend, *requests)
        backend.tell(*["finish"] * 3)
        return await asyncio.gather(*tasks)

    return asyncio.run(run())


def test_measured_version_paints_what_waits_together(tmp_path: Path) -> None:
    replies = three_at_once(*measured_replica(tmp_path))
    assert [reply.batch_size for reply in replies] == [1, 2, 2]
    assert replies[1].batch_id == replies[2].batch_id != ""


def test_version_that_was_not_measured_paints_one_request_at_a_time(tmp_path: Path) -> None:
    replica = scripted_replica(diffusion_bundle(tmp_path), memory=Memory(device=GPU))
    assert [reply.batch_size for reply in three_at_once(*replica)] == [1, 1, 1]


def test_request_that_cannot_fit_never_reaches_the_backend(tmp_path: Path) -> None:
    replica, backend = measured_replica(tmp_path, cap_gib=3.5)
    for _ in range(MAX_FAILURES_IN_A_ROW):
        with pytest.raises(OutOfDeviceMemory, match=r"needs 4\.00 GiB, .* may hold 3\.50 GiB"):
            asyncio.run(replica.generate(diffusion_request(num_images=2)))
    assert not backend.has_started_more
    asyncio.run(replica.check_health())


def test_deadline_is_answered_between_steps_and_behind_another_pass() -> None:
    replica, backend = scripted_replica()

    async def wait_out() -> None:
        deadline_unix_s = time.time() + 0.05
        (running,) = await start(replica, backend, make_request("a"))
        for name in "bc":
            with pytest.raises(DeadlineExceeded, match="stopped at step 0 of 1"):
                await replica.generate(make_request(name, deadline_unix_s=deadline_unix_s))
        backend.tell("finish")
        assert (await running).batch_size == 1

    asyncio.run(wait_out())


def test_progress_of_a_request_is_told_while_it_is_here() -> None:
    replica, backend = scripted_replica()

    async def watch() -> None:
        (task,) = await start(replica, backend, make_request("a", num_steps=4))
        assert await replica.progress("a") == (0, 4)
        assert await replica.progress("b") is None
        backend.tell("finish")
        await task
        assert await replica.progress("a") is None

    asyncio.run(watch())


async def attempt(
    replica: ExpertReplica, backend: ScriptedBackend, request: ExpertRequest, *commands: object
) -> None:
    (task,) = await start(replica, backend, request)
    backend.tell(*commands)  # type: ignore[arg-type]
    with contextlib.suppress(Sm4llError):
        await task


def test_request_larger_than_any_before_it_does_not_make_the_replica_unhealthy() -> None:
    replica, backend = scripted_replica()

    async def run() -> None:
        await attempt(replica, backend, make_request("a"), "finish")
        for _ in range(MAX_FAILURES_IN_A_ROW + 1):
            oversized = make_request("b", num_images=4)
            await attempt(replica, backend, oversized, OutOfDeviceMemory("no room"))
        await replica.check_health()

    asyncio.run(run())


def test_no_room_for_what_fitted_before_makes_the_replica_unhealthy() -> None:
    replica, backend = scripted_replica()

    async def run() -> None:
        await attempt(replica, backend, make_request("a"), "finish")
        for _ in range(MAX_FAILURES_IN_A_ROW):
            await attempt(replica, backend, make_request("b"), OutOfDeviceMemory("no room"))
        with pytest.raises(RuntimeError, match="failed in a row"):
            await replica.check_health()

    asyncio.run(run())


class DriftingBackend(ScriptedBackend):
    """Paints at once, and after the first pictures differently."""

    num_painted = 0

    def generate(self, batch: Sequence[ExpertRequest], on_step: OnStep) -> list[ExpertReply]:
        self.num_painted += 1
        offset = 37 if self.num_painted > 2 else 0
        return [
            replace(reply, images_nhwc=reply.images_nhwc + np.uint8(offset))
            for reply in map(answer, batch)
        ]


def test_drift_from_a_golden_sample_keeps_the_replica_from_starting(tmp_path: Path) -> None:
    bundle, backend = BUNDLE.located(tmp_path), DriftingBackend()
    golden, _ = record_golden(bundle, backend, {"shirt": make_request()})
    write_golden(golden_folder(bundle), golden)
    with pytest.raises(BundleInvalid, match="top@noop .* golden sample shirt: max diff 37 > 4"):
        ExpertReplica((bundle,), PLAN, lambda bundles, plan: backend)


class SingleThreadedBackend(DriftingBackend):
    """Notes on which threads it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[str] = set()

    def load(self) -> None:
        self.threads.add(threading.current_thread().name)

    def generate(self, batch: Sequence[ExpertRequest], on_step: OnStep) -> list[ExpertReply]:
        self.threads.add(threading.current_thread().name)
        return super().generate(batch, on_step)

    def unload(self) -> None:
        self.threads.add(threading.current_thread().name)
        super().unload()


def test_backend_is_loaded_used_and_unloaded_on_one_thread() -> None:
    backend = SingleThreadedBackend()
    replica = ExpertReplica((BUNDLE,), PLAN, lambda bundles, plan: backend)
    asyncio.run(replica.generate(make_request()))
    del replica
    assert backend.is_unloaded.wait(WAIT_S)
    assert backend.threads == {PLAN.name}


def test_replica_that_goes_away_answers_who_is_left_and_unloads() -> None:
    replica, backend = scripted_replica()

    async def run() -> None:
        running, queued = await start(replica, backend, make_request("a"), make_request("b"))
        replica.__del__()
        for task in (running, queued):
            with pytest.raises(Overloaded, match="shutting down"):
                await task
        assert not backend.is_unloaded.is_set()
        backend.tell("step")
        assert await asyncio.to_thread(backend.is_unloaded.wait, WAIT_S)

    asyncio.run(run())


def test_backend_that_answers_too_little_is_a_failure() -> None:
    class Silent(ScriptedBackend):
        def generate(self, batch: Sequence[ExpertRequest], on_step: OnStep) -> list[ExpertReply]:
            return []

    replica = ExpertReplica((BUNDLE,), PLAN, lambda bundles, plan: Silent())
    with pytest.raises(GenerationFailed, match="answered 0 of 1"):
        asyncio.run(replica.generate(make_request()))


LEAVES_AT_ONCE = """
from deployments.expert import ExpertReplica
from tests.scripted import ScriptedBackend
from tests.test_expert import BUNDLE, PLAN

class SlowToUnload(ScriptedBackend):
    def unload(self):
        for _ in range(200):
            sorted(range(10_000), key=lambda number: -number)
        print("unloaded")

replica = ExpertReplica((BUNDLE,), PLAN, lambda bundles, plan: SlowToUnload())
del replica
"""


def test_process_does_not_exit_in_the_middle_of_unloading() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", LEAVES_AT_ONCE],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (answer.returncode, answer.stdout) == (0, "unloaded\n"), answer.stderr
