"""Decides where each part of a garment falls on a body: grids from product to crop pixels."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from deployments.backends.warp.body import Body, Path, ray_half_widths, trace
from deployments.backends.warp.mesh import Grid
from deployments.backends.warp.outline import GarmentOutline, Sleeve, extents, smooth
from serve.messages import UInt8Array

FloatArray = NDArray[np.float64]

_COLUMNS = np.array([-1.3, -1.0, -0.6, 0.0, 0.6, 1.0, 1.3])
"""Mesh columns in half-widths; beyond 1 for what sticks out of the body's smoothed outline."""
_EASE = {"top": 1.10, "dress": 1.02, "bottom": 1.12}
"""Chest or hips of the garment over shoulder or hip width of the body; published try-ons of this
family's samples, measured on the picture, lie between 0.99 and 1.15."""


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of the product and where it goes."""

    product_hwc: UInt8Array
    source: Grid
    target: Grid
    is_sleeve: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """Masks that a garment is fitted to, (H, W), 255 inside."""

    person_hw: UInt8Array
    garment_hw: UInt8Array
    """The old garment where it is known, else the person."""
    region_hw: UInt8Array


def fit_upper(
    product_hwc: UInt8Array,
    outline: GarmentOutline,
    body: Body,
    seen: Seen,
    is_dress: bool,
) -> list[Part]:
    """Place a top or a dress; parts in drawing order, the last one in front."""
    path = body.axis(with_legs=is_dress)
    silhouette_hw = seen.garment_hw
    chest_px = _chest_width(body, path, silhouette_hw)
    width_scale, length_scale = _upper_scales(outline, body, chest_px, is_dress)
    rows = np.linspace(-2.0, outline.hem_y + 2.0, 28)
    stretch = _stretch_to_waist(outline, body, length_scale) if is_dress else length_scale
    start = -_shoulder_rise(body, seen.person_hw)
    t = _lengths(rows - outline.shoulder_y, start, body, stretch, length_scale)
    place, across = _frames(path, t, body)
    stretch_limit = 1.3 if is_dress else 1.14
    halves = _half_widths(
        rows, outline, body, width_scale, (place, across, t), silhouette_hw, stretch_limit
    )
    source = _source_rows(rows, outline)
    target = place[:, None] + _spread(halves)[..., None] * across[:, None]
    torso = Part(_without_sleeves(product_hwc, outline), source, target)
    parts = []
    for side, sleeve in enumerate((outline.left_sleeve, outline.right_sleeve)):
        if sleeve is not None:
            ends = [_carry(source, target, point) for point in (sleeve.shoulder, sleeve.armpit)]
            parts.append(
                _fit_sleeve(product_hwc, sleeve, body, side, ends, width_scale, seen)
            )
    return [torso, *parts]


def _chest_width(body: Body, path: Path, silhouette_hw: UInt8Array) -> float:
    """Width of the chest: of the shoulders, unless the torso is seen to be narrower."""
    shoulder = float(np.clip(body.shoulder_px, 0.8 * body.unit_px, None))
    t = np.linspace(0.35, 0.75, 7) * body.torso_px
    place, across = _frames(path, t, body)
    limit = np.full(len(t), shoulder)
    sides = [ray_half_widths(silhouette_hw, place, sign * across, limit) for sign in (-1.0, 1.0)]
    # The narrowest rows are those where the arms stand off the body.
    seen = 1.15 * float(np.percentile(sides[0] + sides[1], 25))
    return float(np.clip(seen, 0.78 * shoulder, 1.05 * shoulder))


def _upper_scales(
    outline: GarmentOutline, body: Body, chest_px: float, is_dress: bool
) -> tuple[float, float]:
    """Width and length scale."""
    scale = _EASE["dress" if is_dress else "top"] * chest_px / outline.chest_px
    long = scale * max(1.0, 0.58 * body.torso_px / max(body.shoulder_px, 1.0))
    tips = slice(0, int(outline.armpit_y) + 1)
    tip_px = float(np.max(outline.right[tips] - outline.left[tips]))
    limit = (1.12 if is_dress else 1.28) * body.unit_px / tip_px
    if scale > limit and outline.left_sleeve is None:
        long, scale = min(long, 1.15 * limit), limit
    if not is_dress:
        # A top ends between the waist and the thighs on whomever it was cut for.
        length = long * (outline.hem_y - outline.shoulder_y)
        low, high = 0.72 * body.torso_px, 1.3 * body.torso_px
        long *= float(np.clip(np.clip(length, low, high) / length, 0.8, 1.25))
    return scale, long


def _stretch_to_waist(outline: GarmentOutline, body: Body, scale: float) -> float:
    """Length scale above the waist that lays the dress's narrowest row on the body's waist."""
    low, high = int(0.2 * outline.hem_y), int(0.5 * outline.hem_y)
    waist = low + int(np.argmin((outline.right - outline.left)[low : high + 1]))
    wanted = 0.66 * body.torso_px / max(waist - outline.shoulder_y, 1.0)
    return float(np.clip(wanted, 0.75 * scale, 1.25 * scale))


def _shoulder_rise(body: Body, silhouette_hw: UInt8Array) -> float:
    """How far the shoulders' outline lies above their joints, along the torso."""
    inner = [0.8 * joint + 0.2 * np.mean(body.shoulders, axis=0) for joint in body.shoulders]
    up = np.array([body.across[1], -body.across[0]])
    limit = np.full(2, 0.3 * body.unit_px)
    seen = ray_half_widths(silhouette_hw, np.array(inner), np.array([up, up]), limit)
    # Hair or raised arms above a shoulder read as too far.
    plausible = seen[seen < 0.27 * body.unit_px]
    return float(np.clip(plausible.min(), 0.0, limit[0])) if plausible.size else 0.10 * body.unit_px


def _lengths(rows: FloatArray, start: float, body: Body, upper: float, lower: float) -> FloatArray:
    """Length along the torso's axis of rows that count from the shoulder tips."""
    waist_t = 0.66 * body.torso_px
    t = start + rows * upper
    both = (upper + lower) / 2
    return np.where(t > waist_t, waist_t + (t - waist_t) / upper * both, t)


def _frames(path: Path, t: FloatArray, body: Body) -> tuple[FloatArray, FloatArray]:
    """Position on the axis and the direction across it, from the image's left to right."""
    place, tangent = path.at(t)
    square = np.stack([tangent[:, 1], -tangent[:, 0]], axis=1)
    hips = body.hips[1] - body.hips[0]
    hips = hips / max(float(np.linalg.norm(hips)), 1e-6)
    share = np.clip(t / max(body.torso_px, 1.0), 0.0, 1.0)[:, None]
    joints = (1 - share) * body.across + share * np.where(hips @ body.across > 0.5, hips, square)
    across = 0.5 * square + 0.5 * joints
    return place, across / np.linalg.norm(across, axis=1, keepdims=True)


def _recentre(
    place: FloatArray,
    across: FloatArray,
    t: FloatArray,
    body: Body,
    silhouette_hw: UInt8Array,
) -> FloatArray:
    """Move the axis to the middle of what is seen, where that is as wide as a body."""
    model = body.model_half_width(t)
    sides = [ray_half_widths(silhouette_hw, place, sign * across, 2.2 * model) for sign in (-1, 1)]
    width = sides[0] + sides[1]
    plausible = (width > 1.1 * model) & (width < 3.0 * model) & (t > 0.25 * body.torso_px)
    plausible &= (sides[0] > 1) & (sides[1] > 1)
    shift = np.clip((sides[1] - sides[0]) / 2, -0.6 * model, 0.6 * model)
    if plausible.sum() < 3:
        return place
    order = np.arange(len(t))
    known = np.interp(order, order[plausible], shift[plausible])
    fade = np.clip(t / (0.5 * body.torso_px), 0.0, 1.0)
    return place + (smooth(known, 5) * fade)[:, None] * across


def _half_widths(
    rows: FloatArray,
    outline: GarmentOutline,
    body: Body,
    scale: float,
    frames: tuple[FloatArray, FloatArray, FloatArray],
    silhouette_hw: UInt8Array,
    stretch_limit: float,
) -> FloatArray:
    """(n, 2): how far the garment reaches to the left and right of the axis."""
    place, across, t = frames
    model = body.model_half_width(t)
    index = rows.clip(0, len(outline.left) - 1)
    own = np.interp(index, np.arange(len(outline.left)), outline.right - outline.left) * scale / 2
    halves = []
    for sign in (-1.0, 1.0):
        seen = ray_half_widths(silhouette_hw, place, sign * across, 1.6 * model)
        # An arm beside the body or a picture's edge reads as far too wide.
        reach = np.where(seen > 1.35 * model, model, seen.clip(0.8 * model, 1.3 * model))
        below = np.clip((t / max(body.torso_px, 1.0) - 0.15) / 0.2, 0.0, 1.0)
        covering = np.clip(1.03 * reach, own, stretch_limit * own)
        halves.append(smooth((1 - below) * own + below * covering, 2))
    return np.stack(halves, axis=1)


def _source_rows(rows: FloatArray, outline: GarmentOutline) -> Grid:
    every = np.arange(len(outline.left))
    index = rows.clip(0, len(every) - 1)
    centre = np.interp(index, every, smooth(outline.centre, len(every) // 12))
    half = np.interp(index, every, outline.right - outline.left) / 2
    x = centre[:, None] + _COLUMNS * half[:, None]
    return np.stack([x, np.broadcast_to(rows[:, None], x.shape)], axis=-1)


def _spread(halves: FloatArray) -> FloatArray:
    return np.where(_COLUMNS < 0, halves[:, :1], halves[:, 1:]) * _COLUMNS


def _without_sleeves(product_hwc: UInt8Array, outline: GarmentOutline) -> UInt8Array:
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
        kept = cv2.morphologyEx(kept, cv2.MORPH_OPEN, np.ones((7, 7), np.uint8))
        # The sleeve lies over the body's edge by a few pixels, which hides the cut.
        kept = cv2.dilate(kept, np.ones((9, 9), np.uint8)).astype(np.float32)
        body[..., 3] = np.rint(body[..., 3] * cv2.GaussianBlur(kept, (0, 0), 1.0))
    return body


def _whole(sleeve: Sleeve, shape: tuple[int, ...], side: int) -> NDArray[np.bool_]:
    """The sleeve's mask on the whole product."""
    mask = np.zeros(shape[:2], bool)
    width = sleeve.mask_hw.shape[1]
    mask[:, slice(0, width) if side == 0 else slice(shape[1] - width, None)] = sleeve.mask_hw
    return mask


def _carry(source: Grid, target: Grid, point: FloatArray) -> FloatArray:
    """Where the mesh puts a point of the product."""
    row = int(np.clip(np.searchsorted(source[:, 0, 1], point[1]) - 1, 0, len(source) - 2))
    span = source[row + 1, 0, 1] - source[row, 0, 1]
    share = float(np.clip((point[1] - source[row, 0, 1]) / span, 0.0, 1.0))
    xs = (1 - share) * source[row, :, 0] + share * source[row + 1, :, 0]
    nodes = (1 - share) * target[row] + share * target[row + 1]
    return np.array([np.interp(point[0], xs, nodes[:, k]) for k in (0, 1)])


def _fit_sleeve(
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
    path = trace([0.5 * (start + shoulder), elbow, wrist], 0.15 * body.torso_px)
    steps = np.linalg.norm(np.diff(sleeve.axis, axis=0), axis=1)
    along = np.concatenate([[0.0], np.cumsum(steps)])
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
    return Part(only, _lengthen(source), _lengthen(target), is_sleeve=True)


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


@dataclass(frozen=True, slots=True)
class LowerFrame:
    """What both legs of one pair of trousers share."""

    path: Path
    waist_t: float
    crotch_t: float
    wide: float
    long: float
    """Of what hangs below the crotch, or of a whole skirt."""
    hip_half: tuple[float, float]
    silhouette_hw: UInt8Array


def fit_lower(
    product_hwc: UInt8Array,
    outline: GarmentOutline,
    body: Body,
    seen: Seen,
) -> list[Part]:
    """Place trousers, shorts or a skirt; the leg that ends lower is drawn in front."""
    path = body.axis(with_legs=True)
    waist_t, crotch_t = _find_waist(body, path, seen.region_hw), 1.2 * body.torso_px
    hip_half = _hip_half_widths(body, path, seen.garment_hw)
    wide, long = _lower_scale(outline, body, hip_half, path.length_px - crotch_t)
    frame = LowerFrame(path, waist_t, crotch_t, wide, long, hip_half, seen.garment_hw)
    if outline.crotch_y is None:
        return [_fit_skirt(product_hwc, outline, body, frame)]
    order = sorted((0, 1), key=lambda side: float(body.legs[side][2][1]))
    return [_fit_leg(product_hwc, outline, body, side, frame) for side in order]


def _find_waist(body: Body, path: Path, region_hw: UInt8Array) -> float:
    """Length at which the region begins: there the old waistband is, or the top that hides it."""
    t = np.linspace(0.55, 1.0, 40) * body.torso_px
    xy = np.rint(path.at(t)[0]).astype(int).clip(0, np.array(region_hw.shape)[::-1] - 1)
    inside = region_hw[xy[:, 1], xy[:, 0]] > 127
    return float(t[inside.argmax()]) if inside.any() else 0.76 * body.torso_px


def _hip_half_widths(body: Body, path: Path, silhouette_hw: UInt8Array) -> tuple[float, float]:
    """How far the hips reach to the left and right of the axis."""
    t = np.array([0.95, 1.05, 1.15]) * body.torso_px
    place, across = _frames(path, t, body)
    model = 0.52 * body.unit_px
    found = []
    for sign in (-1.0, 1.0):
        limit = np.full(len(t), 1.8 * model)
        seen = float(np.median(ray_half_widths(silhouette_hw, place, sign * across, limit)))
        found.append(
            model if seen > 1.7 * model else float(np.clip(seen, 0.75 * model, 1.35 * model))
        )
    return found[0], found[1]


def _lower_scale(
    outline: GarmentOutline, body: Body, hip_half: tuple[float, float], leg_px: float
) -> tuple[float, float]:
    """Width scale, and length scale below the crotch; of the whole length for a skirt."""
    widths = outline.right - outline.left
    rise = outline.crotch_y if outline.crotch_y is not None else 0.5 * widths.max()
    row = int(np.clip(0.62 * rise, 0, len(widths) - 1))
    wide = _EASE["bottom"] * sum(hip_half) / float(widths[row])
    wide = max(wide, 0.8 * sum(hip_half) / float(widths[0]))
    ratio = wide * (outline.hem_y - rise) / max(leg_px, 1.0)
    # Full-length trousers end at this person's ankles; shorts and skirts keep their own length.
    is_full = ratio > 0.8 or outline.hem_y > 2.1 * float(widths[row])
    return wide, float(np.clip(1.0 / ratio, 0.6, 1.7)) * wide if is_full else wide


def _waist_taper(
    t: FloatArray, waist_t: float, own: FloatArray, body: Body, hip: float
) -> FloatArray:
    """Half-width: gathered to the body at the waist, free further down."""
    free = np.clip((t - waist_t) / (0.3 * body.torso_px), 0.0, 1.0)
    free = free * free * (3 - 2 * free)
    waist = np.minimum(own, 0.93 * hip)
    return np.asarray(
        (1 - free) * waist + free * np.maximum(own, 1.04 * hip * (t < 1.25 * body.torso_px))
    )


def _fit_skirt(
    product_hwc: UInt8Array, outline: GarmentOutline, body: Body, frame: LowerFrame
) -> Part:
    rows = np.linspace(-2.0, outline.hem_y + 2.0, 24)
    t = frame.waist_t + rows * frame.long
    place, across = _frames(frame.path, t, body)
    widths = np.interp(rows.clip(0), np.arange(len(outline.left)), outline.right - outline.left)
    own = widths * frame.wide / 2
    hip_half = frame.hip_half
    waist_t = frame.waist_t
    balance = np.array(hip_half) / (sum(hip_half) / 2)
    halves = np.stack(
        [_waist_taper(t, waist_t, own * balance[k], body, hip_half[k]) for k in (0, 1)], axis=1
    )
    target = place[:, None] + _spread(halves)[..., None] * across[:, None]
    return Part(product_hwc, _source_rows(rows, outline), target)


def _fit_leg(
    product_hwc: UInt8Array,
    outline: GarmentOutline,
    body: Body,
    side: int,
    frame: LowerFrame,
) -> Part:
    """Half of the trousers: between centre line and side seam above the crotch, a leg below."""
    rows = np.linspace(-2.0, outline.hem_y + 2.0, 36)
    source_in, source_out = _leg_edges(product_hwc, outline, rows, side)
    own = np.abs(source_out - source_in) * frame.wide
    assert outline.crotch_y is not None
    rise = (frame.crotch_t - frame.waist_t) / outline.crotch_y
    depth = rows - outline.crotch_y
    t = frame.crotch_t + np.where(depth < 0, depth * rise, depth * frame.long)
    place, across = _frames(frame.path, t, body)
    sign = -1.0 if side == 0 else 1.0
    hip = frame.hip_half[side]
    outer_top = place + sign * _waist_taper(t, frame.waist_t, own, body, hip)[:, None] * across
    inner_leg, outer_leg = _leg_target(body, side, frame, (t, own))
    below = np.clip((t - frame.crotch_t) / (0.24 * body.torso_px) + 0.4, 0.0, 1.0)[:, None]
    below = below * below * (3 - 2 * below)
    apart = _legs_apart(frame, (place, inner_leg), t > frame.crotch_t)[:, None]
    inner = (1 - below * apart) * place + below * apart * inner_leg
    outer = (1 - below) * outer_top + below * outer_leg
    columns = np.array([0.0, 0.25, 0.5, 0.75, 1.0, 1.25])
    y = np.broadcast_to(rows[:, None], (len(rows), len(columns)))
    x = source_in[:, None] + columns * (source_out - source_in)[:, None]
    target = inner[:, None] + columns[None, :, None] * (outer - inner)[:, None]
    return Part(_only_leg(product_hwc, outline, side), np.stack([x, y], axis=-1), target)


def _legs_apart(
    frame: LowerFrame, edges: tuple[FloatArray, FloatArray], is_leg: NDArray[np.bool_]
) -> FloatArray:
    """(n,) 1 where something else than the person shows between the legs, 0 where they touch."""
    silhouette = frame.silhouette_hw
    shares = np.linspace(0.0, 0.8, 8)[:, None, None]
    xy = np.rint((1 - shares) * edges[0] + shares * edges[1]).astype(int)
    xy = xy.clip(0, np.array(silhouette.shape)[::-1] - 1)
    gap = (silhouette[xy[..., 1], xy[..., 0]] < 128).any(axis=0) & is_leg
    first = int(gap.argmax()) if gap.any() else len(gap)
    apart = (np.arange(len(gap)) >= first).astype(float)
    return smooth(apart, 2)


def _leg_target(
    body: Body, side: int, frame: LowerFrame, lengths: tuple[FloatArray, FloatArray]
) -> tuple[FloatArray, FloatArray]:
    """Inner and outer edge of one trouser leg along thigh and shin."""
    t, own = lengths
    sign = -1.0 if side == 0 else 1.0
    middle, across = _frames(frame.path, np.array([frame.crotch_t]), body)
    start = middle[0] + sign * 0.5 * frame.hip_half[side] * across[0]
    _, knee, ankle = body.legs[side]
    limb = trace([start, knee, ankle], 0.3 * body.torso_px)
    span = max(float(t[-2] - frame.crotch_t), 1.0)
    reach = 1.02 * limb.length_px if span > 0.8 * limb.length_px else span
    centre, tangent = limb.at((t - frame.crotch_t) / span * reach)
    normal = np.stack([tangent[:, 1], -tangent[:, 0]], axis=1)
    inner = outer = np.maximum(own / 2, 0.12 * body.unit_px)
    seen = ray_half_widths(frame.silhouette_hw, centre, sign * normal, 1.6 * outer)
    outer = np.where(seen > 1.5 * outer, outer, np.clip(1.06 * seen, outer, 1.12 * outer))
    return (
        centre - sign * inner[:, None] * normal,
        centre + sign * smooth(outer, 3)[:, None] * normal,
    )


def _leg_edges(
    product_hwc: UInt8Array, outline: GarmentOutline, rows: FloatArray, side: int
) -> tuple[FloatArray, FloatArray]:
    """Inner and outer x of one half, per row."""
    half = _only_leg(product_hwc, outline, side)[..., 3] > 127
    left, right = extents(half)
    every = np.arange(len(left))
    gap = int(outline.gap_y)
    inner = right if side == 0 else left
    outer = outline.left if side == 0 else outline.right
    # Above the gap's tip the legs touch: there the inner edge is the seam.
    seam = np.interp(every, [0, gap], [outline.centre[0], inner[gap]])
    inner = np.where(every < gap, seam, inner)
    index = rows.clip(0, len(every) - 1)
    return np.interp(index, every, smooth(inner, 4)), np.interp(index, every, outer)


def _only_leg(product_hwc: UInt8Array, outline: GarmentOutline, side: int) -> UInt8Array:
    height, width = product_hwc.shape[:2]
    every = np.arange(height)
    seam = np.interp(every, [0, outline.gap_y, height], _seam_columns(product_hwc, outline))
    x = np.arange(width)[None, :]
    beyond = x - seam[:, None] if side == 0 else seam[:, None] - x
    only = product_hwc.copy()
    # Overlaps the other half by a pixel or two, so that no light shines through the seam.
    only[..., 3] = np.rint(only[..., 3] * np.clip(2.5 - beyond, 0.0, 1.0))
    return only


def _seam_columns(product_hwc: UInt8Array, outline: GarmentOutline) -> list[float]:
    mask = product_hwc[..., 3] > 127
    row = min(len(mask) - 1, int(outline.gap_y) + 2)
    centre = float(outline.centre[row])
    gap = np.flatnonzero(~mask[row, int(outline.left[row]) + 2 : int(outline.right[row]) - 2])
    tip = float(outline.left[row] + 2 + np.median(gap)) if gap.size else centre
    last = mask[-max(3, len(mask) // 30) :].any(axis=0)
    inside = np.flatnonzero(~last[int(outline.left[-1]) + 4 : int(outline.right[-1]) - 4])
    foot = float(outline.left[-1] + 4 + np.median(inside)) if inside.size else tip
    return [float(outline.centre[0]), tip, foot]


def fit_region(product_hwc: UInt8Array, region_hw: UInt8Array) -> list[Part]:
    """Without a known body: into the region's shape, keeping the product's proportions."""
    mask = region_hw > 127
    left, right = extents(mask)
    inside = np.flatnonzero(mask.any(axis=1))
    top, bottom = float(inside[0]), float(inside[-1])
    height, width = product_hwc.shape[:2]
    room = float(np.percentile(right[inside] - left[inside], 75))
    scale = min(room / width, 1.15 * (bottom - top) / height)
    rows = np.linspace(-2.0, height + 2.0, 24)
    y = top + rows * min((bottom - top) / height, 1.25 * scale)
    index = y.clip(top, bottom)
    radius = max(1, int((bottom - top) / 12))
    every = np.arange(len(left))
    centre = np.interp(index, every, smooth((left + right) / 2, radius))
    half = np.full(len(rows), scale * width / 2)
    columns = np.linspace(-1.02, 1.02, 7)
    x = centre[:, None] + columns * half[:, None]
    source_x = width / 2 + columns * width / 2
    source = np.stack(np.broadcast_arrays(source_x[None, :], rows[:, None]), axis=-1)
    target = np.stack(np.broadcast_arrays(x, y[:, None]), axis=-1)
    return [Part(product_hwc, source, target)]
