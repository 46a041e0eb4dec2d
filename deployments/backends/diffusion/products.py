"""Products as the base sees them: encoded once per content, kept within a byte budget."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch

from deployments.backends.diffusion.recipe import Encoded, Recipe
from deployments.cache import ContentCache
from serve.messages import ExpertRequest, UInt8Array
from serve.observing.meter import Meter


@dataclass(frozen=True, slots=True)
class _Kept:
    tensors: Mapping[str, torch.Tensor]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


class EncodedProducts:
    """Remembers by tenant and content, crop size and version, whatever request it came in."""

    def __init__(self, recipe: Recipe, max_bytes: int):
        self._recipe = recipe
        self._cache: ContentCache[_Kept] = ContentCache("encodings", max_bytes)
        self._encodes_apart = True

    def get(
        self, pipe: Any, request: ExpertRequest, product_hwc: UInt8Array
    ) -> tuple[Encoded | None, bool | None]:
        """What `encode_product` makes of it, and whether it was remembered; None and None where
        the recipe encodes none apart."""
        height_px, width_px = request.region_hw.shape
        if not self._encodes_apart:
            return None, None
        way, era = f"{request.version} {width_px}x{height_px}", self._cache.era
        kept = self._cache.find(request.product_hash, way)
        if kept is not None:
            return kept.tensors, True
        encoded = self._recipe.encode_product(pipe, product_hwc, width_px, height_px)
        if encoded is None:
            self._encodes_apart = False  # the recipe is the same for every product
            return None, None
        self._cache.keep(request.product_hash, way, _Kept(encoded), era)
        return encoded, False

    def use_meter(self, meter: Meter) -> None:
        self._cache.use_meter(meter)

    def forget(self, content_hashes: Collection[str]) -> int:
        """Drop the products of these contents; says how many."""
        return self._cache.forget(content_hashes)


def flatten_product(product_rgba: UInt8Array, background: tuple[int, int, int]) -> UInt8Array:
    """(h, w, 4) with straight alpha, to (h, w, 3) on the background; an opaque one as it is."""
    alpha_hw = product_rgba[..., 3]
    if alpha_hw.min() == 255:
        return cv2.cvtColor(product_rgba, cv2.COLOR_RGBA2RGB).astype(np.uint8, copy=False)
    weight = alpha_hw[..., None].astype(np.float32) / 255
    ground = np.array(background, np.float32)
    flat = product_rgba[..., :3] * weight + ground * (1 - weight)
    return np.rint(flat).astype(np.uint8)
