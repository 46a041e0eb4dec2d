"""Lays sleeves along arms."""

import cv2
import numpy as np
from numpy.typing import NDArray

from deployments.backends.warp.body import Body, Path, ray_half_widths, trace
from deployments.backends.warp.mesh import Grid
from deployments.backends.warp.outline import GarmentOutline, Sleeve, smooth
from deployments.backends.warp.placement import Part, Seen
from serve.messages import UInt8Array

FloatArray = NDArray[np.float64]


def without_sleeves(product_hwc: UInt8Array, outline: GarmentOutline) -> UInt8Array:
    body = product_hwc.copy()
    x = np.arange(body.shape[1])[None, :]
    sides = (
        (outline.left_sleeve, x < outline.left[:, None] + 3),
        (
            outline.right_sleeve,
            x > outline.right[:, None] - 4,
        ),
    )
    for side, (sleeve, beyond) in enumerate(sides):
        if sleeve is None:
            continue
        # A sleeve that hangs before the body stays on it: what it hides has no picture.
        cut = _whole(sleeve, body.shape, side) & beyond
        kept = ((body[..., 3] > 0) & ~cut).astype(np.uint8)
        solid = cv2.morphologyEx(kept, cv2.MORPH_OPEN, np.ones((7, 7), np.uint8))
        # The sleeve lies over the body's edge by a few pixels, which hides the cut.
        wide = cv2.dilate(solid, np.ones((9, 9), np.uint8)).astype(np.float32)
        body[..., 3] = np.rint(body[..., 3] * cv2.GaussianBlur(wide, (0, 0), 1.0))
    return body


def _whole(sleeve: Sleeve, shape: tuple[int, ...], side: int) -> NDArray[np.bool_]:
    """The sleeve's mask on the whole product."""
    mask = np.zeros(shape[:2], bool)
    width = sleeve.mask_hw.shape[1]
    mask[:, slice(0, width) if side == 0 else slice(shape[1] - width, None)] = sleeve.mask_hw
    return mask


def carry(source: Grid, target: Grid, point: FloatArray) -> FloatArray:
    """Where the mesh puts a point of the product."""
    row = int(np.clip(np.searchsorted(source[:, 0, 1], point[1]) - 1, 0, len(source) - 2))
    span = source[row + 1, 0, 1] - source[row, 0, 1]
    share = float(np.clip((point[1] - source[row, 0, 1]) / span, 0.0, 1.0))
    xs = (1 - share) * source[row, :, 0] + share * source[row + 1, :, 0]
    nodes = (1 - share) * target[row] + share * target[row + 1]
    return np.array([np.interp(point[0], xs, nodes[:, k]) for k in (0, 1)])


def fit_sleeve(
    product_hwc: UInt8Array,
    sleeve: Sleeve,
    body: Body,
    side: int,
    ends: list[FloatArray],
    scale: float,
    seen: Seen,
) -> Part:
    """Lay the sleeve along the arm, from the armhole that the body of the garment ends in."""
    shoulder, elbow, wrist = body.arms[side]
    start = ends[0] if sleeve.hangs else 0.5 * (ends[0] + ends[1])
    steps = np.linalg.norm(np.diff(sleeve.axis, axis=0), axis=1)
    along = np.concatenate([[0.0], np.cumsum(steps)])
    joints = [0.5 * (start + shoulder), elbow, wrist]
    if not sleeve.hangs and along[-1] * scale < 0.6 * float(np.linalg.norm(elbow - joints[0])):
        joints = _stand_off(joints, sleeve)
    path = trace(joints, 0.15 * body.torso_px)
    t = along * _sleeve_length_scale(along[-1], path, scale, seen.region_hw)
    place, tangent = path.at(t)
    # Arms taper; a sleeve is never tighter than the arm in it.
    taper = np.interp(t / path.length_px, [0.0, 0.5, 1.0], [0.17, 0.13, 0.09])
    half = np.maximum(sleeve.half_widths * scale, taper * body.unit_px)
    place, half = _cover_arm(seen.garment_hw, (place, tangent, half), side)
    source = _ribs(sleeve.axis, np.gradient(sleeve.axis, axis=0), sleeve.half_widths)
    target = _ribs(place, tangent, half)
    if not sleeve.hangs:
        fade = np.clip(1.0 - t / max(0.5 * t[-1], 1.0), 0.0, 1.0)[:, None, None] ** 1.5
        own = [sleeve.shoulder, sleeve.armpit]
        source = source + (_armhole(own, sleeve, source[0]) - source[0]) * fade
        target = target + (_armhole(ends, sleeve, source[0]) - target[0]) * fade
    only = _only_sleeve(product_hwc, sleeve, side)
    return Part(only, _lengthen(source), _lengthen(target), is_sleeve=True, side=side)


def _stand_off(joints: list[FloatArray], sleeve: Sleeve) -> list[FloatArray]:
    """A cap over the shoulder turns only half the way that the arm does."""
    root, elbow, wrist = joints
    own = sleeve.axis[-1] - sleeve.axis[0]
    arm = elbow - root
    length = float(np.linalg.norm(arm))
    way = arm / max(length, 1e-6) + own / max(float(np.linalg.norm(own)), 1e-6)
    way = way / max(float(np.linalg.norm(way)), 1e-6)
    return [root, root + length * way, wrist + length * way - arm]


def _cover_arm(
    silhouette_hw: UInt8Array, strip: tuple[FloatArray, FloatArray, FloatArray], side: int
) -> tuple[FloatArray, FloatArray]:
    """Widen a sleeve outward over what is seen beside it of the old one."""
    place, tangent, half = strip
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], axis=1)
    # Going down an arm, its outer side is to the left of the image's left arm.
    outward = normal if side == 0 else -normal
    seen = ray_half_widths(silhouette_hw, place, outward, 1.8 * half)
    extra = np.where(seen > 1.7 * half, 0.0, np.clip(1.05 * seen - half, 0.0, 0.45 * half))
    extra = smooth(extra, 2)
    return place + 0.5 * extra[:, None] * outward, half + 0.5 * extra


def _ribs(axis: FloatArray, direction: FloatArray, half: FloatArray) -> Grid:
    """Cross-sections of a strip around an axis."""
    direction = direction / np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-6)
    normal = np.stack([-direction[:, 1], direction[:, 0]], axis=1)
    columns = np.array([-1.25, -1.0, 0.0, 1.0, 1.25])
    return np.asarray(axis[:, None] + (columns * half[:, None])[..., None] * normal[:, None])


def _lengthen(grid: Grid) -> Grid:
    """One more row at each end, for what the outline's smoothing left over."""
    head, tail = 1.4 * grid[0] - 0.4 * grid[1], 1.25 * grid[-1] - 0.25 * grid[-2]
    return np.concatenate([head[None], grid, tail[None]])


def _armhole(ends: list[FloatArray], sleeve: Sleeve, rib: FloatArray) -> FloatArray:
    """The armhole as a cross-section that runs the same way as `rib`."""
    is_shoulder_first = (sleeve.armpit - sleeve.shoulder) @ (rib[-1] - rib[0]) > 0
    first, last = (ends[0], ends[1]) if is_shoulder_first else (ends[1], ends[0])
    columns = np.array([-1.25, -1.0, 0.0, 1.0, 1.25])
    return np.asarray((first + last) / 2 + columns[:, None] * (last - first) / 2)


def _sleeve_length_scale(length: float, path: Path, scale: float, region_hw: UInt8Array) -> float:
    """A long sleeve ends at the wrist, or where the region does; a short one keeps its size."""
    if length * scale < 0.72 * path.length_px:
        return scale
    t = np.linspace(0.5, 1.03, 40) * path.length_px
    xy = np.rint(path.at(t)[0]).astype(int)
    within = (xy >= 0).all(axis=1) & (xy < np.array(region_hw.shape)[::-1]).all(axis=1)
    barred = np.zeros(len(t), bool)
    barred[within] = region_hw[xy[within, 1], xy[within, 0]] == 0
    end = t[barred.argmax()] if barred.any() else t[-1]
    return float(end / length)


def _only_sleeve(product_hwc: UInt8Array, sleeve: Sleeve, side: int) -> UInt8Array:
    only = product_hwc.copy()
    mask = _whole(sleeve, only.shape, side).astype(np.uint8)
    wide = cv2.dilate(mask, np.ones((7, 7), np.uint8)).astype(np.float32)
    only[..., 3] = np.rint(only[..., 3] * cv2.GaussianBlur(wide, (0, 0), 1.5))
    return only
