"""The embedded default: fits the product picture to the person by classical computer vision.

Instant and without weights; a preview, never a picture to publish.
"""

import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, NamedTuple

import cv2
import numpy as np

from deployments.backends.base import Memory, OnStep
from deployments.backends.warp.background import replace_background
from deployments.backends.warp.cutout import cut_out
from deployments.backends.warp.eyewear import read_glasses, wear_eyewear
from deployments.backends.warp.face import swap_face
from deployments.backends.warp.garment import dress_garment
from deployments.backends.warp.shoes import read_footwear, wear_shoes
from deployments.cache import ContentCache, Made, Sized, hold_alone
from deployments.recipes import WarpConfig
from serve.messages import Expert, ExpertReply, ExpertRequest, UInt8Array
from serve.observing.meter import Meter

Read = Callable[[UInt8Array], Any]
"""What is found out about a product, whoever is to wear it."""

Paint = Callable[..., tuple[UInt8Array, UInt8Array]]
"""Paints one picture: (image (H, W, 3), alpha (H, W), 0 where the crop is unchanged)."""


class Painter(NamedTuple):
    """How one expert's products are read, and painted onto the person."""

    paint: Paint
    """Given the request, a random generator and, where there is one, a `Read` to call once."""
    read: Read | None = None


def _dress(
    expert: Expert, request: ExpertRequest, rng: np.random.Generator, read: Read
) -> tuple[UInt8Array, UInt8Array]:
    return dress_garment(request, expert, rng, read)


PAINTERS: dict[Expert, Painter] = {
    "eye": Painter(wear_eyewear, read_glasses),
    "shoes": Painter(wear_shoes, read_footwear),
    "face": Painter(swap_face),
    "top": Painter(partial(_dress, "top"), cut_out),
    "bottom": Painter(partial(_dress, "bottom"), cut_out),
    "dress": Painter(partial(_dress, "dress"), cut_out),
    "bg": Painter(replace_background),
}


class _OneRead:
    """One request's product, read once for all its pictures and kept for the next request."""

    def __init__(self, cache: ContentCache[Sized], read: Read, request: ExpertRequest):
        self._cache = cache
        self._read = read
        self._request = request
        self._made: Made[Sized] | None = None

    def __call__(self, product_hwc: UInt8Array) -> Any:
        if self._made is None:
            request = self._request

            def make() -> Sized:
                made: Sized = hold_alone(self._read(product_hwc))
                return made

            self._made = self._cache.make(request.product_hash, request.version, make)
        return self._made.value

    @property
    def was_remembered(self) -> bool | None:
        return None if self._made is None else self._made.cached


class WarpBackend:
    """One expert's warp; deterministic for a seed."""

    kind = "warp"
    is_preview = True

    def __init__(self, version: str, config: WarpConfig | None = None):
        self._version = version
        expert, _, _ = version.partition("@")
        self._painter = next(painter for name, painter in PAINTERS.items() if name == expert)
        cache_bytes = (config or WarpConfig()).product_cache_mib * 2**20
        self._cutouts: ContentCache[Sized] = ContentCache("cutouts", cache_bytes)

    def load(self) -> None:
        # One request at a time per replica, many replicas per machine: OpenCV's own threads would
        # only fight each other.
        cv2.setNumThreads(1)

    def use_meter(self, meter: Meter) -> None:
        self._cutouts.use_meter(meter)

    def forget(self, content_hashes: Collection[str]) -> int:
        """Drop the products of these contents; says how many."""
        return self._cutouts.forget(content_hashes)

    def generate(self, batch: Sequence[ExpertRequest], on_step: OnStep) -> list[ExpertReply]:
        return [self._generate_one(request, len(batch), on_step) for request in batch]

    def _generate_one(
        self, request: ExpertRequest, batch_size: int, on_step: OnStep
    ) -> ExpertReply:
        started_s = time.perf_counter()
        paint, read = self._painter
        one_read = None if read is None else _OneRead(self._cutouts, read, request)
        images, alphas = [], []
        for index in range(request.num_images):
            # Whatever draws by chance sets its own seed: a product that was read before leaves
            # OpenCV's generator where it was.
            cv2.setRNGSeed(request.seed & 0x7FFFFFFF)
            rng = np.random.default_rng(request.seed + index)
            image, alpha = paint(request, rng, *(() if one_read is None else (one_read,)))
            images.append(image)
            alphas.append(alpha)
            on_step(index + 1, request.num_images)
        return ExpertReply(
            images_nhwc=np.stack(images),
            alpha_nhw=np.stack(alphas),
            version=self._version,
            batch_size=batch_size,
            generate_ms=(time.perf_counter() - started_s) * 1e3,
            product_cached=None if one_read is None else one_read.was_remembered,
            notes=("preview: fitted by image warping, without a model",),
        )

    def unload(self) -> None:
        """Holds nothing that would not go with it."""

    def memory(self) -> Memory:
        return Memory()
