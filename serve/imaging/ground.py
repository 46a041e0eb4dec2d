"""Which pixels of a product picture show the product: by its alpha, or off its plain ground."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from serve.difference import LabArray, to_lab
from serve.messages import UInt8Array

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

_CLEAR = 250
_LEAST_CLEAR = 0.002
_BORDER = 0.03
"""Of the shorter side: what is taken to be ground, if it is plain."""
_PLAIN_LAB = 6.0
_LEAST_PLAIN = 0.72
_NEAR_LAB = (1.5, 4.0)
"""Least and most distance below which a pixel is ground, whatever its noise seems."""
_SHADOW_CHROMA = 4.0
_EDGE_PER_PX = 2.2
"""Lightness step per pixel that a cast shadow's soft rim does not reach and an outline does."""
_LEAST_PRODUCT = 0.01
_SIDE_PX = 192
"""Longer side at which it is looked for; more shows no other colours."""


def weigh_product(product_rgba: UInt8Array) -> FloatArray:
    """(h, w) in [0, 1]: 0 on the ground. 1 everywhere where there is no plain ground.

    Small on purpose: it decides which colours count, not what is painted.
    """
    alpha_hw = product_rgba[..., 3]
    if np.count_nonzero(alpha_hw < _CLEAR) > _LEAST_CLEAR * alpha_hw.size:
        return np.asarray(alpha_hw / 255, np.float32)
    height_px, width_px = alpha_hw.shape
    whole = np.ones(alpha_hw.shape, np.float32)
    if min(alpha_hw.shape) < 8:
        return whole
    lab_hwc = _shrink_to_lab(product_rgba)
    product = _find_product(lab_hwc)
    if product is None or product.mean() < _LEAST_PRODUCT:
        return whole
    full: Any = cv2.resize(product.astype(np.float32), (width_px, height_px))
    return full  # type: ignore[no-any-return]


def _shrink_to_lab(product_rgba: UInt8Array) -> LabArray:
    rgb = np.ascontiguousarray(product_rgba[..., :3])
    factor = min(1.0, _SIDE_PX / max(rgb.shape[:2]))
    height_px, width_px = (max(8, round(side * factor)) for side in rgb.shape[:2])
    small: Any = cv2.resize(rgb, (width_px, height_px), interpolation=cv2.INTER_AREA)
    return to_lab(small)


def _find_product(lab_hwc: LabArray) -> BoolArray | None:
    """None where the border is not plain."""
    ring = _draw_ring(*lab_hwc.shape[:2])
    difference = _subtract_ground(lab_hwc, ring)
    if difference is None:
        return None
    distance = np.linalg.norm(difference, axis=2)
    if np.mean(distance[ring] < _PLAIN_LAB) < _LEAST_PLAIN:
        return None
    noise = float(np.median(distance[ring]))
    near = distance < np.clip(3 * noise, *_NEAR_LAB)
    # A shadow is darker, of the ground's own colour, and begins softly.
    chroma = np.hypot(difference[..., 1], difference[..., 2])
    is_shade = (chroma < _SHADOW_CHROMA) & (difference[..., 0] < 0) & ~_find_outlines(lab_hwc)
    product = ~_reach_from_border(near | is_shade)
    opened: Any = cv2.morphologyEx(product.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3)))
    return opened > 0  # type: ignore[no-any-return]


def _find_outlines(lab_hwc: LabArray) -> BoolArray:
    light_hw = np.ascontiguousarray(lab_hwc[..., 0])
    dx: Any = cv2.Sobel(light_hw, cv2.CV_32F, 1, 0, scale=1 / 8)
    dy: Any = cv2.Sobel(light_hw, cv2.CV_32F, 0, 1, scale=1 / 8)
    steep = (np.hypot(dx, dy) > _EDGE_PER_PX).astype(np.uint8)
    closed: Any = cv2.morphologyEx(steep, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    return closed > 0  # type: ignore[no-any-return]


def _draw_ring(height_px: int, width_px: int) -> BoolArray:
    depth_px = max(1, round(_BORDER * min(height_px, width_px)))
    ring = np.ones((height_px, width_px), bool)
    ring[depth_px:-depth_px, depth_px:-depth_px] = False
    return ring


def _subtract_ground(lab_hwc: LabArray, ring: BoolArray) -> FloatArray | None:
    """Difference to a ground that may brighten or darken smoothly across the picture."""
    height_px, width_px = ring.shape
    y, x = np.mgrid[-1 : 1 : height_px * 1j, -1 : 1 : width_px * 1j]
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1).astype(np.float32)
    middle = np.median(lab_hwc[ring], axis=0)
    used = ring & (np.linalg.norm(lab_hwc - middle, axis=2) < 5 * _PLAIN_LAB)
    difference = None
    for tolerance in (2 * _PLAIN_LAB, _PLAIN_LAB, _PLAIN_LAB):
        if np.count_nonzero(used) < 16:
            return None
        solution = np.linalg.lstsq(terms[used], lab_hwc[used], rcond=None)[0]
        difference = np.asarray(lab_hwc - terms @ solution, np.float32)
        used = ring & (np.linalg.norm(difference, axis=2) < tolerance)
    return difference


def _reach_from_border(alike: BoolArray) -> BoolArray:
    """What is alike and hangs together with the border: white in a shirt's print is no ground."""
    _, labels = cv2.connectedComponents(alike.astype(np.uint8), connectivity=4)
    at_border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    reached: BoolArray = np.isin(labels, np.setdiff1d(at_border, [0]))
    return reached
