"""A backend that does what the test tells it, one command at a time."""

import queue
import threading
from collections.abc import Sequence

import numpy as np

from deployments.backends.base import Memory, OnStep
from serve.messages import ExpertReply, ExpertRequest, Landmarks

WAIT_S = 5.0
"""Longer than anything here takes: a test that hangs fails instead."""


def make_request(request_id: str = "req_1", **changes: object) -> ExpertRequest:
    fields: dict[str, object] = {
        "request_id": request_id,
        "version": "top@noop",
        "crop_hwc": np.arange(48, dtype=np.uint8).reshape(4, 4, 3),
        "region_hw": np.full((4, 4), 255, np.uint8),
        "silhouette_hw": None,
        "landmarks": Landmarks(),
        "product_hwc": np.zeros((2, 2, 4), np.uint8),
        "product_landmarks": Landmarks(),
        "seed": 1,
    }
    return ExpertRequest(**{**fields, **changes})  # type: ignore[arg-type]


def answer(request: ExpertRequest) -> ExpertReply:
    images = np.repeat(request.crop_hwc[None], request.num_images, axis=0)
    return ExpertReply(images_nhwc=images, alpha_nhw=None, version=request.version)


class ScriptedBackend:
    """Announces every pass and then waits to be told: step, finish, or fail with this."""

    kind = "noop"
    is_preview = False

    def __init__(self, memory: Memory | None = None) -> None:
        self._memory = memory or Memory()
        self._passes: queue.Queue[list[str]] = queue.Queue()
        self._commands: queue.Queue[str | Exception] = queue.Queue()
        self.is_unloaded = threading.Event()

    def load(self) -> None: ...

    def unload(self) -> None:
        self.is_unloaded.set()

    def memory(self) -> Memory:
        return self._memory

    def generate(self, batch: Sequence[ExpertRequest], on_step: OnStep) -> list[ExpertReply]:
        self._passes.put([request.request_id for request in batch])
        num_done = 0
        while (command := self._commands.get(timeout=WAIT_S)) != "finish":
            if isinstance(command, Exception):
                raise command
            num_done += 1
            on_step(num_done, batch[0].num_steps)
        return [answer(request) for request in batch]

    def next_pass(self) -> list[str]:
        """Request ids of the next pass, once it has started."""
        return self._passes.get(timeout=WAIT_S)

    @property
    def has_started_more(self) -> bool:
        return not self._passes.empty()

    def tell(self, *commands: str | Exception) -> None:
        for command in commands:
            self._commands.put(command)
