"""Reads a pair of glasses out of a cut-out product: front seen head-on, lenses, one temple."""

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from deployments.backends.warp.lenses import Lens, find_lenses
from deployments.backends.warp.rim import repair_rim
from serve.messages import UInt8Array

FloatArray = NDArray[np.float64]

MIN_FRONT_ASPECT, MAX_FRONT_ASPECT = 2.5, 3.2
"""Width to height of the front of nearly all frames on sale, used where the view hides it."""
TEMPLE_TO_FRONT = 145.0 / 140.0
"""Length of a temple to width of a front, in mm of a medium frame."""
SLOPE_SHARE = 0.6
"""Fronts are bowed: the near half runs less steeply than the line over both lenses."""
SYMMETRIC_SHARE = 0.93
"""Overlap of an outline with its mirror image: 0.99 seen head-on, 0.3 at three quarters."""
CLEAR_GLASS = (236, 240, 244)
NECK = 1.15
"""The front ends where it is hardly taller than the thinnest place before the temple."""


@dataclass(frozen=True, slots=True)
class Temple:
    """One temple laid out straight: the hinge at the right end, the tip at the left."""

    image_hwc: UInt8Array
    """(h, w, 4); scale as in Spectacles.front_hwc."""
    axis_y: float


@dataclass(frozen=True, slots=True)
class Spectacles:
    """The front as if seen head-on."""

    front_hwc: UInt8Array
    """(h, w, 4) with soft alpha; the lenses are opaque here."""
    lens_hw: UInt8Array
    """(h, w): 255 on the lenses."""
    lens_a: FloatArray
    lens_b: FloatArray
    """Lens centres (x, y), left and right in the picture."""
    hinge_y: float
    temple: Temple | None

    @property
    def nbytes(self) -> int:
        temple_bytes = 0 if self.temple is None else self.temple.image_hwc.nbytes
        return self.front_hwc.nbytes + self.lens_hw.nbytes + temple_bytes

    @property
    def lens_distance_px(self) -> float:
        return float(self.lens_b[0] - self.lens_a[0])


def read_spectacles(rgba_hwc: UInt8Array) -> Spectacles:
    """Find front, lenses and temple; without lenses the whole cut-out counts as a front view."""
    pair = find_lenses(rgba_hwc, are_twins=_is_front_view(rgba_hwc[..., 3]))
    if pair is None:
        return _whole(rgba_hwc)
    left, right = pair
    if left.is_alike(right):
        return _glazed(_level(rgba_hwc, left, right), left)
    if right.area_px > left.area_px:
        width = rgba_hwc.shape[1]
        rgba_hwc = np.ascontiguousarray(rgba_hwc[:, ::-1])
        left, right = right.mirrored(width), left.mirrored(width)
    return _glazed(_turned(rgba_hwc, left, right), left)


def _is_front_view(alpha_hw: UInt8Array) -> bool:
    """Whether the outline is its own mirror image."""
    solid = alpha_hw > 127
    mirrored = solid[:, ::-1]
    return bool((solid & mirrored).sum() > SYMMETRIC_SHARE * (solid | mirrored).sum())


def _glazed(glasses: Spectacles, lens: Lens) -> Spectacles:
    """Clear lenses came out as holes: give them the colour of glass."""
    if not lens.is_clear:
        return glasses
    front, inside = glasses.front_hwc.copy(), glasses.lens_hw > 127
    front[inside] = (*CLEAR_GLASS, 255)
    return replace(glasses, front_hwc=front)


def _whole(rgba_hwc: UInt8Array) -> Spectacles:
    height, width = rgba_hwc.shape[:2]
    lens_hw = np.zeros((height, width), np.uint8)
    centres = [np.array([share * width, 0.5 * height]) for share in (0.26, 0.74)]
    return Spectacles(rgba_hwc, lens_hw, centres[0], centres[1], 0.35 * height, None)


def _level(rgba_hwc: UInt8Array, left: Lens, right: Lens) -> Spectacles:
    """A front view: turn it level and cut off what hangs out at the sides."""
    dx, dy = right.centre - left.centre
    angle = float(np.degrees(np.arctan2(dy, dx)))
    height, width = rgba_hwc.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1.0)
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]]) @ matrix[:, :2].T
    low, high = corners.min(0) + matrix[:, 2], corners.max(0) + matrix[:, 2]
    matrix[:, 2] -= low
    size = (int(np.ceil(high[0] - low[0])), int(np.ceil(high[1] - low[1])))
    front = _warp(rgba_hwc, np.vstack([matrix, (0, 0, 1)]), size)
    contours = [cv2.transform(lens.outline[None], matrix)[0] for lens in (left, right)]
    lens_hw = _fill(contours, size)
    outer_a = _outer_end(front[..., 3], float(contours[0][:, 0].min()), _width(contours[0]))
    mirrored_x = size[0] - float(contours[1][:, 0].max())
    outer_b = size[0] - _outer_end(front[:, ::-1, 3], mirrored_x, _width(contours[1]))
    front[..., 3] = _between(front[..., 3], outer_a, outer_b)
    centres = [_middle(contour) for contour in contours]
    y = _attachment_y(front[..., 3], outer_a)
    return Spectacles(front, lens_hw, centres[0], centres[1], y, None)


def _turned(rgba_hwc: UInt8Array, near: Lens, far: Lens) -> Spectacles:
    """A three-quarter view, near lens on the left: straighten the near half and mirror it."""
    matrix, size, lens_px = _straighten(rgba_hwc.shape, near, far)
    half = _warp(rgba_hwc, matrix, size)
    outline = cv2.perspectiveTransform(near.outline[None].astype(np.float64), matrix)[0]
    lens_hw = _fill([outline], size)
    start = _outer_end(half[..., 3], float(outline[:, 0].min()), lens_px)
    half[..., 3] = _between(half[..., 3], start, size[0] + 9)
    half[..., 3] = _near_piece(_rounded(half[..., 3], lens_hw), lens_hw)
    half[..., 3] = _rounded_end(half[..., 3], start, lens_px)
    half = repair_rim(half, outline, lens_hw)
    half[..., 3] = _near_piece(half[..., 3], lens_hw)
    hinge_y = _attachment_y(half[..., 3], start)
    temple = _temple(rgba_hwc, matrix, (start, hinge_y))
    front = np.concatenate([half, half[:, ::-1]], axis=1)
    stretch = _aspect_gain(front[..., 3])
    front, lens_hw = (
        cv2.resize(part, None, fx=stretch, fy=1.0, interpolation=cv2.INTER_LINEAR).astype(np.uint8)
        for part in (front, np.concatenate([lens_hw, lens_hw[:, ::-1]], axis=1))
    )
    lens_a = _middle(outline) * (stretch, 1.0)
    lens_b = np.array([front.shape[1] - lens_a[0], lens_a[1]])
    return Spectacles(front, lens_hw, lens_a, lens_b, hinge_y, temple)


def _straighten(
    shape: tuple[int, ...], near: Lens, far: Lens
) -> tuple[FloatArray, tuple[int, int], float]:
    """Homography that squares the near half up; its canvas ends at the middle of the bridge."""
    top, bottom = _tangents(near, far)
    x0, x1 = float(near.outline[:, 0].min()), float(near.outline[:, 0].max())
    far_x0, far_px = float(far.outline[:, 0].min()), _width(far.outline)
    height_px = float(np.mean([bottom(x) - top(x) for x in (x0, x1)]))
    lens_px = x1 - x0
    quad = np.array([(x0, top(x0)), (x1, top(x1)), (x1, bottom(x1)), (x0, bottom(x0))], np.float32)
    pad_x, pad_y = 0.9 * lens_px, 0.9 * height_px
    box = [(pad_x, pad_y), (pad_x + lens_px, pad_y)]
    box += [(pad_x + lens_px, pad_y + height_px), (pad_x, pad_y + height_px)]
    matrix = cv2.getPerspectiveTransform(quad, np.array(box, np.float32))
    bridge_x = x1 + max(far_x0 - x1, 0.0) * lens_px / (lens_px + far_px)
    bridge = np.array([[[bridge_x, (top(bridge_x) + bottom(bridge_x)) / 2]]])
    end = float(cv2.perspectiveTransform(bridge, matrix)[0, 0, 0])
    end = float(np.clip(end, pad_x + 1.02 * lens_px, pad_x + 1.4 * lens_px))
    return np.asarray(matrix), (max(round(end), 4), max(round(2 * pad_y + height_px), 4)), lens_px


def _tangents(near: Lens, far: Lens) -> list[np.poly1d]:
    """The lines that touch both lenses from above and from below."""
    hull = cv2.convexHull(np.concatenate([near.outline, far.outline]).astype(np.float32))[:, 0]
    split = (near.outline[:, 0].max() + far.outline[:, 0].min()) / 2
    lines = []
    for start, end in zip(hull, np.roll(hull, -1, axis=0), strict=True):
        if (start[0] < split) != (end[0] < split):
            lines.append(np.poly1d(np.polyfit([start[0], end[0]], [start[1], end[1]], 1)))
    lines.sort(key=lambda line: float(line(split)))
    slack = (1.0 - SLOPE_SHARE) * (lines[0].coeffs[0] + lines[1].coeffs[0]) / 2
    middle = near.centre[0]
    return [np.poly1d([line.coeffs[0] - slack, line(0) + slack * middle]) for line in lines]


def _temple(rgba_hwc: UInt8Array, matrix: FloatArray, hinge: tuple[float, float]) -> Temple | None:
    """What hangs on the near end of the front, laid out along its own axis."""
    inverse = np.linalg.inv(matrix)
    hinge_x, hinge_y = cv2.perspectiveTransform(np.array([[hinge]], np.float64), inverse)[0, 0]
    solid = (rgba_hwc[..., 3] > 127).astype(np.uint8)
    solid[:, max(round(hinge_x), 0) :] = 0
    _, labels = cv2.connectedComponents(solid)
    beside = labels[:, max(round(hinge_x) - 3, 0)]
    rows = np.flatnonzero(beside)
    if rows.size == 0:
        return None
    label = beside[rows[np.argmin(np.abs(rows - hinge_y))]]
    ys, xs = np.nonzero(labels == label)
    length_px = float(hinge_x - xs.min())
    if length_px < 0.25 * hinge_x or length_px < 24:
        return None
    at = hinge_x - 0.65 * length_px
    target = np.array([at, ys[np.abs(xs - at) < 2.5].mean()])
    start = np.array([hinge_x, ys[xs > hinge_x - 4].mean()])
    angle = float(np.degrees(np.arctan2(start[1] - target[1], start[0] - target[0])))
    turn = cv2.getRotationMatrix2D((float(start[0]), float(start[1])), angle, 1.0)
    height = int(0.5 * length_px) + 8
    turn[:, 2] += (length_px * 1.05 - start[0], height / 2 - start[1])
    own = rgba_hwc.copy()
    own[..., 3] = np.where(
        cv2.dilate((labels == label).astype(np.uint8), np.ones((3, 3))), own[..., 3], 0
    )
    image = _warp(own, np.vstack([turn, (0, 0, 1)]), (round(length_px * 1.05), height))
    return Temple(image, height / 2)


def _aspect_gain(alpha_hw: UInt8Array) -> float:
    """How much a turned front must be widened to have the shape of a front."""
    _, _, width, height = cv2.boundingRect((alpha_hw > 127).astype(np.uint8))
    aspect = width / max(height, 1)
    return float(
        np.clip(np.clip(aspect * 1.35, MIN_FRONT_ASPECT, MAX_FRONT_ASPECT) / aspect, 1.0, 1.6)
    )


def _outer_end(alpha_hw: UInt8Array, lens_x: float, lens_px: float) -> float:
    """Where the front ends and the temple begins, left of the lens."""
    tall = (alpha_hw > 127).sum(0)
    lens_columns = tall[round(lens_x) : max(round(lens_x + lens_px), round(lens_x) + 1)]
    front_px = float(lens_columns.max(initial=1))
    beside = tall[max(round(lens_x - 0.7 * lens_px), 0) : round(lens_x)]
    neck_px = float(beside[beside > 0].min(initial=round(front_px)))
    limit = float(np.clip(NECK * neck_px, 0.2 * front_px, 0.6 * front_px))
    x, least = round(lens_x), max(round(lens_x - 0.7 * lens_px), 0)
    while x > least and tall[x - 1] >= limit:
        x -= 1
    return float(x)


def _between(alpha_hw: UInt8Array, start: float, end: float) -> UInt8Array:
    x = np.arange(alpha_hw.shape[1])
    keep = np.clip(np.minimum(x - start + 0.5, end - x - 0.5), 0.0, 1.0)
    return np.asarray(np.rint(alpha_hw * keep[None]), np.uint8)


def _near_piece(alpha_hw: UInt8Array, lens_hw: UInt8Array) -> UInt8Array:
    """Only what hangs together with the lens: no far temple behind the near half."""
    _, labels = cv2.connectedComponents(((alpha_hw > 60) | (lens_hw > 0)).astype(np.uint8))
    inside = labels[lens_hw > 0]
    if inside.size == 0:
        return alpha_hw
    keep = cv2.dilate((labels == np.bincount(inside).argmax()).astype(np.uint8), np.ones((3, 3)))
    return np.where(keep > 0, np.maximum(alpha_hw, lens_hw), 0).astype(np.uint8)


def _rounded(alpha_hw: UInt8Array, lens_hw: UInt8Array) -> UInt8Array:
    """Without slivers and sharp corners that no rim of this thickness has."""
    rim = cv2.distanceTransform(
        ((alpha_hw > 127) & (lens_hw < 128)).astype(np.uint8), cv2.DIST_L2, 3
    )
    half_px = float(np.percentile(rim[rim > 0], 75)) if (rim > 0).any() else 0.0
    size = 2 * round(0.6 * half_px) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    return cv2.morphologyEx(np.maximum(alpha_hw, lens_hw), cv2.MORPH_OPEN, kernel).astype(np.uint8)


def _rounded_end(alpha_hw: UInt8Array, start: float, lens_px: float) -> UInt8Array:
    """The end where the temple was cut off, with corners as ends of frames have them."""
    x = round(start)
    tall = int((alpha_hw[:, x : x + 3] > 127).any(1).sum())
    size = 2 * round(0.3 * min(tall, 0.8 * lens_px)) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    end = slice(None), slice(0, x + size)
    around = slice(None), slice(0, x + 3 * size)
    opened = cv2.morphologyEx(np.ascontiguousarray(alpha_hw[around]), cv2.MORPH_OPEN, kernel)
    out = alpha_hw.copy()
    out[end] = opened[:, : out[end].shape[1]]
    return out


def _attachment_y(alpha_hw: UInt8Array, start: float) -> float:
    columns = alpha_hw[:, round(start) : round(start) + 4] > 127
    rows = np.flatnonzero(columns.any(1))
    return float(rows.mean()) if rows.size else alpha_hw.shape[0] * 0.4


def _warp(image: UInt8Array, matrix: FloatArray, size: tuple[int, int]) -> UInt8Array:
    """Perspective warp in premultiplied colour, so that nothing bleeds in at the outline."""
    alpha = image[..., 3:].astype(np.float32) / 255.0
    flat = np.dstack([image[..., :3] * alpha, alpha * 255.0])
    moved = cv2.warpPerspective(flat, matrix, size, flags=cv2.INTER_LINEAR)
    colour = moved[..., :3] / np.maximum(moved[..., 3:] / 255.0, 1e-3)
    moved = np.dstack([colour, moved[..., 3]])
    return np.rint(np.clip(moved, 0, 255)).astype(np.uint8)


def _fill(contours: list[NDArray[np.floating]], size: tuple[int, int]) -> UInt8Array:
    mask = np.zeros((size[1], size[0]), np.uint8)
    for contour in contours:
        cv2.fillPoly(mask, [np.rint(contour * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    return mask


def _width(outline: NDArray[np.floating]) -> float:
    return float(outline[:, 0].max() - outline[:, 0].min())


def _middle(outline: NDArray[np.floating]) -> FloatArray:
    return np.asarray(((outline.max(0) + outline.min(0)) / 2), np.float64)
