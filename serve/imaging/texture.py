"""The pattern of a surface as strengths and directions of its edges, and how alike two are.

Sizes and places are taken out: a surface is measured at one area, whatever it was shown at.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from serve.difference import LabArray

FloatArray = NDArray[np.float32]

AREA_SIDE_PX = 128
"""A surface is measured at as many pixels as a square of this side has."""
NUM_BANDS = 4
_NUM_DIRECTIONS = 8
_FLOOR = 0.7
"""Levels of L*, a* or b*: below it a band is grain and codec, not pattern."""
_DIRECTIONS_COUNT = 0.25


@dataclass(frozen=True, slots=True)
class Texture:
    """What one surface's edges are like."""

    strengths: FloatArray
    """(bands, 2): root mean square of each octave in lightness, and in a* and b* together: another
    hue is no other pattern."""
    directions: FloatArray
    """(directions,): share of edge energy by direction, modulo half a turn."""


def read_texture(lab_hwc: LabArray, weight_hw: FloatArray) -> Texture | None:
    """Measure where the weight is, a little away from its outline: the cut is no pattern.

    Returns:
        None where too little is left.
    """
    inside = _shrink_inwards(weight_hw)
    total = float(inside.sum())
    if total < AREA_SIDE_PX:
        return None
    filled = _fill_outside(lab_hwc, weight_hw)
    strengths, finer = [], filled
    for band in range(NUM_BANDS):
        coarser: Any = cv2.GaussianBlur(filled, (0, 0), 1.0 * 2**band)
        light, a, b = ((finer - coarser) ** 2 * inside[..., None]).sum(axis=(0, 1)) / total
        strengths.append(np.sqrt((light, a + b)))
        finer = coarser
    return Texture(np.stack(strengths), _read_directions(filled[..., 0], inside))


def compare_textures(product: Texture, painted: Texture) -> float:
    """Likeness in [0, 1], 1 for the same."""
    one, two = product.strengths**2 + _FLOOR**2, painted.strengths**2 + _FLOOR**2
    alike = 2 * np.sqrt(one * two) / (one + two)
    weight = np.maximum(one, two)
    bands = float((alike * weight).sum() / weight.sum())
    directions = float(np.minimum(product.directions, painted.directions).sum())
    return (1 - _DIRECTIONS_COUNT) * bands + _DIRECTIONS_COUNT * directions


def _shrink_inwards(weight_hw: FloatArray) -> FloatArray:
    solid = (weight_hw > 0.5).astype(np.uint8)
    kernel = np.ones((7, 7), np.uint8)
    padded = cv2.copyMakeBorder(solid, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    inner = cv2.erode(padded, kernel)[1:-1, 1:-1]
    return np.asarray(inner, np.float32)


def _fill_outside(lab_hwc: LabArray, weight_hw: FloatArray) -> LabArray:
    """Beyond the outline the nearby inside goes on, smoothly: no edge where the surface ends."""
    share: Any = cv2.GaussianBlur(weight_hw, (0, 0), 6.0)
    spread: Any = cv2.GaussianBlur(lab_hwc * weight_hw[..., None], (0, 0), 6.0)
    mean = (lab_hwc * weight_hw[..., None]).sum(axis=(0, 1)) / max(1e-6, float(weight_hw.sum()))
    nearby = (spread + 1e-3 * mean) / (share + 1e-3)[..., None]
    return np.asarray(nearby + (lab_hwc - nearby) * weight_hw[..., None], np.float32)


def _read_directions(light_hw: FloatArray, inside: FloatArray) -> FloatArray:
    smooth: Any = cv2.GaussianBlur(light_hw, (0, 0), 1.0)
    dx: Any = cv2.Sobel(smooth, cv2.CV_32F, 1, 0, scale=1 / 8)
    dy: Any = cv2.Sobel(smooth, cv2.CV_32F, 0, 1, scale=1 / 8)
    turn = ((np.arctan2(dy, dx) / np.pi) % 1 * _NUM_DIRECTIONS).ravel()
    energy = ((dx * dx + dy * dy) * inside).ravel()
    low = np.floor(turn).astype(int) % _NUM_DIRECTIONS
    part = turn - np.floor(turn)
    # Between two directions it counts for both: a small turn of the thing changes little.
    counts = np.bincount(low, (1 - part) * energy, _NUM_DIRECTIONS)
    counts += np.bincount((low + 1) % _NUM_DIRECTIONS, part * energy, _NUM_DIRECTIONS)
    # A plain surface has no direction: all the same, rather than those of its grain.
    shares = counts / max(1.0, float(inside.sum())) + _FLOOR**2 / _NUM_DIRECTIONS
    return np.asarray(shares / shares.sum(), np.float32)
