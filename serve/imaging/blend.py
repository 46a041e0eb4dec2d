"""How strongly each pixel of the region takes the painted colour, and in which tone.

Everything here works inside the region: no weight is ever above zero where the region is zero.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from serve.messages import UInt8Array

FloatArray = NDArray[np.float32]
DEFAULT_FEATHER = 0.02
_MAX_SHIFT_LAB = (8.0, 6.0, 6.0)
_INLIER_LAB = 20.0
_MAX_SEAM = 48.0
"""Levels; a larger step at the edge is a real edge, which must not bleed into the product."""
_SEAM_GRID_PX = 160


def choose_feather_px(region_box_hw: UInt8Array, fraction: float = DEFAULT_FEATHER) -> float:
    """Width of the inner soft edge from the shorter side of the region's box."""
    _, _, width, height = cv2.boundingRect(region_box_hw)
    return fraction * min(width, height)


def weigh_region(
    region_box_hw: UInt8Array, alpha_hw: UInt8Array | None, feather_px: float
) -> FloatArray:
    """(H, W) float32 in [0, 1]: 0 outside the region, rising to 1 over `feather_px` inside.

    Args:
        alpha_hw: (H, W) as `soften_painted` gives it, at the size of the region; elsewhere the
            person keeps its own pixels.
    """
    inside = (region_box_hw > 0).astype(np.uint8)
    distance: Any = cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_5)
    deepest = float(distance.max(initial=0.0))
    feather_px = min(feather_px, deepest / 2)  # a thin region must still reach full weight
    weight = np.clip((distance - 0.5) / max(feather_px, 0.5), 0, 1)
    weight = weight * weight * (3 - 2 * weight)
    weight *= region_box_hw.astype(np.float32) / 255
    if alpha_hw is not None:
        weight *= alpha_hw.astype(np.float32) / 255
    return np.where(inside, weight, 0).astype(np.float32)


def soften_painted(alpha_hw: UInt8Array, feather_px: float) -> UInt8Array:
    """What was painted, a little wider, with a soft edge that starts outside of it."""
    radius = max(1, round(feather_px / 2))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    wider: Any = cv2.dilate(alpha_hw, kernel)
    soft: Any = cv2.GaussianBlur(wider, (0, 0), radius / 2)
    softened: UInt8Array = np.maximum(soft, alpha_hw)
    return softened


def match_colour(
    painted_hwc: UInt8Array, original_hwc: UInt8Array, region_box_hw: UInt8Array
) -> UInt8Array:
    """Undo a tone shift of the expert, read off where it should have changed nothing.

    The shift is the median Lab difference on a ring on both sides of the region's edge, among the
    pixels that are still alike; it is limited, and zero where the ring says nothing.
    """
    ring = _ring(region_box_hw)
    if not ring.any():
        return painted_hwc
    painted = _to_lab(painted_hwc)
    difference = (_to_lab(original_hwc) - painted)[ring]
    alike = np.abs(difference).max(axis=1) < _INLIER_LAB
    if np.count_nonzero(alike) < max(32, 0.2 * len(difference)):
        return painted_hwc
    shift = np.clip(np.median(difference[alike], axis=0), -np.array(_MAX_SHIFT_LAB), _MAX_SHIFT_LAB)
    return _from_lab(painted + shift.astype(np.float32))


def remove_seam(
    painted_hwc: UInt8Array, original_hwc: UInt8Array, region_box_hw: UInt8Array
) -> UInt8Array:
    """Gradient-domain blend: keep the painted gradients, meet the original at the region's edge.

    Solves Laplace's equation for the correction, which is smooth, on a small grid.
    """
    inside = region_box_hw > 0
    factor = min(1.0, _SEAM_GRID_PX / max(inside.shape))
    size = max(3, round(inside.shape[1] * factor)), max(3, round(inside.shape[0] * factor))
    difference = original_hwc.astype(np.float32) - painted_hwc
    np.clip(difference, -_MAX_SEAM, _MAX_SEAM, out=difference)
    known = (~inside).astype(np.float32)
    share: Any = cv2.resize(known, size, interpolation=cv2.INTER_AREA)
    total: Any = cv2.resize(difference * known[..., None], size, interpolation=cv2.INTER_AREA)
    values = total / np.maximum(share, 1e-6)[..., None]
    is_unknown = share < 1e-3
    if not is_unknown.any() or is_unknown.all():
        return painted_hwc
    correction = _fill_smoothly(values, is_unknown)
    height_px, width_px = inside.shape
    full: Any = cv2.resize(correction, (width_px, height_px), interpolation=cv2.INTER_LINEAR)
    corrected: UInt8Array = np.clip(np.rint(painted_hwc + full), 0, 255).astype(np.uint8)
    return corrected


def _fill_smoothly(values: FloatArray, is_unknown: NDArray[np.bool_]) -> FloatArray:
    """(h, w, C): unknown cells become the mean of their neighbours, solved exactly."""
    from scipy.sparse import csr_array  # a third of this package's import time, rarely needed
    from scipy.sparse.linalg import spsolve

    height, width = is_unknown.shape
    index = np.full(is_unknown.shape, -1)
    index[is_unknown] = np.arange(np.count_nonzero(is_unknown))
    rows, columns = np.nonzero(is_unknown)
    own = index[rows, columns]
    count = np.zeros(len(own))
    right = np.zeros((len(own), values.shape[2]))
    entries: list[tuple[Any, Any]] = []
    for step_y, step_x in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        y, x = rows + step_y, columns + step_x
        exists = (0 <= y) & (y < height) & (0 <= x) & (x < width)
        count += exists
        at_y, at_x = y.clip(0, height - 1), x.clip(0, width - 1)
        is_free = exists & is_unknown[at_y, at_x]
        is_fixed = exists & ~is_unknown[at_y, at_x]
        entries.append((own[is_free], index[at_y[is_free], at_x[is_free]]))
        right[is_fixed] += values[at_y[is_fixed], at_x[is_fixed]]
    i = np.concatenate([own, *(entry[0] for entry in entries)])
    j = np.concatenate([own, *(entry[1] for entry in entries)])
    data = np.concatenate([count, -np.ones(len(i) - len(own))])
    filled = values.copy()
    filled[is_unknown] = spsolve(csr_array((data, (i, j))).tocsc(), right)
    return filled


def _ring(region_box_hw: UInt8Array) -> NDArray[np.bool_]:
    inside = (region_box_hw > 0).astype(np.uint8)
    radius = max(2, round(0.03 * min(inside.shape)))
    kernel = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
    edge: Any = cv2.dilate(inside, kernel) != cv2.erode(inside, kernel)
    return edge  # type: ignore[no-any-return]


def _to_lab(rgb_hwc: UInt8Array) -> FloatArray:
    lab: Any = cv2.cvtColor(rgb_hwc.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
    return lab  # type: ignore[no-any-return]


def _from_lab(lab_hwc: FloatArray) -> UInt8Array:
    rgb = cv2.cvtColor(lab_hwc, cv2.COLOR_Lab2RGB)
    return np.clip(np.rint(rgb * 255), 0, 255).astype(np.uint8)
