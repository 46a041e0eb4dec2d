"""Lays a top or a dress over shoulders, chest and hips."""

import numpy as np
from numpy.typing import NDArray

from deployments.backends.warp.body import Body, Path, ray_half_widths
from deployments.backends.warp.outline import GarmentOutline, smooth
from deployments.backends.warp.placement import Part, Seen, frames, source_rows, spread
from deployments.backends.warp.sleeves import carry, fit_sleeve, without_sleeves
from serve.messages import UInt8Array

FloatArray = NDArray[np.float64]

_EASE = {"top": 1.10, "dress": 1.02}
"""Chest of the garment over chest of the body; published try-ons of this family's samples, measured
on the picture, lie between 0.99 and 1.10."""

_MOST_LONGER = 1.4
"""How much longer than it was cut a top may get; beyond, the old hem shows as an undershirt's."""
_KNEE_RATIO = 1.5
"""Waist to knee over shoulder to waist, of the figures that dresses are cut for."""


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
    if not is_dress:
        stretch = length_scale = _reach_old_hem(
            length_scale, outline, body.torso_px * _old_length(path, body, seen) - start
        )
    below = stretch * _leg_share(body, start) if is_dress else length_scale
    t = _lengths(rows - outline.shoulder_y, start, body, stretch, below)
    place, across = frames(path, t, body)
    stretch_limit = 1.3 if is_dress else 1.14
    halves = _half_widths(
        rows, outline, body, width_scale, (place, across, t), silhouette_hw, stretch_limit
    )
    if is_dress:
        halves = _flare_within(halves, (place, across, t), body, seen)
    source = source_rows(rows, outline)
    target = place[:, None] + spread(halves)[..., None] * across[:, None]
    torso = Part(without_sleeves(product_hwc, outline), source, target)
    parts = []
    for side, sleeve in enumerate((outline.left_sleeve, outline.right_sleeve)):
        if sleeve is not None:
            ends = [carry(source, target, point) for point in (sleeve.shoulder, sleeve.armpit)]
            parts.append(fit_sleeve(product_hwc, sleeve, body, side, ends, width_scale, seen))
    return [torso, *parts]


def _chest_width(body: Body, path: Path, silhouette_hw: UInt8Array) -> float:
    """Width of the chest: of the shoulders, unless the torso is seen to be narrower."""
    shoulder = float(np.clip(body.shoulder_px, 0.8 * body.unit_px, None))
    t = np.linspace(0.35, 0.75, 7) * body.torso_px
    place, across = frames(path, t, body)
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


def _reach_old_hem(scale: float, outline: GarmentOutline, wanted_px: float) -> float:
    """Length scale with which a top that is a little too short hides the old one's hem."""
    ratio = wanted_px / max((outline.hem_y - outline.shoulder_y) * scale, 1.0)
    return scale * ratio if 1.0 < ratio < _MOST_LONGER else scale


def _old_length(path: Path, body: Body, seen: Seen) -> float:
    """Depth down to which the old top is to be hidden, in torso lengths below the shoulders."""
    if seen.hem_depth is None:
        return 0.0
    if seen.hem_depth > 1.0:
        # What goes on to the picture's border is no hem: overalls, a coat.
        depth = np.arange(1.0, 1.4, 0.02)
        xy = np.rint(path.at(depth * body.torso_px)[0]).astype(int)
        height, width = seen.region_hw.shape
        below = xy[:, 1] >= height - 0.1 * body.unit_px
        above = xy[~below].clip(0, (width - 1, height - 1))
        if below.any() and seen.region_hw[above[:, 1], above[:, 0]].all():
            return float(depth[below.argmax()]) + 0.05
    return seen.hem_depth + 0.07


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
    limit = np.full(2, 0.5 * body.unit_px)
    seen = ray_half_widths(silhouette_hw, np.array(inner), np.array([up, up]), limit)
    # Hair or raised arms above a shoulder read as too far: no shoulder is higher than the neck.
    neck = float((body.neck - np.mean(body.shoulders, axis=0)) @ up)
    plausible = seen[seen < np.clip(neck + 0.05 * body.unit_px, 0.2 * body.unit_px, limit[0])]
    return float(plausible.min()) if plausible.size else 0.10 * body.unit_px


def _lengths(rows: FloatArray, start: float, body: Body, upper: float, lower: float) -> FloatArray:
    """Length along the torso's axis of rows that count from the shoulder tips."""
    waist_t = 0.66 * body.torso_px
    t = start + rows * upper
    return np.where(t > waist_t, waist_t + (t - waist_t) / upper * lower, t)


def _leg_share(body: Body, start: float) -> float:
    """How much longer the thighs are on this body than on the one that dresses are cut for."""
    knee = float(np.mean([leg[1] for leg in body.legs], axis=0)[1])
    hips = float(np.mean(body.hips, axis=0)[1])
    to_knee = 0.34 * body.torso_px + max(knee - hips, 0.0)
    ratio = to_knee / max(0.66 * body.torso_px - start, 1.0)
    return float(np.clip(ratio / _KNEE_RATIO, 0.85, 1.3))


def _flare_within(
    halves: FloatArray,
    frames: tuple[FloatArray, FloatArray, FloatArray],
    body: Body,
    seen: Seen,
) -> FloatArray:
    """Fold a flared skirt closer where the region would cut its sides off straight."""
    place, across, t = frames
    below = t > 0.66 * body.torso_px
    if below.sum() < 3:
        return halves
    kept = halves.copy()
    for side, sign in ((0, -1.0), (1, 1.0)):
        waist = float(halves[below, side].min())
        reach = ray_half_widths(seen.region_hw, place, sign * across, 1.5 * halves[:, side])
        room = np.where(reach > 1.05 * waist, reach, np.inf) - waist
        # No skirt gets narrower again below hands, where the region is wide.
        room = np.maximum(np.minimum.accumulate(room[::-1])[::-1], 1e-3)
        flare = np.maximum(halves[:, side] - waist, 0.0)
        # Bends towards the region's border and runs along it, instead of ending at it.
        folded = waist + flare / (1.0 + (flare / room) ** 4) ** 0.25
        hidden = ray_half_widths(seen.garment_hw, place, sign * across, halves[:, side])
        kept[below, side] = np.maximum(folded, np.minimum(hidden, halves[:, side]))[below]
        kept[:, side] = np.where(below, smooth(kept[:, side], 1), kept[:, side])
    return kept


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
