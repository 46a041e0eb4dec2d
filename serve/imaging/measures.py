"""What a finished picture says about the version that painted it, without any model."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from serve.designs import MetricName
from serve.difference import to_lab
from serve.imaging.blend import choose_feather_px, soften_painted, weigh_region
from serve.imaging.fidelity import measure_fidelity
from serve.imaging.seam import REACH_PX, measure_seam
from serve.messages import UInt8Array

_LOOKED_AT_PX = 384
"""Longer side at which colours and patterns are looked at."""
_TINTED_LAB = 4.0
"""Above what a decoder's round trip does to the colour of a pixel."""
_SHADE = (0.75, 0.97)
"""Of L* + 16: below the first it is not only shaded, above the second not at all."""
_LEAST_NEW = 0.1
"""Where less of the region is new, the product looks like what was there: all of it counts."""


def measure_result(
    before_hwc: UInt8Array,
    painted_hwc: UInt8Array,
    alpha_hw: UInt8Array | None,
    region_hw: UInt8Array,
    product_rgba: UInt8Array,
) -> dict[MetricName, float]:
    """Measure one crop as it goes into the picture.

    Never raises for what the pictures show: a metric that they say nothing about is absent, as for
    a region of a few pixels or a product that is clear all over.

    Args:
        before_hwc: (H, W, 3) sRGB: `ExpertRequest.crop_hwc`.
        painted_hwc: (H, W, 3) sRGB: one of `ExpertReply.images_nhwc`.
        alpha_hw: (H, W): the same of `ExpertReply.alpha_nhw`; None where the expert does not know.
        region_hw: (H, W): `ExpertRequest.region_hw`.
        product_rgba: (h, w, 4) sRGB: `ExpertRequest.product_hwc`.

    Returns:
        `colour`, `pattern` and `seam`, or those of them that can be told.
    """
    measured: dict[MetricName, float] = {}
    region = _box(region_hw, margin_px=REACH_PX)
    if region is None:
        return measured
    alpha = None if alpha_hw is None else alpha_hw[region]
    before, painted, inside = before_hwc[region], painted_hwc[region], region_hw[region]
    # Without a border there is nothing to feather either.
    seam = None
    if not inside.all():
        seam = measure_seam(before, _paste(before, painted, alpha, inside), inside)
    if seam is not None:
        measured["seam"] = seam
    before, painted, inside = _shrink(before), _shrink(painted), _shrink(inside)
    alpha = None if alpha is None else _shrink(alpha)
    weight = _weigh_painted(before, painted, alpha, inside)
    fidelity = measure_fidelity(product_rgba, painted, weight)
    if fidelity is not None:
        measured["colour"] = fidelity.colour
        measured["pattern"] = fidelity.pattern
    return measured


def _box(region_hw: UInt8Array, margin_px: int) -> tuple[slice, slice] | None:
    x, y, width, height = cv2.boundingRect(region_hw)
    if width == 0:
        return None
    return (
        slice(max(0, y - margin_px), y + height + margin_px),
        slice(max(0, x - margin_px), x + width + margin_px),
    )


def _shrink(pixels: UInt8Array) -> UInt8Array:
    factor = _LOOKED_AT_PX / max(pixels.shape[:2])
    if factor >= 1:
        return pixels
    height_px, width_px = (max(1, round(side * factor)) for side in pixels.shape[:2])
    small: Any = cv2.resize(pixels, (width_px, height_px), interpolation=cv2.INTER_AREA)
    return small  # type: ignore[no-any-return]


def _weigh_painted(
    before_hwc: UInt8Array,
    painted_hwc: UInt8Array,
    alpha_hw: UInt8Array | None,
    region_hw: UInt8Array,
) -> UInt8Array:
    """(H, W): where the product was painted, without the shadow that it casts.

    A region is wider than the product; where the expert does not know what it painted, what it
    left as it was does not count either.
    """
    allowed: UInt8Array = region_hw if alpha_hw is None else np.minimum(alpha_hw, region_hw)
    before, painted = to_lab(before_hwc), to_lab(painted_hwc)
    light = (painted[..., 0] + 16) / (before[..., 0] + 16)
    turned = before[..., 1:] * light[..., None] - painted[..., 1:]
    is_old = (np.hypot(turned[..., 0], turned[..., 1]) < _TINTED_LAB) & (light > _SHADE[0])
    is_old &= light < (_SHADE[1] if alpha_hw is not None else 1 / _SHADE[0])
    is_new = (allowed > 0) & ~is_old
    if np.count_nonzero(is_new) < _LEAST_NEW * np.count_nonzero(allowed):
        return allowed
    return np.where(is_new, allowed, 0).astype(np.uint8)


def _paste(
    before_hwc: UInt8Array,
    painted_hwc: UInt8Array,
    alpha_hw: UInt8Array | None,
    region_hw: UInt8Array,
) -> UInt8Array:
    """As `serve.imaging.paste` lays it over the original, at the expert's size."""
    feather_px = choose_feather_px(region_hw)
    soft = None if alpha_hw is None else soften_painted(alpha_hw, feather_px)
    weight: NDArray[np.float32] = weigh_region(region_hw, soft, feather_px)[..., None]
    mixed = before_hwc + (painted_hwc.astype(np.float32) - before_hwc) * weight
    return np.rint(mixed).astype(np.uint8)
