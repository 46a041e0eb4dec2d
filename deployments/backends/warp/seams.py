"""Closes what parts of a garment leave open between them once each is bent its own way."""

import cv2
import numpy as np
from numpy.typing import NDArray

from deployments.backends.warp.placement import Part

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]


def close_seams(layer_hwc: FloatArray, sleeves: list[Part], unit_px: float) -> FloatArray:
    """Fill the notch that a turned sleeve leaves beside the shoulder.

    Args:
        layer_hwc: (H, W, 4) premultiplied RGBA in [0, 255]; not changed.
    """
    closed = layer_hwc
    for sleeve in sleeves:
        ends = sleeve.target[1, [1, -2]]
        x, y = (int(value) for value in ends[ends[:, 1].argmin()])
        reach, radius = round(0.5 * unit_px), round(0.3 * unit_px)
        window = slice(max(0, y - reach), max(0, y + reach)), slice(max(0, x - reach), x + reach)
        part = closed[window] if x + reach > 0 else closed[:0]
        if part.size == 0:
            continue
        zone = np.zeros(part.shape[:2], np.uint8)
        cv2.circle(zone, (x - window[1].start, y - window[0].start), radius, 1, -1)
        closed = closed.copy() if closed is layer_hwc else closed
        closed[window] = _close_notch(part, zone > 0, unit_px)
    return closed


def _close_notch(layer_hwc: FloatArray, zone_hw: BoolArray, unit_px: float) -> FloatArray:
    solid = (layer_hwc[..., 3] > 200).astype(np.uint8)
    size = 2 * round(0.12 * unit_px) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    gap = (cv2.morphologyEx(solid, cv2.MORPH_CLOSE, kernel) > 0) & zone_hw & (solid == 0)
    if not gap.any() or not solid.any():
        return layer_hwc
    _, labels = cv2.distanceTransformWithLabels(
        1 - solid, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    lookup = np.zeros((int(labels.max()) + 1, 4), np.float32)
    lookup[labels[solid > 0]] = layer_hwc[solid > 0]
    filled = np.where(gap[..., None], lookup[labels], layer_hwc)
    soft = cv2.GaussianBlur(filled, (0, 0), max(0.8, 0.008 * unit_px))
    return np.asarray(np.where(gap[..., None], soft, filled), np.float32)
