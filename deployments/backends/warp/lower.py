"""Lays trousers, shorts or a skirt over hips and legs."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deployments.backends.warp.body import Body, Path, ray_half_widths, trace
from deployments.backends.warp.outline import GarmentOutline, extents, smooth
from deployments.backends.warp.placement import Part, Seen, frames, source_rows, spread
from serve.messages import UInt8Array

FloatArray = NDArray[np.float64]

_EASE = 1.12
"""Hips of the garment over hips of the body, measured like the ease of tops."""


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
    waist_t, crotch_t = _find_waist(body, path, seen), 1.2 * body.torso_px
    hip_half = _hip_half_widths(body, path, seen.garment_hw)
    wide, long = _lower_scale(outline, body, hip_half, path.length_px - crotch_t)
    frame = LowerFrame(path, waist_t, crotch_t, wide, long, hip_half, seen.garment_hw)
    if outline.crotch_y is None:
        return [_fit_skirt(product_hwc, outline, body, frame)]
    order = sorted((0, 1), key=lambda side: float(body.legs[side][2][1]))
    return [_fit_leg(product_hwc, outline, body, side, frame) for side in order]


def _find_waist(body: Body, path: Path, seen: Seen) -> float:
    """Length at which the region and the old garment begin: below the top that hides the rest."""
    t = np.linspace(0.55, 1.05, 50) * body.torso_px
    xy = np.rint(path.at(t)[0]).astype(int).clip(0, np.array(seen.region_hw.shape)[::-1] - 1)
    inside = np.minimum(seen.region_hw, seen.garment_hw)[xy[:, 1], xy[:, 0]] > 127
    return float(t[inside.argmax()]) if inside.any() else 0.76 * body.torso_px


def _hip_half_widths(body: Body, path: Path, silhouette_hw: UInt8Array) -> tuple[float, float]:
    """How far the hips reach to the left and right of the axis."""
    t = np.array([0.95, 1.05, 1.15]) * body.torso_px
    place, across = frames(path, t, body)
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
    wide = _EASE * sum(hip_half) / float(widths[row])
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
    place, across = frames(frame.path, t, body)
    widths = np.interp(rows.clip(0), np.arange(len(outline.left)), outline.right - outline.left)
    own = widths * frame.wide / 2
    hip_half = frame.hip_half
    waist_t = frame.waist_t
    balance = np.array(hip_half) / (sum(hip_half) / 2)
    halves = np.stack(
        [_waist_taper(t, waist_t, own * balance[k], body, hip_half[k]) for k in (0, 1)], axis=1
    )
    target = place[:, None] + spread(halves)[..., None] * across[:, None]
    return Part(product_hwc, source_rows(rows, outline), target)


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
    place, across = frames(frame.path, t, body)
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
    middle, across = frames(frame.path, np.array([frame.crotch_t]), body)
    start = middle[0] + sign * 0.5 * frame.hip_half[side] * across[0]
    _, knee, ankle = body.legs[side]
    limb = trace([start, knee, ankle], 0.3 * body.torso_px)
    span = max(float(t[-2] - frame.crotch_t), 1.0)
    reach = 1.02 * limb.length_px if span > 0.8 * limb.length_px else span
    centre, tangent = limb.at((t - frame.crotch_t) / span * reach)
    normal = np.stack([tangent[:, 1], -tangent[:, 0]], axis=1)
    inner = outer = np.maximum(own / 2, 0.12 * body.unit_px)
    seen = ray_half_widths(frame.silhouette_hw, centre, sign * normal, 1.6 * outer)
    outer = np.where(seen > 1.5 * outer, outer, np.clip(1.06 * seen, outer, 1.2 * outer))
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
    last = np.asarray(mask[-max(3, len(mask) // 30) :].any(axis=0))
    inside = np.flatnonzero(~last[int(outline.left[-1]) + 4 : int(outline.right[-1]) - 4])
    foot = float(outline.left[-1] + 4 + np.median(inside)) if inside.size else tip
    return [float(outline.centre[0]), tip, foot]
