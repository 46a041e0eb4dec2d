"""How true a painted product is to its photo, in colour and in pattern.

The two show it in another pose, size and light: what is compared are distributions, never pixels.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from serve.difference import LabArray, to_lab
from serve.imaging.ground import weigh_product
from serve.imaging.palette import compare_palettes, draw_palette
from serve.imaging.texture import AREA_SIDE_PX, compare_textures, read_texture
from serve.messages import UInt8Array

FloatArray = NDArray[np.float32]

_FOUND_AT_PX = 384
"""Longer side at which the product is found in its photo."""
_LEAST_AREA_PX = 64
_MOST_ENLARGED = 1.5
"""A small surface is measured small rather than blown up to edges that it never had."""


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Of one painted picture to its product."""

    colour: float
    """Mean CIEDE2000 of matched colours, lightness counted half; lower is better."""
    pattern: float
    """Likeness of edges in [0, 1]; higher is better."""


def measure_fidelity(
    product_rgba: UInt8Array, painted_hwc: UInt8Array, weight_hw: UInt8Array
) -> Fidelity | None:
    """Compare a product with what was painted of it.

    Args:
        product_rgba: (h, w, 4) sRGB with straight alpha; where it is opaque, a plain ground is
            told off the product by the picture's border.
        painted_hwc: (H, W, 3) sRGB.
        weight_hw: (H, W): 255 where the product was painted, 0 elsewhere.

    Returns:
        None where one of the two is too small to be told anything about.
    """
    product_rgba = _limit_side(product_rgba)
    product = _read_surface(product_rgba[..., :3], weigh_product(product_rgba))
    painted = _read_surface(painted_hwc, np.asarray(weight_hw / 255, np.float32))
    if product is None or painted is None:
        return None
    palette, painted_palette = draw_palette(*product), draw_palette(*painted)
    texture, painted_texture = read_texture(*product), read_texture(*painted)
    if palette is None or painted_palette is None or texture is None or painted_texture is None:
        return None
    return Fidelity(
        colour=compare_palettes(palette, painted_palette),
        pattern=compare_textures(texture, painted_texture),
    )


def _limit_side(product_rgba: UInt8Array) -> UInt8Array:
    factor = _FOUND_AT_PX / max(product_rgba.shape[:2])
    if factor >= 1:
        return product_rgba
    rgb = np.ascontiguousarray(product_rgba[..., :3])
    alpha = np.ascontiguousarray(product_rgba[..., 3])
    # Premultiplied while shrinking: what a clear pixel hides must not colour its neighbours.
    weighted = _resize(cv2.multiply(rgb, cv2.merge((alpha,) * 3), scale=1 / 255), factor)
    alpha = _resize(alpha, factor)
    whole = weighted.astype(np.float32) * (255 / np.maximum(alpha, 1))[..., None]
    return np.dstack([np.clip(np.rint(whole), 0, 255).astype(np.uint8), alpha])


def _read_surface(
    image_hwc: UInt8Array, weight_hw: FloatArray
) -> tuple[LabArray, FloatArray] | None:
    """In CIELAB, cut to where the weight is and brought to the area at which all are measured."""
    x, y, width, height = cv2.boundingRect((weight_hw > 0.02).astype(np.uint8))
    weight = weight_hw[y : y + height, x : x + width]
    area_px = float(weight.sum())
    if area_px < _LEAST_AREA_PX:
        return None
    factor = min(_MOST_ENLARGED, AREA_SIDE_PX / area_px**0.5)
    image = image_hwc[y : y + height, x : x + width]
    return to_lab(_resize(image, factor)), _resize(weight, factor)


def _resize(pixels: Any, factor: float) -> Any:
    height_px, width_px = (max(1, round(side * factor)) for side in pixels.shape[:2])
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(pixels), (width_px, height_px), interpolation=how)
