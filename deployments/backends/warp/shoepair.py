"""Tells a pair of overlapping shoes from one shoe, and cuts out the nearer one.

Both shoes of a catalogue pair stand alike: the rear one is the front one moved by a step, and
drawn smaller where the camera was near.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from serve.messages import UInt8Array

FloatArray = NDArray[np.float64]
Float32Array = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

WORK_PX = 112
MIN_STEP, MAX_STEP = 0.15, 0.60
"""Least and most step of a pair along x, in widths of the cut-out."""
REAR_SCALES = (1.0, 0.9)
MAX_CANDIDATES = 120
MIN_EXPLAINED = 0.93
"""Share of the outline that one shoe and its moved copy must fill."""
MIN_LIKENESS = -0.2
"""Correlation minus difference of the rear shoe and its model: pairs measured 0.2 to 0.5, single
shoes -0.6 to -0.9."""
MIN_EDGE = 4.0
"""Lab units per small pixel along the front shoe's outline before the rear one; inside the plain
leather of a single shoe it is below 2."""
REAR_DIFFERENCE = 0.6
"""Difference, in spreads of the product's colours, up to which a pixel looks like the rear shoe."""


@dataclass(frozen=True, slots=True)
class Step:
    """From the front shoe of a pair to the rear one: points times scale plus offset."""

    offset: FloatArray
    """(x, y) in pixels."""
    scale: float = 1.0

    def grown(self, factor: float) -> "Step":
        """The same step in a picture this many times larger."""
        return Step(self.offset * factor, self.scale)


def find_step(rgba_hwc: UInt8Array) -> Step | None:
    """From the front shoe of a pair to the rear one; None for a single shoe."""
    scale = WORK_PX / max(rgba_hwc.shape[:2])
    size = [max(round(side * scale), 8) for side in rgba_hwc.shape[1::-1]]
    small = np.asarray(cv2.resize(rgba_hwc, size, interpolation=cv2.INTER_AREA), np.uint8)
    mask = (small[..., 3] > 127).astype(np.uint8)
    lab = _lab(small, 1.0)
    detail, inner = _detail(lab, mask)
    scores = [
        (_score(lab, detail, mask, inner, step), k, step)
        for k, step in enumerate(_all_steps(detail, inner))
    ]
    best, _, found = max(scores, default=(-1.0, 0, Step(np.zeros(2))))
    if best < MIN_LIKENESS or not _has_edge_between(small, mask, found):
        return None
    return found.grown(1.0 / scale)


def split_front(rgba_hwc: UInt8Array, step: Step) -> UInt8Array:
    """Only the front shoe: its sure part, grown along the picture's own edges."""
    width = rgba_hwc.shape[1]
    mask = (rgba_hwc[..., 3] > 127).astype(np.uint8)
    # As far as the shoe is convex it lies where both x and x + step are in the outline.
    front = mask & _moved_back(_dilated(mask, _disc(0.012 * width)), step)
    front = np.asarray(cv2.morphologyEx(front, cv2.MORPH_OPEN, _disc(0.008 * width)), np.uint8)
    rest = mask & (1 - front)
    behind = cv2.dilate(_moved(mask, step), _disc(0.012 * width))
    lab = _lab(rgba_hwc, 0.006 * width)
    difference = _difference(lab, mask > 0, step)
    difference = np.asarray(cv2.GaussianBlur(difference, (0, 0), 0.02 * width), np.float32)
    is_rear = (rest > 0) & (behind > 0) & (difference < REAR_DIFFERENCE)
    is_rear &= cv2.dilate(front, _disc(0.04 * width)) == 0
    # A rear shoe drawn smaller is only roughly a copy.
    sure = 0.02 if step.scale == 1.0 else 0.08
    is_front = (cv2.erode(front, _disc(sure * width)) > 0) | ((mask > 0) & (behind == 0))
    is_front |= (front > 0) & (cv2.dilate(rest, _disc(0.03 * width)) == 0)
    markers = np.zeros(mask.shape, np.int32)
    markers[is_front], markers[is_rear], markers[mask == 0] = 1, 2, 3
    smooth = cv2.bilateralFilter(np.ascontiguousarray(rgba_hwc[..., :3]), 5, 20, 3)
    cv2.watershed(smooth, markers)
    return _keep(rgba_hwc, (markers == 1).astype(np.uint8) & mask)


def _keep(rgba_hwc: UInt8Array, front: UInt8Array) -> UInt8Array:
    """The picture under a smoothed mask; the outline against nothing keeps its own alpha."""
    width = rgba_hwc.shape[1]
    front = np.asarray(cv2.morphologyEx(front, cv2.MORPH_CLOSE, _disc(0.012 * width)), np.uint8)
    front = np.asarray(cv2.morphologyEx(front, cv2.MORPH_OPEN, _disc(0.02 * width)), np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(front)
    if len(stats) > 1:
        front = (labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())).astype(np.uint8)
    soft = cv2.GaussianBlur(cv2.dilate(front, _disc(1)).astype(np.float32), (0, 0), 0.8)
    out = rgba_hwc.copy()
    out[..., 3] = np.rint(out[..., 3] * np.clip(1.6 * soft - 0.3, 0.0, 1.0))
    return out


def _all_steps(detail: Float32Array, inner: UInt8Array) -> list[Step]:
    """Steps worth a closer look, in small pixels."""
    area = max(float(inner.sum()), 1.0)
    steps = []
    for scale in REAR_SCALES:
        alike = Step(np.zeros(2), scale)
        # Smooth pictures: a shoe a little smaller is alike enough to be compared pixel by pixel.
        one = np.asarray(_shifted(detail, alike), np.float32)
        likeness, overlap = _correlate(one, _moved(inner, alike), detail, inner)
        steps += [
            Step(np.array(at, np.float64), scale) for at in _peaks(likeness, overlap / area, scale)
        ]
    return steps


def _peaks(likeness: FloatArray, overlap: FloatArray, scale: float) -> list[tuple[int, int]]:
    """Offsets (x, y) in small pixels: the rear shoe is beside, or smaller and above."""
    rows, columns = likeness.shape
    y, x = np.mgrid[:rows, :columns] - np.array([rows // 2, columns // 2])[:, None, None]
    width = columns // 2
    # Where the middle of the shoe goes.
    x = x - (1.0 - scale) * 0.5 * width
    y = y + (1.0 - scale) * -0.25 * rows
    beside = (np.abs(x) > MIN_STEP * width) & (np.abs(y) < 0.6 * np.abs(x)) & (y < 0.05 * width)
    above = (y < -MIN_STEP * width) & (np.abs(x) < 0.4 * np.abs(y))
    fits = (beside if scale == 1.0 else above) & (np.hypot(x, y) < MAX_STEP * width)
    fits &= (likeness > 0.04) & (overlap > 0.2)
    x0, y0 = columns // 2, rows // 2
    picked = np.argsort(np.where(fits, likeness, -1.0), axis=None)[::-1][:MAX_CANDIDATES]
    where = [np.unravel_index(at, fits.shape) for at in picked if fits.flat[at]]
    return [(int(column) - x0, int(row) - y0) for row, column in where]


def _score(
    lab: Float32Array,
    detail: Float32Array,
    mask: UInt8Array,
    inner: UInt8Array,
    step: Step,
) -> float:
    """How well what shows of the rear shoe looks like the front shoe moved there."""
    front = mask & _moved_back(_dilated(mask, np.ones((5, 5), np.uint8)), step)
    rear = _moved(front, step)
    area = max(float(mask.sum()), 1.0)
    if float(((front | rear) & mask).sum()) < MIN_EXPLAINED * area:
        return -1.0
    shown = (inner & (1 - front) & rear & _moved(inner, step)) > 0
    if shown.sum() < 0.06 * area:
        return -1.0
    one, other = detail[shown], _shifted(detail, step)[shown]
    energy = float(np.sqrt((one**2).sum() * (other**2).sum()))
    difference = _difference(lab, mask > 0, step)[shown]
    return float((one * other).sum()) / max(energy, 1e-6) - float(np.sqrt((difference**2).mean()))


def _has_edge_between(small: UInt8Array, mask: UInt8Array, step: Step) -> bool:
    """Whether the picture has an edge where the front shoe would end before the rear one."""
    front = mask & _moved_back(_dilated(mask, np.ones((5, 5), np.uint8)), step)
    kernel = np.ones((3, 3), np.uint8)
    rest = np.asarray(cv2.morphologyEx(mask & (1 - front), cv2.MORPH_OPEN, kernel), np.uint8)
    inside = np.asarray(cv2.erode(mask, np.ones((5, 5), np.uint8)), np.uint8)
    between = front & _dilated(rest, kernel) & inside
    if not between.any():
        return False
    lab = _lab(small, 0.6)
    slopes = (cv2.Sobel(lab, cv2.CV_32F, x, y, scale=0.25) for x, y in ((1, 0), (0, 1)))
    edge = np.sqrt(np.sum([(slope**2).sum(-1) for slope in slopes], axis=0))
    near = cv2.dilate(np.asarray(edge, np.float32), np.ones((5, 5), np.uint8))
    return bool(np.median(near[between > 0]) > MIN_EDGE)


def _difference(lab: Float32Array, mask: BoolArray, step: Step) -> Float32Array:
    """Colour distance to the picture moved by the step, in spreads of the product's colours."""
    product = lab[mask]
    spread = float(np.sqrt(((product - product.mean(0)) ** 2).sum(-1).mean()))
    off = lab - _shifted(lab, step)
    return np.asarray(np.sqrt((off**2).sum(-1)) / max(spread, 1e-3), np.float32)


def _detail(lab: Float32Array, mask: UInt8Array) -> tuple[Float32Array, UInt8Array]:
    """Colour against the surroundings: what tells seams, laces and prints from plain leather."""
    inner = np.asarray(cv2.erode(mask, np.ones((3, 3), np.uint8)), np.uint8)
    weight = inner.astype(np.float32)[..., None]
    broad = cv2.GaussianBlur(lab * weight, (0, 0), 5.0)
    share = np.maximum(cv2.GaussianBlur(inner.astype(np.float32), (0, 0), 5.0), 1e-3)
    return np.asarray((lab - broad / share[..., None]) * weight, np.float32), inner


def _correlate(
    first: Float32Array, first_inner: UInt8Array, second: Float32Array, second_inner: UInt8Array
) -> tuple[FloatArray, FloatArray]:
    """Normalised correlation of two pictures at every step, and pixels in common."""
    size = tuple(2 * side for side in first_inner.shape)

    def spectra(detail: Float32Array, inner: UInt8Array) -> NDArray[np.complex128]:
        square = (detail.astype(np.float64) ** 2).sum(-1)
        planes = np.stack([*np.moveaxis(detail.astype(np.float64), -1, 0), square, inner])
        return np.asarray(np.fft.rfft2(planes, size), np.complex128)

    def back(product: NDArray[np.complex128]) -> FloatArray:
        return np.asarray(np.fft.fftshift(np.fft.irfft2(product, size)), np.float64)

    one, other = np.conj(spectra(first, first_inner)), spectra(second, second_inner)
    energy = np.sqrt(np.maximum(back(one[3] * other[4]) * back(one[4] * other[3]), 1e-6))
    common = back((one[:3] * other[:3]).sum(0))
    return np.asarray(common / energy, np.float64), back(one[4] * other[4])


def _lab(rgba_hwc: UInt8Array, sigma_px: float) -> Float32Array:
    rgb = cv2.GaussianBlur(rgba_hwc[..., :3], (0, 0), max(sigma_px, 0.3))
    return np.asarray(cv2.cvtColor(rgb.astype(np.float32) / 255.0, cv2.COLOR_RGB2LAB), np.float32)


def _shifted(image: Float32Array, step: Step) -> Float32Array:
    return np.asarray(cv2.warpAffine(image, _matrix(step), image.shape[1::-1]), np.float32)


def _moved(mask: UInt8Array, step: Step, is_back: bool = False) -> UInt8Array:
    flags = cv2.INTER_NEAREST | (cv2.WARP_INVERSE_MAP if is_back else 0)
    return np.asarray(cv2.warpAffine(mask, _matrix(step), mask.shape[::-1], flags=flags), np.uint8)


def _moved_back(mask: UInt8Array, step: Step) -> UInt8Array:
    return _moved(mask, step, True)


def _matrix(step: Step) -> FloatArray:
    return np.array([[step.scale, 0, step.offset[0]], [0, step.scale, step.offset[1]]], np.float64)


def _dilated(mask: UInt8Array, kernel: UInt8Array) -> UInt8Array:
    return np.asarray(cv2.dilate(mask, kernel), np.uint8)


def _disc(radius_px: float) -> UInt8Array:
    size = 2 * max(round(radius_px), 1) + 1
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size)), np.uint8)
