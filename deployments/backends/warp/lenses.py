"""Finds the two lenses in a cut-out picture of glasses."""

from dataclasses import dataclass, replace
from itertools import combinations

import cv2
import numpy as np
from numpy.typing import NDArray

from serve.messages import UInt8Array

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

WORK_PX = 360
MIN_AREA = 0.01
"""Least area of a lens as a share of the cut-out's box: far lenses in steep views are small."""
SMOOTH_LEVELS = (5.0, 9.0, 15.0)
"""Gradients, in Lab units per pixel, below which a surface counts as one; tried in turn."""


@dataclass(frozen=True, slots=True)
class Lens:
    """One lens in product pixels."""

    outline: FloatArray
    """(n, 2) x, y of its convex outline."""
    area_px: float
    colour_lab: FloatArray
    is_clear: bool = False
    """Cut out together with the background that shines through it."""

    @property
    def centre(self) -> FloatArray:
        return np.asarray((self.outline.max(0) + self.outline.min(0)) / 2, np.float64)

    @property
    def size(self) -> FloatArray:
        return np.asarray(self.outline.max(0) - self.outline.min(0), np.float64)

    def is_alike(self, other: "Lens") -> bool:
        """Whether both are seen from the same angle, as in a front view."""
        ratio = min(self.area_px, other.area_px) / max(self.area_px, other.area_px)
        widths = min(self.size[0], other.size[0]) / max(self.size[0], other.size[0])
        return bool(ratio > 0.74 and widths > 0.82)

    def mirrored(self, width_px: int) -> "Lens":
        return replace(self, outline=self.outline * (-1.0, 1.0) + (width_px, 0.0))


def find_lenses(rgba_hwc: UInt8Array, are_twins: bool = False) -> tuple[Lens, Lens] | None:
    """The two lenses, left one first; None where no two blobs look like lenses.

    Args:
        are_twins: the frame is seen head-on, so one lens tells the other: a highlight that splits
            one of them does no harm.
    """
    scale = WORK_PX / max(rgba_hwc.shape[:2])
    size = [max(round(side * scale), 8) for side in rgba_hwc.shape[1::-1]]
    small = np.asarray(cv2.resize(rgba_hwc, size, interpolation=cv2.INTER_AREA), np.uint8)
    rgb = small[..., :3].astype(np.float32) / 255.0
    lab = np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB), np.float32)
    candidates = _holes(small[..., 3], lab)
    gradient = _gradient(np.asarray(cv2.GaussianBlur(lab, (0, 0), 1.0), np.float32))
    for level in SMOOTH_LEVELS:
        candidates += _blobs((gradient < level) & (small[..., 3] > 200), small[..., 3], lab)
    pairs = [(lens, lens.mirrored(size[0])) for lens in candidates]
    if not are_twins:
        pairs = list(combinations(candidates, 2))
    best = max(pairs, key=lambda pair: _score(*pair), default=None)
    if best is None or _score(*best) <= 0.0:
        return None
    left, right = sorted(best, key=lambda lens: float(lens.centre[0]))
    return _enlarged(left, 1 / scale), _enlarged(right, 1 / scale)


def _enlarged(lens: Lens, scale: float) -> Lens:
    return replace(lens, outline=lens.outline * scale, area_px=lens.area_px * scale**2)


def _gradient(lab: NDArray[np.float32]) -> NDArray[np.float32]:
    dx, dy = (cv2.Sobel(lab, cv2.CV_32F, *order, scale=0.25) for order in ((1, 0), (0, 1)))
    return np.asarray(np.sqrt((dx**2 + dy**2).sum(-1)), np.float32)


def _holes(alpha_hw: UInt8Array, lab: NDArray[np.float32]) -> list[Lens]:
    """Clear lenses: see-through places with the product all around."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats((alpha_hw < 100).astype(np.uint8))
    height, width = alpha_hw.shape
    found = []
    for label in range(1, count):
        x, y, w, h, _ = stats[label]
        if x > 0 and y > 0 and x + w < width and y + h < height:
            lenses = _lens(labels == label, alpha_hw, lab)
            found += [replace(lens, is_clear=True) for lens in lenses]
    return found


def _blobs(smooth: BoolArray, alpha_hw: UInt8Array, lab: NDArray[np.float32]) -> list[Lens]:
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    opened = cv2.morphologyEx(smooth.astype(np.uint8), cv2.MORPH_OPEN, kernel)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(opened)
    found = []
    for label in range(1, count):
        if stats[label, cv2.CC_STAT_AREA] < MIN_AREA * alpha_hw.size:
            continue
        blob = (labels == label).astype(np.uint8)
        ring = cv2.dilate(blob, np.ones((9, 9), np.uint8)) > cv2.dilate(
            blob, np.ones((5, 5), np.uint8)
        )
        if alpha_hw[ring].mean() > 0.8 * 255:
            found += _lens(blob > 0, alpha_hw, lab)
    return found


def _lens(blob: BoolArray, alpha_hw: UInt8Array, lab: NDArray[np.float32]) -> list[Lens]:
    """The blob as a lens, grown by what the gradient hid, if its shape allows."""
    grown = cv2.dilate(blob.astype(np.uint8), np.ones((3, 3), np.uint8))
    contours, _ = cv2.findContours(grown, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    contour = max(contours, key=cv2.contourArea)
    hull = cv2.convexHull(contour)[:, 0].astype(np.float64)
    area, hull_area = cv2.contourArea(contour), cv2.contourArea(hull.astype(np.float32))
    if area < MIN_AREA * blob.size or area < 0.86 * hull_area:
        return []
    width, height = hull.max(0) - hull.min(0)
    if not 0.25 < width / max(height, 1.0) < 3.2:
        return []
    colour = np.median(lab[blob], axis=0)
    wider = _same_glass(blob, alpha_hw > 127, lab, colour, 0.16 * float(min(width, height)))
    if cv2.contourArea(wider.astype(np.float32)) < 1.35 * hull_area:
        hull = wider
    return [Lens(hull, float(hull_area), colour.astype(np.float64))]


def _same_glass(
    blob: BoolArray,
    solid: BoolArray,
    lab: NDArray[np.float32],
    colour: NDArray[np.float32],
    reach_px: float,
) -> FloatArray:
    """Hull of the lens with its shaded border, which the gradient separates from it."""
    size = 2 * round(reach_px) + 1
    near = cv2.dilate(blob.astype(np.uint8), np.ones((size, size), np.uint8)) > 0
    off = np.abs(lab - colour) * (0.6, 1.0, 1.0)
    same = (blob | (near & solid & (np.sqrt((off**2).sum(-1)) < 24.0))).astype(np.uint8)
    same = cv2.morphologyEx(same, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    count, labels = cv2.connectedComponents(same)
    sizes = np.bincount(labels[blob], minlength=count)
    points = cv2.findNonZero((labels == int(sizes[1:].argmax()) + 1).astype(np.uint8))
    return np.asarray(cv2.convexHull(points)[:, 0], np.float64)


def _score(one: Lens, other: Lens) -> float:
    """Summed area where both look like the lenses of one frame, else 0."""
    left, right = sorted((one, other), key=lambda lens: float(lens.centre[0]))
    height = max(left.size[1], right.size[1])
    gap = right.outline[:, 0].min() - left.outline[:, 0].max()
    colour = float(np.linalg.norm((one.colour_lab - other.colour_lab) * (0.5, 1.0, 1.0)))
    fits = (
        -0.05 * height < gap < 1.3 * max(left.size[0], right.size[0])
        and min(left.size[1], right.size[1]) > 0.5 * height
        and min(one.area_px, other.area_px) > 0.2 * max(one.area_px, other.area_px)
        and abs(float((right.centre - left.centre)[1])) < 1.1 * height
        and colour < 22.0
    )
    if not fits:
        return 0.0
    # Perspective shrinks the far lens in width; a lens much taller than its twin has swallowed rim.
    alike = (min(left.size[1], right.size[1]) / height) ** 2 * (1.0 - colour / 30.0) ** 2
    return float((one.area_px + other.area_px) * alike)
