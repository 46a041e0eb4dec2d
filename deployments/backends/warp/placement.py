"""Where parts of a garment fall: grids from product to crop pixels along a body."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deployments.backends.warp.body import Body, Path
from deployments.backends.warp.mesh import Grid
from deployments.backends.warp.outline import GarmentOutline, extents, smooth
from serve.messages import UInt8Array

FloatArray = NDArray[np.float64]

COLUMNS = np.array([-1.3, -1.0, -0.6, 0.0, 0.6, 1.0, 1.3])
"""Mesh columns in half-widths; beyond 1 for what sticks out of the body's smoothed outline."""


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of the product and where it goes."""

    product_hwc: UInt8Array
    source: Grid
    target: Grid
    is_sleeve: bool = False
    side: int = 0
    """Of a sleeve: 0 for the image's left arm."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Masks that a garment is fitted to, (H, W), 255 inside."""

    person_hw: UInt8Array
    garment_hw: UInt8Array
    """The old garment where it is known, else the person."""
    region_hw: UInt8Array
    hem_depth: float | None = None
    """Where the old top ends, in torso lengths below the shoulders."""


def frames(path: Path, t: FloatArray, body: Body) -> tuple[FloatArray, FloatArray]:
    """Position on the axis and the direction across it, from the image's left to right."""
    place, tangent = path.at(t)
    square = np.stack([tangent[:, 1], -tangent[:, 0]], axis=1)
    hips = body.hips[1] - body.hips[0]
    hips = hips / max(float(np.linalg.norm(hips)), 1e-6)
    share = np.clip(t / max(body.torso_px, 1.0), 0.0, 1.0)[:, None]
    joints = (1 - share) * body.across + share * np.where(hips @ body.across > 0.5, hips, square)
    own = 0.5 + 0.3 * (1 - share)  # a seam follows the shoulders more closely than the hips
    across = (1 - own) * square + own * joints
    length = np.linalg.norm(across, axis=1, keepdims=True)
    return place, np.asarray(across / length, np.float64)


def source_rows(rows: FloatArray, outline: GarmentOutline) -> Grid:
    every = np.arange(len(outline.left))
    index = rows.clip(0, len(every) - 1)
    centre = np.interp(index, every, smooth(outline.centre, len(every) // 12))
    half = np.interp(index, every, outline.right - outline.left) / 2
    x = centre[:, None] + COLUMNS * half[:, None]
    return np.stack([x, np.broadcast_to(rows[:, None], x.shape)], axis=-1)


def spread(halves: FloatArray) -> FloatArray:
    return np.asarray(np.where(COLUMNS < 0, halves[:, :1], halves[:, 1:]) * COLUMNS)


def fit_region(product_hwc: UInt8Array, region_hw: UInt8Array) -> list[Part]:
    """Without a known body: into the region's shape, keeping the product's proportions."""
    mask = region_hw > 0
    left, right = extents(mask)
    inside = np.flatnonzero(mask.any(axis=1))
    top, bottom = float(inside[0]), float(inside[-1])
    height, width = product_hwc.shape[:2]
    room = float(np.percentile(right[inside] - left[inside], 75))
    scale = min(room / width, 1.15 * (bottom - top + 1) / height)
    rows = np.linspace(-2.0, height + 2.0, 24)
    y = top + rows * min((bottom - top + 1) / height, 1.25 * scale)
    # A straight line: a mask's bays, for hands or hair, must not bend the product.
    degree = 1 if len(inside) > 16 else 0
    *slopes, offset = np.polyfit(inside, ((left + right) / 2)[inside], degree)
    slope = slopes[0] if slopes else 0.0
    centre = offset + np.clip(slope, -0.35, 0.35) * y
    if abs(slope) > 0.35:
        centre += float(np.median((left + right)[inside]) / 2 - np.median(centre))
    half = np.full(len(rows), scale * width / 2)
    columns = np.linspace(-1.02, 1.02, 7)
    x = centre[:, None] + columns * half[:, None]
    source_x = width / 2 + columns * width / 2
    source = np.stack(np.broadcast_arrays(source_x[None, :], rows[:, None]), axis=-1)
    target = np.stack(np.broadcast_arrays(x, y[:, None]), axis=-1)
    return [Part(product_hwc, source, target)]
