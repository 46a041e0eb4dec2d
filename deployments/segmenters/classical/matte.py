"""Draws a rough cut's edge anew at full size: colours seen nearby decide what is whose."""

from dataclasses import dataclass

import cv2
import numpy as np

from deployments.segmenters.classical.barrier import BoolArray, Float32Array
from deployments.segmenters.classical.belief import guided
from serve.messages import UInt8Array

WORK_SIDE_PX = 512
BAND_PX = 7.0
"""How far at working size the true edge may lie from the rough one."""
STEP = 1 / 3
"""Colours nearby are averaged over every third pixel."""
NEAR_PX, FAR_PX = 5, 27
FAR_SHARE = 0.02
"""What colours further off count where none are near."""
NOISE = 4.0
"""Lab units by which a plain surface varies."""
MAX_ODDS = 5.0
EDGE_ODDS = 2.5
ROUNDS = 2
SOFT_PX = 2.5
MIN_CONTRAST = 14.0
GUIDE_RADIUS_PX = 3
GUIDE_EPSILON = 2e-3
MAX_SPECK = 3e-4
"""Of the picture's area."""
CHOKE = (0.2, 0.9)
"""Alpha below the first is background, above the second person: a halo is worse than a loss."""


@dataclass(frozen=True, slots=True)
class _Side:
    """Mean (H, W, 3) and variance of the colours on one side of the edge, around each pixel."""

    mean_hwc: Float32Array
    variance_hwc: Float32Array
    support_hw: Float32Array


def draw_matte(image_hwc: UInt8Array, body_hw: UInt8Array, sure_hw: BoolArray) -> UInt8Array:
    """Bring a small cut to full size along the picture's own edges.

    Args:
        body_hw: (h, w) of 0 and 1, of the picture's proportions.
        sure_hw: (h, w), true on what is the person in any case.

    Returns:
        (H, W): 255 on the person, 0 off it, soft along the edge.
    """
    height, width = image_hwc.shape[:2]
    scale = min(1.0, WORK_SIDE_PX / max(height, width))
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    small = cv2.resize(image_hwc, size, interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(small, cv2.COLOR_RGB2Lab).astype(np.float32)
    sure = _resized(sure_hw.astype(np.float32), size) > 0.5
    body = _resized(body_hw.astype(np.float32), size) > 0.5
    sides = _sides(lab, body)
    for _ in range(ROUNDS):
        body = _drawn_anew(lab, body, sides) | sure
        sides = _sides(lab, body)
    return _soften(image_hwc, body, sure, sides)


def _sides(lab_hwc: Float32Array, body_hw: BoolArray) -> tuple[_Side, _Side]:
    """Colours well inside and well outside."""
    inside, outside = _depths(body_hw)
    return tuple(  # type: ignore[return-value]
        _side(lab_hwc, (depth > BAND_PX * 0.6).astype(np.float32)) for depth in (inside, outside)
    )


def _depths(body_hw: BoolArray) -> tuple[Float32Array, Float32Array]:
    solid = body_hw.astype(np.uint8)
    inside = cv2.distanceTransform(solid, cv2.DIST_L2, 3)
    outside = cv2.distanceTransform(1 - solid, cv2.DIST_L2, 3)
    return np.asarray(inside, np.float32), np.asarray(outside, np.float32)


def _side(lab_hwc: Float32Array, weight_hw: Float32Array) -> _Side:
    size = lab_hwc.shape[1::-1]
    lab = cv2.resize(lab_hwc, None, fx=STEP, fy=STEP, interpolation=cv2.INTER_NEAREST)
    weight = cv2.resize(weight_hw, lab.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    weighted = lab * weight[..., None]
    sums = []
    for stack in (np.dstack([weighted, weight]), weighted * lab):
        near = cv2.blur(cv2.blur(stack, (NEAR_PX,) * 2), (NEAR_PX,) * 2)
        sums.append(near + FAR_SHARE * cv2.blur(stack, (FAR_PX,) * 2))
    support = np.maximum(sums[0][..., 3:], 1e-6)
    mean = np.asarray(sums[0][..., :3] / support, np.float32)
    variance = np.maximum(sums[1] / support - mean**2, 0.0) + NOISE**2
    return _Side(
        _resized(mean, size),
        _resized(np.asarray(variance, np.float32), size),
        _resized(sums[0][..., 3], size),
    )


def _drawn_anew(lab_hwc: Float32Array, body_hw: BoolArray, sides: tuple[_Side, _Side]) -> BoolArray:
    """The body with its edge moved, within the band, to where the colours change sides."""
    inside, outside = _depths(body_hw)
    place = np.clip((inside - outside) / BAND_PX, -1.0, 1.0) * EDGE_ODDS
    colour = np.clip(0.5 * (_distance(lab_hwc, sides[1]) - _distance(lab_hwc, sides[0])), -1e3, 1e3)
    seen = (sides[0].support_hw > 1e-3) & (sides[1].support_hw > 1e-3)
    odds = np.where(seen, np.clip(colour, -MAX_ODDS, MAX_ODDS), 0.0).astype(np.float32)
    odds = cv2.GaussianBlur(odds, (0, 0), 1.0) + place
    moved = np.where(inside + outside < BAND_PX, odds > 0, body_hw).astype(np.uint8)
    return np.asarray(cv2.medianBlur(moved, 5) > 0)


def _distance(lab_hwc: Float32Array, side: _Side) -> Float32Array:
    spread = (lab_hwc - side.mean_hwc) ** 2 / side.variance_hwc + np.log(side.variance_hwc)
    return np.asarray(spread.sum(axis=2), np.float32)


def _soften(
    image_hwc: UInt8Array, body_hw: BoolArray, sure_hw: BoolArray, sides: tuple[_Side, _Side]
) -> UInt8Array:
    """Alpha from where a pixel's colour lies on the line between the colours of both sides."""
    height, width = image_hwc.shape[:2]
    scale = width / body_hw.shape[1]
    hard = _resized(body_hw.astype(np.float32), (width, height))
    inside, outside = _depths(hard > 0.5)
    reach = SOFT_PX * scale
    soft = _along_line(image_hwc, hard, sides, max(round(GUIDE_RADIUS_PX * scale), 2))
    soft = np.clip((soft - CHOKE[0]) / (CHOKE[1] - CHOKE[0]), 0.0, 1.0)
    soft = np.where(inside > reach, 1.0, np.where(outside > reach, 0.0, soft))
    soft = np.where(_resized(sure_hw.astype(np.float32), (width, height)) > 0.5, 1.0, soft)
    return np.asarray(np.rint(_without_specks(np.asarray(soft, np.float32)) * 255.0), np.uint8)


def _along_line(
    image_hwc: UInt8Array, hard_hw: Float32Array, sides: tuple[_Side, _Side], radius_px: int
) -> Float32Array:
    """The hard edge made to follow how far each colour lies from the far side's to the near's."""
    height, width = hard_hw.shape
    x, y, w, h = cv2.boundingRect((hard_hw > 0).astype(np.uint8))
    margin = 4 * radius_px
    rows = slice(max(y - margin, 0), min(y + h + margin, height))
    columns = slice(max(x - margin, 0), min(x + w + margin, width))
    lab = cv2.cvtColor(image_hwc[rows, columns], cv2.COLOR_RGB2Lab).astype(np.float32)
    on, off = (_resized(side.mean_hwc, (width, height))[rows, columns] for side in sides)
    line, colour = on - off, lab - off
    length = np.einsum("hwc,hwc->hw", line, line)
    along = np.einsum("hwc,hwc->hw", colour, line) / (length + MIN_CONTRAST**2)
    guide = np.clip(along, -0.3, 1.3).astype(np.float32)
    soft = hard_hw.copy()
    soft[rows, columns] = guided(guide, hard_hw[rows, columns], radius_px, GUIDE_EPSILON)
    return soft


def _without_specks(alpha_hw: Float32Array) -> Float32Array:
    """Fill what is enclosed and tiny, drop what stands alone and is tiny."""
    clean = alpha_hw.copy()
    for value in (1.0, 0.0):
        part_hw = ((clean <= 0.5) if value else (clean > 0.5)).astype(np.uint8)
        _, labels, stats, _ = cv2.connectedComponentsWithStats(part_hw, connectivity=4)
        tiny = stats[:, cv2.CC_STAT_AREA] < MAX_SPECK * clean.size
        tiny[0] = False
        clean[tiny[labels]] = value
    return clean


def _resized(values: Float32Array, size: tuple[int, int]) -> Float32Array:
    return np.asarray(cv2.resize(values, size, interpolation=cv2.INTER_LINEAR), np.float32)
