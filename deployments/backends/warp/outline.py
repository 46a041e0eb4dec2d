"""Finds the parts of a garment from its outline: shoulders, armpits, sleeves, crotch, hem."""

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from serve.messages import UInt8Array

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Sleeve:
    """One sleeve as cross-sections from the shoulder to the cuff."""

    axis: FloatArray
    """(n, 2) x, y of the middle of each section."""
    half_widths: FloatArray
    """(n,) px."""
    shoulder: FloatArray
    armpit: FloatArray
    mask_hw: BoolArray
    """Of the half of the garment that it hangs on."""
    hangs: bool
    """It hangs down along its armhole instead of standing off it."""


@dataclass(frozen=True, slots=True)
class GarmentOutline:
    """Where the body of a garment runs; sleeves are apart from it."""

    left: FloatArray
    """(h,) x of the body's edge at the image's left, per row."""
    right: FloatArray
    shoulder_y: float
    """Row at which the shoulder tips lie."""
    armpit_y: float
    """Row below which the body's width counts; of a sleeveless garment too."""
    left_sleeve: Sleeve | None
    right_sleeve: Sleeve | None
    crotch_y: float | None
    """Row of the crotch, which legs that touch may hide; None for a skirt."""
    gap_y: float
    """Row below which the legs are seen apart."""
    hem_y: float
    """Last row of the body; a sleeve or a pull cord may hang lower."""

    @property
    def centre(self) -> FloatArray:
        return np.asarray((self.left + self.right) / 2.0)

    @property
    def chest_px(self) -> float:
        row = int(self.armpit_y)
        return float(self.right[row] - self.left[row])


def extents(mask_hw: BoolArray) -> tuple[FloatArray, FloatArray]:
    """First and last column (exclusive) of the mask per row; empty rows copy their neighbours."""
    rows = np.flatnonzero(mask_hw.any(axis=1))
    left = mask_hw.argmax(axis=1).astype(float)
    right = mask_hw.shape[1] - mask_hw[:, ::-1].argmax(axis=1).astype(float)
    every = np.arange(mask_hw.shape[0])
    return np.interp(every, rows, left[rows]), np.interp(every, rows, right[rows])


def smooth(values: FloatArray, radius: int) -> FloatArray:
    if radius < 1:
        return values
    kernel = np.hanning(2 * radius + 3)[1:-1]
    padded = np.pad(values, radius, mode="edge")
    return np.convolve(padded, kernel / kernel.sum(), mode="valid")


def read_upper(product_hwc: UInt8Array, is_dress: bool) -> GarmentOutline:
    """Parts of a top or a dress."""
    mask = product_hwc[..., 3] > 127
    height = mask.shape[0]
    middle = _middle_column(mask)
    sleeves = (
        _read_half(mask[:, :middle]),
        _mirrored(_read_half(mask[:, middle:][:, ::-1]), mask.shape[1]),
    )
    body = mask.copy()
    for sleeve in sleeves:
        if sleeve is not None:
            columns = slice(0, middle) if sleeve.armpit[0] < middle else slice(middle, None)
            body[:, columns] &= ~sleeve.mask_hw
    left, right = extents(body)
    present = [sleeve for sleeve in sleeves if sleeve is not None]
    if present:
        armpit_y = float(np.mean([sleeve.armpit[1] for sleeve in present]))
        shoulder_y = float(np.mean([sleeve.shoulder[1] for sleeve in present]))
    else:
        armpit_y = _sleeveless_armpit(left, right, height, is_dress)
        shoulder_y = _sleeveless_shoulder(mask, armpit_y)
    upper = slice(0, int(armpit_y) + 1)
    above = np.arange(height) < armpit_y
    # Above the armpits the body keeps its width: straps and collars are drawn inside of it.
    outer = np.percentile(left[upper], 8), np.percentile(right[upper], 92)
    if present:
        edges = [sleeve.armpit[0] for sleeve in present]
        outer = (
            (min(edges), max(edges))
            if len(edges) == 2
            else (left[int(armpit_y)], right[int(armpit_y)])
        )
        if any(sleeve.hangs for sleeve in present):
            # A sleeve before the body hides its edge.
            left, right = np.minimum(left, outer[0]), np.maximum(right, outer[1])
    left = np.where(above, min(left[int(armpit_y)], outer[0]), left)
    right = np.where(above, max(right[int(armpit_y)], outer[1]), right)
    hem_y = _find_hem(body)
    # The corners of a hem are round; the body of the garment goes on straight there.
    corners = slice(int(0.9 * hem_y), None)
    left[corners] = np.minimum.accumulate(left[corners])
    right[corners] = np.maximum.accumulate(right[corners])
    radius = height // 40
    return GarmentOutline(
        smooth(left, radius),
        smooth(right, radius),
        shoulder_y,
        armpit_y,
        *sleeves,
        None,
        hem_y,
        hem_y,
    )


def read_lower(product_hwc: UInt8Array) -> GarmentOutline:
    """Parts of trousers, shorts or a skirt."""
    mask = product_hwc[..., 3] > 127
    left, right = extents(mask)
    gap = _find_gap(mask)
    # Legs that touch part later than they begin: a rise is at most this share of the hips.
    crotch = None if gap is None else min(gap, 0.78 * float((right - left).max()))
    radius, hem = mask.shape[0] // 50, mask.shape[0] - 1.0
    edges = smooth(left, radius), smooth(right, radius)
    return GarmentOutline(*edges, 0.0, 0.0, None, None, crotch, gap or hem, hem)


def _middle_column(mask_hw: BoolArray) -> int:
    # The upper part's middle: a hem may hang to one side.
    left, right = extents(mask_hw)
    upper = slice(0, max(1, mask_hw.shape[0] // 3))
    return int(np.clip(np.median((left[upper] + right[upper]) / 2), 2, mask_hw.shape[1] - 3))


def _mirrored(sleeve: Sleeve | None, width: int) -> Sleeve | None:
    if sleeve is None:
        return None
    flip, shift = np.array([-1.0, 1.0]), np.array([width - 1.0, 0.0])
    moved = [points * flip + shift for points in (sleeve.axis, sleeve.shoulder, sleeve.armpit)]
    return replace(
        sleeve,
        axis=moved[0],
        shoulder=moved[1],
        armpit=moved[2],
        mask_hw=sleeve.mask_hw[:, ::-1],
    )


def _read_half(half_hw: BoolArray) -> Sleeve | None:
    """The sleeve in the left half of a garment, its body to the right."""
    notch = _find_notch(half_hw, 1)
    if notch is None:
        # Between a cuff and a flared skirt the waist is deeper than the armpit: look above it.
        waist = _find_waist(half_hw)
        notch = _find_notch(half_hw[:waist], max(1, half_hw.shape[0] // 20))
        half_hw = half_hw & (np.arange(half_hw.shape[0]) < waist)[:, None]
    if notch is None:
        return None
    armpit = inner = notch
    if notch[1] > 0.5 * half_hw.shape[0]:
        armpit, inner = _lift_armpit(half_hw, notch)
    shoulder = _find_shoulder(half_hw, armpit)
    return _read_sleeve(half_hw, shoulder, armpit, [inner, notch])


def _find_waist(half_hw: BoolArray) -> int:
    """Row of the narrowest place between chest and hips."""
    low, high = int(0.2 * half_hw.shape[0]), int(0.6 * half_hw.shape[0])
    left, _ = extents(half_hw)
    return max(3, low + int(left[low : high + 1].argmax()))


def _find_notch(half_hw: BoolArray, cuff_px: int) -> FloatArray | None:
    """Deepest notch that opens downward between sleeve and body; None without a sleeve.

    Args:
        cuff_px: rows within which the sleeve must end above the notch.
    """
    contours, _ = cv2.findContours(
        half_hw.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    if not contours:
        return None
    contour = max(contours, key=cv2.contourArea)
    if len(contour) < 20:
        return None
    hull = np.sort(cv2.convexHull(contour, returnPoints=False), axis=0)[::-1]
    defects = cv2.convexityDefects(contour, hull)
    height, width = half_hw.shape
    deepest, found = 0.06 * width, None
    for start, end, far, depth in [] if defects is None else defects[:, 0]:
        notch = contour[far, 0].astype(float)
        x, y = contour[far, 0]
        outside = np.flatnonzero(half_hw[max(0, y - cuff_px), : max(0, x - 2)])
        has_sleeve = outside.size > (0.05 if cuff_px == 1 else 0.15) * width
        below = half_hw[min(height - 1, y + height // 40), max(0, x - 2) : x + 1]
        lowest = max(contour[start, 0, 1], contour[end, 0, 1])
        is_open = not below.all() and lowest > y + 0.03 * height
        if has_sleeve and is_open and 0.08 * height < y < 0.93 * height and depth / 256 > deepest:
            deepest, found = depth / 256.0, notch
    return found


def _lift_armpit(half_hw: BoolArray, notch: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Armpit, and inner edge of the sleeve beside it, of a sleeve that hangs before the body."""
    left, _ = extents(half_hw)
    top = int(np.flatnonzero(half_hw.any(axis=1))[0])
    row = int(top + 0.36 * (notch[1] - top))
    width = 1.08 * (notch[0] - left[int(notch[1])])
    return np.array([notch[0], float(row)]), np.array([left[row] + width, float(row)])


def _find_shoulder(half_hw: BoolArray, armpit: FloatArray) -> FloatArray:
    """Top of the armhole: above the armpit."""
    column = int(np.clip(armpit[0], 0, half_hw.shape[1] - 1))
    rows = np.flatnonzero(half_hw[: int(armpit[1]), column])
    return np.array([float(column), float(rows[0]) if rows.size else 0.0])


def _read_sleeve(
    half_hw: BoolArray, shoulder: FloatArray, armpit: FloatArray, edge: list[FloatArray]
) -> Sleeve | None:
    y, x = np.mgrid[: half_hw.shape[0], : half_hw.shape[1]].astype(float)
    inner, notch = edge
    knots = [shoulder[1], inner[1], max(notch[1], inner[1] + 1e-3)]
    seam = np.interp(y, knots, [shoulder[0], inner[0], notch[0]])
    part = (half_hw & (x < seam)).astype(np.uint8)
    _, labels = cv2.connectedComponents(part)
    # A flared hem reaches beyond the seam too; the sleeve is what touches the armhole.
    armhole = np.linspace(shoulder, armpit, 12)[2:-1].round().astype(int)
    hits = [labels[row, max(0, column - 3)] for column, row in armhole]
    touching = [label for label in hits if label]
    if not touching:
        return None
    mask = labels == np.bincount(touching).argmax()
    points = np.argwhere(mask)[:, ::-1].astype(float)
    start = (shoulder + armpit) / 2.0
    distance = np.linalg.norm(points - start, axis=1)
    cuff = points[distance > np.percentile(distance, 90)].mean(axis=0)
    if np.linalg.norm(cuff - start) < 0.3 * np.linalg.norm(shoulder - armpit):
        return None
    hangs = armpit is not inner
    axis, half_widths = _slice_sleeve(points, shoulder if hangs else start, cuff)
    return Sleeve(axis, half_widths, shoulder, armpit, mask, hangs)


def _slice_sleeve(
    points: FloatArray, start: FloatArray, cuff: FloatArray
) -> tuple[FloatArray, FloatArray]:
    direction = (cuff - start) / np.linalg.norm(cuff - start)
    normal = np.array([-direction[1], direction[0]])
    along, across = (points - start) @ direction, (points - start) @ normal
    end = float(np.percentile(along, 99.8))
    edges = np.linspace(0.0, end, 13)
    middle, half = [], []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = across[(along >= low) & (along <= high)]
        bounds = (inside.min(), inside.max()) if inside.size > 3 else (-1.0, 1.0)
        middle.append((bounds[0] + bounds[1]) / 2)
        half.append((bounds[1] - bounds[0]) / 2)
    centres = (edges[:-1] + edges[1:]) / 2
    # Rounded ends of the cuff and the slanted armhole must not pull the axis sideways.
    offset = np.interp(edges, centres[1:-1], np.array(middle)[1:-1])
    widths = np.interp(edges, centres[1:-1], np.array(half)[1:-1])
    axis = start + edges[:, None] * direction + smooth(offset, 2)[:, None] * normal
    return axis, smooth(widths, 2)


def _sleeveless_armpit(left: FloatArray, right: FloatArray, height: int, is_dress: bool) -> float:
    """Bottom of the armholes: the narrowest row below wide shoulders, or where straps end."""
    widths = smooth(right - left, height // 60)
    low, high = (
        (int(0.10 * height), int(0.28 * height))
        if is_dress
        else (int(0.18 * height), int(0.42 * height))
    )
    chest = widths[low : high + 1]
    if widths[: low + 1].max() > 1.06 * chest.min():
        return float(low + chest.argmin())
    return float(low + np.argmax(chest >= 0.97 * chest.max()))


def _find_hem(body_hw: BoolArray) -> float:
    widths = body_hw.sum(axis=1)
    return float(np.flatnonzero(widths > 0.3 * np.median(widths[widths > 0]))[-1])


def _sleeveless_shoulder(mask_hw: BoolArray, armpit_y: float) -> float:
    rows = mask_hw[: max(2, int(armpit_y))]
    columns = np.flatnonzero(rows.any(axis=0))
    tops = rows.argmax(axis=0)[columns]
    outer = np.concatenate([tops[: max(1, len(tops) // 6)], tops[-max(1, len(tops) // 6) :]])
    return float(np.percentile(outer, 25))


def _find_gap(mask_hw: BoolArray) -> float | None:
    """Row at which the gap between the legs starts; None when there is no gap."""
    height, width = mask_hw.shape
    left, right = extents(mask_hw)
    centre = (left + right) / 2
    gap = np.zeros(height, bool)
    for row in range(int(0.1 * height), height):
        reach = 0.22 * (right[row] - left[row])
        window = mask_hw[row, int(centre[row] - reach) : int(centre[row] + reach) + 1]
        gap[row] = window.size > 0 and not window.all()
    below = gap[::-1].argmin() if not gap.all() else height
    # A notch at the hem is no crotch, but shorts part over a small share of their height.
    rows = np.flatnonzero(gap)
    if rows.size < 0.05 * height or below == 0 and rows.size < 0.2 * height:
        return None
    return float(rows[0])
