"""Gives every crop back as it came: measures everything around an expert."""

import random
import time
from collections.abc import Callable, Sequence

import numpy as np

from deployments.backends.base import Memory, OnStep
from deployments.recipes import NoopConfig
from serve.messages import ExpertReply, ExpertRequest


class NoopBackend:
    """Changes nothing, in the time it is told to take."""

    kind = "noop"
    is_preview = False

    def __init__(
        self,
        version: str,
        config: NoopConfig | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self._version = version
        self._config = config or NoopConfig()
        self._sleep = sleep
        self._dice = random.Random()

    def load(self) -> None:
        """Nothing to load."""

    def generate(self, batch: Sequence[ExpertRequest], on_step: OnStep) -> list[ExpertReply]:
        started_s = time.perf_counter()
        step_s = self._pass_s() / self._config.steps
        num_steps = self._config.steps
        for step in range(1, num_steps + 1):
            if step_s:
                self._sleep(step_s)
            on_step(step, num_steps)
        generate_ms = (time.perf_counter() - started_s) * 1e3
        return [
            ExpertReply(
                images_nhwc=np.repeat(request.crop_hwc[None], request.num_images, axis=0),
                alpha_nhw=None,
                version=self._version,
                batch_size=len(batch),
                generate_ms=generate_ms,
            )
            for request in batch
        ]

    def _pass_s(self) -> float:
        config = self._config
        return config.seconds * (1 + config.spread * self._dice.uniform(-1, 1))

    def unload(self) -> None:
        """Nothing to unload."""

    def memory(self) -> Memory:
        return Memory()
