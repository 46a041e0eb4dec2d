"""How visibly a region's border shows in a painted picture."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from serve.messages import UInt8Array

_INSIDE = 127
"""A soft region's border runs where the edit takes half."""
_NEAR_PX = (2, 3, 4)
"""How far from the border its surroundings are looked at: beyond what resampling smears."""
_SCALES = (1, 6)
"""Of the picture and of one so many times smaller, in which the soft border that paste-back leaves
is as narrow as a hard one is here: what does not fit is seen from further away."""
_MOST_LEVELS = 32.0
"""More is the outline of a thing that ends at the border, and counts as no more than this."""
REACH_PX = (_NEAR_PX[-1] + 2) * _SCALES[-1]
"""Pixels around the region that are looked at; what lies further away may be cut off."""


def measure_seam(
    before_hwc: UInt8Array, painted_hwc: UInt8Array, region_hw: UInt8Array
) -> float | None:
    """Excess gradient energy across the region's border.

    Every pair of neighbours with the border between them counts by how much its step exceeds the
    step that was there before and the steps next to it: what goes on across the border as it goes
    on beside it, such as a pattern, is no seam.

    Args:
        before_hwc: (H, W, 3) sRGB.
        painted_hwc: (H, W, 3) sRGB.
        region_hw: (H, W), 0 outside the region.

    Returns:
        Mean over the border in 8-bit levels per pixel, 0..32, at the scale at which it shows most;
        0 where nothing shows. None where the region has no border inside the picture.
    """
    seen = [
        _measure_steps(*(_shrink(image, scale) for image in (before_hwc, painted_hwc, region_hw)))
        for scale in _SCALES
    ]
    return max((seam for seam in seen if seam is not None), default=None)


def _shrink(image: UInt8Array, scale: int) -> UInt8Array:
    if scale == 1:
        return image
    size = [max(2, round(side / scale)) for side in image.shape[1::-1]]
    small: Any = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return small  # type: ignore[no-any-return]


def _measure_steps(
    before_hwc: UInt8Array, painted_hwc: UInt8Array, region_hw: UInt8Array
) -> float | None:
    is_inside = region_hw > _INSIDE
    across = _excesses(before_hwc, painted_hwc, is_inside)
    down = _excesses(before_hwc.swapaxes(0, 1), painted_hwc.swapaxes(0, 1), is_inside.T)
    excesses = np.concatenate([across, down])
    return float(excesses.mean()) if excesses.size else None


def _excesses(
    before_hwc: UInt8Array, painted_hwc: UInt8Array, is_inside_hw: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Of every border between a pixel and its right neighbour."""
    rows, columns = np.nonzero(is_inside_hw[:, 1:] != is_inside_hw[:, :-1])
    crossing = _step(painted_hwc, rows, columns)
    usual = _step(before_hwc, rows, columns)
    for distance_px in _NEAR_PX:
        for side in (-distance_px, distance_px):
            usual = np.maximum(usual, _step(painted_hwc, rows, columns + side))
    return np.asarray(np.clip(crossing - usual, 0, _MOST_LEVELS), np.float32)


def _step(
    image_hwc: UInt8Array, rows: NDArray[np.intp], columns: NDArray[np.intp]
) -> NDArray[np.float32]:
    """Mean absolute difference of the channels from a pixel to its right neighbour."""
    left = columns.clip(0, image_hwc.shape[1] - 2)
    difference = image_hwc[rows, left + 1].astype(np.float32) - image_hwc[rows, left]
    return np.asarray(np.abs(difference).mean(axis=1), np.float32)
