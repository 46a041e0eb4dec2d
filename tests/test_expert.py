"""ExpertReplica without Ray: one request at a time, stopped within a step, honest about health."""

import asyncio
import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest

from deployments.backends.base import Memory, OnStep
from deployments.bundle import Bundle, Licence
from deployments.expert import MAX_FAILURES_IN_A_ROW, ExpertReplica
from deployments.recipes import NoopConfig
from serve.config import ReplicaPlan
from serve.errors import DeadlineExceeded, GenerationFailed, SubjectNotFound
from serve.messages import ExpertReply, ExpertRequest, Landmarks

BUNDLE = Bundle(
    expert="top",
    name="noop",
    title="t",
    status="benchmark",
    licence=Licence(name="none", commercial_use=True),
    backend=NoopConfig(),
)
PLAN = ReplicaPlan(name="Expert-top@noop")


def request(**changes: object) -> ExpertRequest:
    crop = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    fields: dict[str, object] = {
        "request_id": "req_1",
        "version": "top@noop",
        "crop_hwc": crop,
        "region_hw": np.full((4, 4), 255, np.uint8),
        "silhouette_hw": None,
        "landmarks": Landmarks(),
        "product_hwc": np.zeros((2, 2, 4), np.uint8),
        "product_landmarks": Landmarks(),
        "seed": 1,
    }
    return ExpertRequest(**{**fields, **changes})  # type: ignore[arg-type]


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
    reply = asyncio.run(ExpertReplica((BUNDLE,), PLAN).generate(request(num_images=2)))
    assert reply.images_nhwc.shape == (2, 4, 4, 3)
    assert (reply.images_nhwc[1] == request().crop_hwc).all()
    assert reply.version == "top@noop"


def test_cancel_stops_the_backend_and_frees_the_replica() -> None:
    replica, backend = stepping_replica()

    async def cancel_then_reuse() -> None:
        task = asyncio.create_task(replica.generate(request()))
        await asyncio.to_thread(backend.is_running.wait, 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        backend.error = SubjectNotFound("next request reached the backend")
        with pytest.raises(SubjectNotFound):
            await asyncio.wait_for(replica.generate(request()), 5)

    asyncio.run(cancel_then_reuse())


def test_deadline_stops_the_backend_at_a_step() -> None:
    replica, backend = stepping_replica()
    with pytest.raises(DeadlineExceeded, match="stopped at step"):
        asyncio.run(replica.generate(request(deadline_unix_s=time.time() + 0.05)))
    assert backend.num_steps_done >= 1


def test_request_past_its_deadline_never_reaches_the_backend() -> None:
    replica, backend = stepping_replica()
    with pytest.raises(DeadlineExceeded, match="step 0"):
        asyncio.run(replica.generate(request(deadline_unix_s=1.0)))
    assert backend.num_steps_done == 0


def test_backend_failure_becomes_generation_failed_with_its_words() -> None:
    replica, backend = stepping_replica()
    backend.error = RuntimeError("device lost")
    with pytest.raises(GenerationFailed, match="top@noop: RuntimeError: device lost"):
        asyncio.run(replica.generate(request()))


def test_replica_is_unhealthy_only_after_failures_in_a_row() -> None:
    replica, backend = stepping_replica()

    async def fail(error: Exception, times: int) -> None:
        backend.error = error
        for _ in range(times):
            with pytest.raises(type(error)):
                await replica.generate(request())

    asyncio.run(fail(SubjectNotFound("no face"), MAX_FAILURES_IN_A_ROW))
    asyncio.run(replica.check_health())
    asyncio.run(fail(GenerationFailed("x"), MAX_FAILURES_IN_A_ROW))
    with pytest.raises(RuntimeError, match="failed in a row"):
        asyncio.run(replica.check_health())
