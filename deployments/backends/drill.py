"""A version that is bad on purpose, by a known amount: to rehearse finding it and going back.

Wraps any backend; what it does depends on the request alone.
"""

import hashlib
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from deployments.backends.base import Backend, Memory, OnStep, Remembering
from deployments.recipes import Drill
from serve.difference import LabArray, ciede2000, from_lab, to_lab
from serve.errors import GenerationFailed
from serve.messages import ExpertReply, ExpertRequest, UInt8Array
from serve.observing.meter import Meter

_PATIENCE_S = 0.05
"""Between two looks at whether anybody still waits, during a delay."""
_NUM_SAMPLES = 1024
_MOST_LAB = 120.0
_NUM_HALVINGS = 14
_GROUND_LAB = 10.0
_GREY_LAB = 2.0


class DrillBackend:
    """Fails, waits or spoils the product first; then the backend paints it as it does."""

    def __init__(self, backend: Backend, drill: Drill, sleep: Callable[[float], None] = time.sleep):
        self._backend = backend
        self._drill = drill
        self._sleep = sleep
        self.kind = backend.kind
        self.is_preview = backend.is_preview

    def load(self) -> None:
        self._backend.load()

    def generate(self, batch: Sequence[ExpertRequest], on_step: OnStep) -> list[ExpertReply]:
        for request in batch:
            if is_doomed(request.request_id, self._drill.failure_share):
                raise GenerationFailed(f"{request.version} fails on purpose: backend.drill says so")
        self._wait(batch[0], on_step)
        return self._backend.generate([self._spoil(request) for request in batch], on_step)

    def _wait(self, request: ExpertRequest, on_step: OnStep) -> None:
        left_s = self._drill.delay_s
        while left_s > 0:
            self._sleep(min(left_s, _PATIENCE_S))
            left_s -= _PATIENCE_S
            on_step(0, request.num_steps)

    def _spoil(self, request: ExpertRequest) -> ExpertRequest:
        product = request.product_hwc
        if self._drill.colour_shift:
            product = shift_colours(product, self._drill.colour_shift)
        if self._drill.blur_px:
            product = blur(product, self._drill.blur_px)
        return replace(request, product_hwc=product)

    def use_meter(self, meter: Meter) -> None:
        if isinstance(self._backend, Remembering):
            self._backend.use_meter(meter)

    def forget(self, content_hashes: Collection[str]) -> int:
        if isinstance(self._backend, Remembering):
            return self._backend.forget(content_hashes)
        return 0

    def unload(self) -> None:
        self._backend.unload()

    def memory(self) -> Memory:
        return self._backend.memory()


def is_doomed(request_id: str, share: float) -> bool:
    """The same for every attempt at a request, and spread evenly: failures in a row, after which a
    replica is replaced, are as rare as by chance."""
    digest = hashlib.sha256(f"drill:{request_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def blur(product_rgba: UInt8Array, sigma_px: float) -> UInt8Array:
    """Soften the surface, not the outline."""
    alpha = product_rgba[..., 3:].astype(np.float32) / 255
    weighted: Any = cv2.GaussianBlur(
        np.dstack([product_rgba[..., :3] * alpha, alpha]), (0, 0), sigma_px
    )
    colours = weighted[..., :3] / np.maximum(weighted[..., 3:], 1e-3)
    return np.dstack([colours.clip(0, 255).round().astype(np.uint8), product_rgba[..., 3]])


def shift_colours(product_rgba: UInt8Array, amount: float) -> UInt8Array:
    """Turn the hues of a product; a grey one takes on a tint.

    Args:
        amount: mean CIEDE2000 of the product's colours, as far as sRGB has such colours.

    Returns:
        (h, w, 4): lightness and alpha as they were.
    """
    lab = to_lab(np.ascontiguousarray(product_rgba[..., :3]))
    sample = _take_sample(lab, product_rgba[..., 3])
    mean_a, mean_b = sample[:, 1].mean(), sample[:, 2].mean()
    chroma = float(np.hypot(mean_a, mean_b))
    # At right angles to the mean chroma: the hue turns, and nothing fades.
    way = (-mean_b / chroma, mean_a / chroma) if chroma > _GREY_LAB else (1.0, 0.0)
    direction = np.array((0.0, *way), np.float32)
    low, high = 0.0, _MOST_LAB
    for _ in range(_NUM_HALVINGS):
        middle = np.float32((low + high) / 2)
        shown = to_lab(from_lab((sample + middle * direction)[None]))[0]
        if ciede2000(sample, shown).mean() < amount:
            low = float(middle)
        else:
            high = float(middle)
    shifted = from_lab(lab + np.float32(high) * direction)
    return np.dstack([shifted, product_rgba[..., 3]])


def _take_sample(lab_hwc: LabArray, alpha_hw: UInt8Array) -> NDArray[np.float32]:
    """(n, 3): pixels of the product, without a plain ground."""
    border = np.concatenate([lab_hwc[0], lab_hwc[-1], lab_hwc[:, 0], lab_hwc[:, -1]])
    distance = np.linalg.norm(lab_hwc - np.median(border, axis=0), axis=2)
    is_solid = alpha_hw > 127
    is_product = is_solid & (distance > _GROUND_LAB) if alpha_hw.min() > 127 else is_solid
    if np.count_nonzero(is_product) < 0.01 * is_product.size:
        is_product = np.ones_like(is_product)
    pixels = lab_hwc[is_product]
    return np.asarray(pixels[:: max(1, len(pixels) // _NUM_SAMPLES)], np.float32)
