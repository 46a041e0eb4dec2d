"""What a finished picture says about the version that painted it, without any model."""

import cv2
import numpy as np
from numpy.typing import NDArray

from serve.designs import MetricName
from serve.imaging.blend import choose_feather_px, soften_painted, weigh_region
from serve.imaging.fidelity import measure_fidelity
from serve.imaging.seam import measure_seam
from serve.messages import UInt8Array

_CHANGED_LEVELS = 12
"""Above what a decoder's round trip does to a pixel, below any visible product."""
_LEAST_CHANGED = 0.02
"""A version that changed less of its region than this has painted nothing to be looked for."""


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
    fidelity = measure_fidelity(
        product_rgba, painted_hwc, _weigh_painted(before_hwc, painted_hwc, alpha_hw, region_hw)
    )
    if fidelity is not None:
        measured["colour"] = fidelity.colour
        measured["pattern"] = fidelity.pattern
    pasted_hwc = _paste(before_hwc, painted_hwc, alpha_hw, region_hw)
    seam = measure_seam(before_hwc, pasted_hwc, region_hw)
    if seam is not None:
        measured["seam"] = seam
    return measured


def _weigh_painted(
    before_hwc: UInt8Array,
    painted_hwc: UInt8Array,
    alpha_hw: UInt8Array | None,
    region_hw: UInt8Array,
) -> UInt8Array:
    """(H, W): where the product was painted. A region is wider than what is painted into it."""
    if alpha_hw is not None:
        painted: UInt8Array = np.minimum(alpha_hw, region_hw)
        return painted
    difference = cv2.absdiff(before_hwc, painted_hwc).max(axis=2)
    is_changed = (difference > _CHANGED_LEVELS) & (region_hw > 0)
    if np.count_nonzero(is_changed) < _LEAST_CHANGED * np.count_nonzero(region_hw):
        return region_hw
    return np.where(is_changed, region_hw, 0).astype(np.uint8)


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
