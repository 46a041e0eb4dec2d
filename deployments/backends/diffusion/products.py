"""Products as the base sees them: encoded once per content, kept within a byte budget."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch

from deployments.backends.diffusion.recipe import Encoded, Recipe
from deployments.cache import ByteCache
from serve.messages import UInt8Array


@dataclass(frozen=True, slots=True)
class _Kept:
    tensors: Mapping[str, torch.Tensor]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


class EncodedProducts:
    """Remembers by content, crop size and version, whatever file or request it came in."""

    def __init__(self, recipe: Recipe, max_bytes: int):
        self._recipe = recipe
        self._cache = ByteCache[_Kept](max_bytes)

    def get(
        self, pipe: Any, version: str, product_hwc: UInt8Array, width_px: int, height_px: int
    ) -> Encoded | None:
        """What `encode_product` makes of it; None where the recipe encodes none apart."""
        key = f"{version} {width_px}x{height_px} {_digest(product_hwc)}"
        kept = self._cache.get(key)
        if kept is not None:
            return kept.tensors
        encoded = self._recipe.encode_product(pipe, product_hwc, width_px, height_px)
        if encoded is not None:
            self._cache.put(key, _Kept(encoded))
        return encoded

    def clear(self) -> int:
        """Forget them all: the keys are of canvases, which no picture's hash leads to."""
        return self._cache.remove(lambda key: True)

    @property
    def held_bytes(self) -> int:
        return self._cache.held_bytes


def flatten_product(product_rgba: UInt8Array, background: tuple[int, int, int]) -> UInt8Array:
    """(h, w, 4) with straight alpha, to (h, w, 3) on the background; an opaque one as it is."""
    alpha_hw = product_rgba[..., 3]
    if alpha_hw.min() == 255:
        return cv2.cvtColor(product_rgba, cv2.COLOR_RGBA2RGB).astype(np.uint8, copy=False)
    weight = alpha_hw[..., None].astype(np.float32) / 255
    ground = np.array(background, np.float32)
    flat = product_rgba[..., :3] * weight + ground * (1 - weight)
    return np.rint(flat).astype(np.uint8)


def _digest(picture_hwc: UInt8Array) -> str:
    shape = "x".join(map(str, picture_hwc.shape))
    return f"{shape} {hashlib.sha256(picture_hwc.tobytes()).hexdigest()}"
