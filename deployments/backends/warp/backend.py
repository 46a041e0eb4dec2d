"""The embedded default: fits the product picture to the person by classical computer vision.

Instant and without weights; a preview, never a picture to publish.
"""

import time
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from deployments.backends.base import Memory, OnStep
from deployments.backends.warp.background import replace_background
from deployments.backends.warp.eyewear import wear_eyewear
from deployments.backends.warp.face import swap_face
from deployments.backends.warp.garment import dress_garment
from deployments.backends.warp.shoes import wear_shoes
from serve.messages import Expert, ExpertReply, ExpertRequest, UInt8Array

Paint = Callable[[ExpertRequest, np.random.Generator], tuple[UInt8Array, UInt8Array]]
"""Paints one picture: (image (H, W, 3), alpha (H, W), 0 where the crop is unchanged)."""

PAINTERS: dict[Expert, Paint] = {
    "eye": wear_eyewear,
    "shoes": wear_shoes,
    "face": swap_face,
    "top": lambda request, rng: dress_garment(request, "top", rng),
    "bottom": lambda request, rng: dress_garment(request, "bottom", rng),
    "dress": lambda request, rng: dress_garment(request, "dress", rng),
    "bg": replace_background,
}


class WarpBackend:
    """One expert's warp; deterministic for a seed."""

    kind = "warp"
    is_preview = True

    def __init__(self, version: str):
        self._version = version
        expert, _, _ = version.partition("@")
        self._paint = next(paint for name, paint in PAINTERS.items() if name == expert)

    def load(self) -> None:
        # One request at a time per replica, many replicas per machine: OpenCV's own threads would
        # only fight each other.
        cv2.setNumThreads(1)

    def generate(self, batch: Sequence[ExpertRequest], on_step: OnStep) -> list[ExpertReply]:
        return [self._generate_one(request, len(batch), on_step) for request in batch]

    def _generate_one(
        self, request: ExpertRequest, batch_size: int, on_step: OnStep
    ) -> ExpertReply:
        started_s = time.perf_counter()
        images, alphas = [], []
        for index in range(request.num_images):
            cv2.setRNGSeed(request.seed & 0x7FFFFFFF)
            image, alpha = self._paint(request, np.random.default_rng(request.seed + index))
            images.append(image)
            alphas.append(alpha)
            on_step(index + 1, request.num_images)
        return ExpertReply(
            images_nhwc=np.stack(images),
            alpha_nhw=np.stack(alphas),
            version=self._version,
            batch_size=batch_size,
            generate_ms=(time.perf_counter() - started_s) * 1e3,
            notes=("preview: fitted by image warping, without a model",),
        )

    def unload(self) -> None:
        """Holds nothing."""

    def memory(self) -> Memory:
        return Memory()
