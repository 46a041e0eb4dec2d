"""A person without a visible face: what stands out, and whether it is somebody."""

import cv2
import numpy as np

from deployments.segmenters.classical.barrier import (
    BoolArray,
    Float32Array,
    barrier_distance,
    border_seeds,
)
from deployments.segmenters.classical.belief import weigh
from deployments.segmenters.classical.figure import CROTCH, SOLE, Figure
from deployments.segmenters.classical.skin import loose_skin
from serve.messages import UInt8Array

MIN_CONTRAST = 14.0
"""Lab units by which the subject must stand out from everything along the border."""
AREA = (0.05, 0.7)
MIN_LIMB = 0.03
"""Of the subject's area: smaller patches of skin colour are no limb."""
MAX_LIMB_SLOPE = 10.0
"""Lab units per pixel at reduced size."""
CROWN = 1.1
"""Top of the head, or of a hat, above the eyes in face sizes."""


def stand_out(lab_hwc: UInt8Array) -> tuple[Float32Array, Float32Array] | None:
    """Belief (H, W) in what differs from the border, and its prior.

    Returns None when nothing stands out from the border clearly.
    """
    height, width = lab_hwc.shape[:2]
    seeds = border_seeds(lab_hwc, int(0.3 * height))
    distance = barrier_distance(lab_hwc, seeds)
    edge = float(np.percentile(distance[_ring(height, width)], 75))
    middle = distance[int(0.2 * height) :, int(0.25 * width) : int(0.75 * width)]
    contrast = float(np.percentile(middle, 70)) - edge
    if contrast < MIN_CONTRAST:
        return None
    prior = np.clip((distance - edge - 0.35 * contrast) / (0.2 * contrast), -2.0, 2.0)
    prior[distance > edge + contrast] = 5.0
    return weigh(lab_hwc, prior.astype(np.float32), seeds, np.ones_like(distance))


def _ring(height: int, width: int) -> BoolArray:
    ring = np.ones((height, width), np.bool_)
    ring[int(0.06 * height) :, int(0.06 * width) : int(0.94 * width)] = False
    ring[int(0.6 * height) :] = False
    return ring


def is_body_shaped(body_hw: UInt8Array) -> bool:
    """True for a subject of a person's size and build."""
    _, _, width, height = cv2.boundingRect(body_hw)
    is_sized = AREA[0] < float(body_hw.mean()) < AREA[1]
    return is_sized and height > 0.45 * body_hw.shape[0] and height > 0.9 * width


def count_limbs(image_hwc: UInt8Array, body_hw: UInt8Array) -> int:
    """Smooth patches of skin colour on the subject; prints and patterns are not smooth."""
    inner = np.asarray(cv2.erode(body_hw, np.ones((3, 3), np.uint8)), np.uint8)
    skin = cv2.morphologyEx(loose_skin(image_hwc) & inner, cv2.MORPH_OPEN, np.ones((3, 3)))
    count, parts, stats, _ = cv2.connectedComponentsWithStats(np.asarray(skin, np.uint8))
    light = cv2.cvtColor(image_hwc, cv2.COLOR_RGB2Lab)[..., 0].astype(np.float32)
    slope = np.hypot(cv2.Sobel(light, cv2.CV_32F, 1, 0), cv2.Sobel(light, cv2.CV_32F, 0, 1)) / 4
    large = stats[:, cv2.CC_STAT_AREA] > MIN_LIMB * float(body_hw.sum())
    return sum(
        bool(large[part]) and float(np.median(slope[parts == part])) < MAX_LIMB_SLOPE
        for part in range(1, count)
    )


def guess_figure(body_hw: UInt8Array) -> Figure:
    """Proportions from the outline alone: crown to crotch, or crown to sole, or the width."""
    height = body_hw.shape[0]
    rows = np.flatnonzero(body_hw.any(axis=1))
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    trunk = body_hw[int(top + 0.35 * (bottom - top)) : int(top + 0.75 * (bottom - top))]
    columns = np.flatnonzero(trunk.sum(axis=0) > 0.5 * trunk.shape[0])
    width = float(max(columns.size, 4))
    centre = float(columns.mean()) if columns.size else body_hw.shape[1] / 2
    crotch = _split_row(body_hw, centre, width, top)
    if crotch is not None:
        unit = (crotch - top) / (CROTCH + CROWN)
    elif bottom < 0.985 * height:
        unit = (bottom - top) / (SOLE + CROWN)
    else:
        unit = width / 1.7
    unit = float(np.clip(unit, width / 2.6, width / 1.1))
    return Figure((centre, top + CROWN * unit), centre, unit)


def _split_row(body_hw: UInt8Array, centre: float, width: float, top: int) -> float | None:
    """The first row from which the body stays parted near its middle, down to its end."""
    low, high = int(centre - 0.35 * width), int(centre + 0.35 * width) + 1
    gaps = (body_hw[:, max(low, 0) : high] == 0).any(axis=1) & body_hw.any(axis=1)
    rows = np.flatnonzero(body_hw.any(axis=1))
    lower = gaps[int(top + 0.4 * rows.size) : rows[-1] + 1]
    parted = np.flatnonzero(~lower)
    first = int(parted[-1]) + 1 if parted.size else 0
    if len(lower) - first < 0.04 * rows.size:
        return None
    return float(top + 0.4 * rows.size + first)
