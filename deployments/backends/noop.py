"""Gives every crop back as it came: measures everything around an expert."""

from collections.abc import Sequence

import numpy as np

from deployments.backends.base import Memory, OnStep
from serve.messages import ExpertReply, ExpertRequest


class NoopBackend:
    """Changes nothing."""

    kind = "noop"
    is_preview = False

    def __init__(self, version: str):
        self._version = version

    def load(self) -> None:
        """Nothing to load."""

    def generate(self, batch: Sequence[ExpertRequest], on_step: OnStep) -> list[ExpertReply]:
        on_step(1, 1)
        return [
            ExpertReply(
                images_nhwc=np.repeat(request.crop_hwc[None], request.num_images, axis=0),
                alpha_nhw=None,
                version=self._version,
                batch_size=len(batch),
            )
            for request in batch
        ]

    def unload(self) -> None:
        """Nothing to unload."""

    def memory(self) -> Memory:
        return Memory()
