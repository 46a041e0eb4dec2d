"""Which pixels of a product picture show the product: by its alpha, or off its plain ground."""

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
_LEAST_PLAIN = 0.6
_LIGHT_WEIGHT = 0.4
"""A cast shadow is darker than its ground, hardly of another colour."""
_LEAST_PRODUCT = 0.01


def weigh_product(product_rgba: UInt8Array) -> FloatArray:
    """(h, w) in [0, 1]: 0 on the ground. 1 everywhere where there is no plain ground.

    Small on purpose: it decides which colours count, not what is painted.
    """
    alpha_hw = product_rgba[..., 3]
    if np.count_nonzero(alpha_hw < _CLEAR) > _LEAST_CLEAR * alpha_hw.size:
        return np.asarray(alpha_hw / 255, np.float32)
    whole = np.ones(alpha_hw.shape, np.float32)
    if min(alpha_hw.shape) < 8:
        return whole
    lab_hwc = to_lab(np.ascontiguousarray(product_rgba[..., :3]))
    ring = _draw_ring(*alpha_hw.shape)
    distance_hw = _measure_from_ground(lab_hwc, ring)
    if np.mean(distance_hw[ring] < _PLAIN_LAB) < _LEAST_PLAIN:
        return whole
    product = ~_reach_from_border(distance_hw < _PLAIN_LAB)
    if product.mean() < _LEAST_PRODUCT:
        return whole
    return product.astype(np.float32)


def _draw_ring(height_px: int, width_px: int) -> BoolArray:
    depth_px = max(1, round(_BORDER * min(height_px, width_px)))
    ring = np.ones((height_px, width_px), bool)
    ring[depth_px:-depth_px, depth_px:-depth_px] = False
    return ring


def _measure_from_ground(lab_hwc: LabArray, ring: BoolArray) -> FloatArray:
    """Distance to a ground that may brighten or darken evenly across the picture."""
    height_px, width_px = ring.shape
    y, x = np.mgrid[-1 : 1 : height_px * 1j, -1 : 1 : width_px * 1j]
    terms = np.stack([np.ones_like(x), x, y], axis=-1).astype(np.float32)
    used = ring & (np.linalg.norm(lab_hwc - np.median(lab_hwc[ring], axis=0), axis=2) < 30)
    for _ in range(2):
        if np.count_nonzero(used) < 8:
            break
        plane = terms @ np.linalg.lstsq(terms[used], lab_hwc[used], rcond=None)[0]
        difference = (lab_hwc - plane) * (_LIGHT_WEIGHT, 1, 1)
        distance = np.linalg.norm(difference, axis=2)
        used = ring & (distance < 2 * _PLAIN_LAB)
    else:
        return np.asarray(distance, np.float32)
    return np.full(ring.shape, np.inf, np.float32)


def _reach_from_border(alike: BoolArray) -> BoolArray:
    """What is alike and hangs together with the border: white in a shirt's print is no ground."""
    _, labels = cv2.connectedComponents(alike.astype(np.uint8), connectivity=4)
    at_border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    reached: BoolArray = np.isin(labels, np.setdiff1d(at_border, [0]))
    return reached
