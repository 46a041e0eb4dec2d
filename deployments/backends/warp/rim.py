"""Repairs the lower rim of glasses: no shadow hanging from it, no gap where it met the table."""

import cv2
import numpy as np
from numpy.typing import NDArray

from serve.messages import UInt8Array

FloatArray = NDArray[np.float64]

SLACK = 1.2
"""How much thicker than its thin parts the lower rim may be; the rest is a shadow."""
GAP = 0.4
"""A rim thinner than this share of what is usual has been lost with the background."""


def repair_rim(half_hwc: UInt8Array, outline: FloatArray, lens_hw: UInt8Array) -> UInt8Array:
    """Trim and complete the rim below one lens.

    Args:
        half_hwc: (h, w, 4) upright front.
        outline: (n, 2) the lens in it.
        lens_hw: (h, w) 255 on the lens.
    """
    out = half_hwc.copy()
    upper, lower = _thickness(out[..., 3], outline)
    upper_px = float(np.median(upper)) if upper.size else 0.0
    lower = lower[lower > 2.0]
    if upper_px < 3.0 or lower.size == 0:
        return out
    outside = (lens_hw < 128).astype(np.uint8)
    distance = np.asarray(cv2.distanceTransform(outside, cv2.DIST_L2, 5), np.float32)
    x0, x1 = outline[:, 0].min(), outline[:, 0].max()
    y, x = np.mgrid[: out.shape[0], : out.shape[1]]
    # The outer end and the nose pad are not rim.
    below = (y > outline[:, 1].mean() + 0.2 * np.ptp(outline[:, 1])) & (x > x0 - 0.1 * (x1 - x0))
    most_px = float(np.clip(SLACK * np.percentile(lower, 10), 0.5 * upper_px, upper_px))
    keep = np.clip(most_px - distance + 1.0, 0.0, 1.0)
    out[..., 3] = np.where(below & (x < x1), np.rint(out[..., 3] * keep), out[..., 3])
    _, lower = _thickness(out[..., 3], outline)
    usual_px = max(float(np.percentile(lower, 80)), 0.5 * upper_px)
    missing = float((lower < GAP * usual_px).mean())
    # A frame without any lower rim is meant to be so.
    if 0.08 < missing < 0.85:
        beside = y > outline[:, 1].mean() - 0.3 * np.ptp(outline[:, 1])
        _fill_ring(out, beside & (distance > 0), distance, 0.9 * usual_px)
    return out


def _thickness(alpha_hw: UInt8Array, outline: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Pixels of rim outside points of the lens outline, for its upper and its lower part."""
    middle = (outline.max(0) + outline.min(0)) / 2
    half = np.maximum(np.ptp(outline, axis=0) / 2, 1.0)
    reach = np.arange(1.0, 1.2 * float(half.max()))
    dense = cv2.approxPolyDP(outline.astype(np.float32), 0.5, True)[:, 0]
    points = np.concatenate(
        [
            np.linspace(a, b, 8, endpoint=False)
            for a, b in zip(dense, np.roll(dense, -1, 0), strict=True)
        ]
    )
    way = (points - middle) / half
    way /= np.maximum(np.linalg.norm(way, axis=1, keepdims=True), 1e-6)
    at = points[:, None] + way[:, None] * reach[:, None]
    x, y = (np.clip(np.rint(at[..., k]).astype(int), 0, alpha_hw.shape[1 - k] - 1) for k in (0, 1))
    empty = alpha_hw[y, x] < 128
    thick = np.where(empty.any(1), empty.argmax(1), len(reach)).astype(np.float64)
    return thick[way[:, 1] < -0.75], thick[way[:, 1] > 0.55]


def _fill_ring(
    image: UInt8Array, below: NDArray[np.bool_], distance: NDArray[np.float32], ring_px: float
) -> None:
    """Give the ring under the lens the colour of the nearest rim, in place."""
    ring = np.clip(ring_px - distance + 0.5, 0.0, 1.0) * below
    solid = np.maximum(image[..., 3], np.rint(ring * 255)).astype(np.uint8)
    size = 2 * round(0.6 * ring_px) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    solid = np.where(below, cv2.morphologyEx(solid, cv2.MORPH_CLOSE, kernel), image[..., 3])
    known = (image[..., 3] > 200) & (distance > 0.5 * ring_px)
    if not known.any():
        return
    _, labels = cv2.distanceTransformWithLabels(
        (~known).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    palette = np.zeros((int(labels.max()) + 1, 3), np.uint8)
    palette[labels[known]] = image[known, :3]
    fill = (solid > 0) & (image[..., 3] < 200) & below
    image[fill, :3] = palette[labels[fill]]
    image[..., 3] = solid
