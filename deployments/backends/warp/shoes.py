"""Puts a pair of shoes on the feet: sole on the ground, hem in front, the old shoes gone."""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from deployments.backends.warp.cutout import cut_out
from deployments.backends.warp.feet import Foot, find_feet, fit_to_shoe
from deployments.backends.warp.filling import fill_from
from deployments.backends.warp.footparts import LEG, SHOE, draw_line, label_parts
from deployments.backends.warp.footwear import Shoe, read_shoe
from deployments.backends.warp.ground import find_standing
from deployments.backends.warp.light import scene_gain, scene_tint
from deployments.backends.warp.window import cut_window, find_window, paste_window, soften_inside
from serve.messages import ExpertRequest, UInt8Array

FloatArray = NDArray[np.float64]
Float32Array = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

COVER, MAX_STRETCH = 1.06, 1.5
"""New shoe over old: a little longer, so that it hides it; higher at most by this, where the old
one is high because it points at the camera."""
SINK = 0.02
"""How far the new sole goes below the old, in foot lengths."""
UNSURE_HEIGHT = 0.55
"""How high an old shoe is taken to be where its outline is doubtful, in foot lengths."""
SHADOW = 0.5
BESIDE = 0.08
"""How far an old shoe may reach beyond heel and toe, in foot lengths."""


@dataclass(frozen=True, slots=True)
class _Placed:
    """One shoe laid over the crop."""

    foot: Foot
    rgb: Float32Array
    cover: Float32Array
    old: BoolArray
    """The shoe that is worn."""
    leg: Float32Array
    """In [0, 1]: the trouser leg or ankle in front of the shoe."""


def read_footwear(product_hwc: UInt8Array) -> Shoe:
    """The part of the work that knows nothing of the person.

    Raises:
        GenerationFailed: the product picture shows nothing but background.
    """
    return read_shoe(cut_out(product_hwc))


def wear_shoes(
    request: ExpertRequest,
    rng: np.random.Generator,
    read: Callable[[UInt8Array], Shoe] = read_footwear,
) -> tuple[UInt8Array, UInt8Array]:
    """Paint the shoes onto the feet.

    Returns:
        The crop with new shoes (H, W, 3), and (H, W): 0 where the crop is as it was.

    Raises:
        GenerationFailed: the product picture shows nothing but background.
    """
    height, width = request.region_hw.shape
    window = find_window(request.region_hw, (width / 2, height / 2), max(height, width), 0.4)
    if window is None:
        return request.crop_hwc.copy(), np.zeros_like(request.region_hw)
    shoe = read(request.product_hwc)
    part = cut_window(request, window)
    return paste_window(request, window, *_wear(part, shoe, _gain(request)))


def _wear(request: ExpertRequest, shoe: Shoe, gain: Float32Array) -> tuple[UInt8Array, UInt8Array]:
    standing = find_standing(request)
    placed = [_place(request, shoe, foot, standing) for foot in find_feet(request, standing)]
    allowed = soften_inside(request.region_hw)[..., None]
    crop = request.crop_hwc.astype(np.float32)
    out = _without_old(request, placed, standing)
    gain = np.maximum(gain, _old_gain(request, shoe, placed))
    for one in placed:
        shade = SHADOW * _contact_shadow(one) * (1.0 - one.leg)
        out *= 1.0 - shade[..., None]
        cover = (one.cover * (1.0 - one.leg))[..., None]
        out += cover * (np.clip(one.rgb * gain, 0, 255) - out)
    image = np.rint(crop + allowed * (out - crop)).astype(np.uint8)
    return image, np.where((image != request.crop_hwc).any(-1), 255, 0).astype(np.uint8)


def _place(request: ExpertRequest, shoe: Shoe, foot: Foot, standing: BoolArray) -> _Placed:
    labels = _label(request, foot, standing)
    old = cv2.morphologyEx(
        (labels == SHOE).astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)
    )
    if request.silhouette_hw is None:
        foot = fit_to_shoe(foot, old > 0)
    else:
        # What stands beside the foot is another foot, or was never there.
        x0, x1 = sorted((float(foot.heel[0]), float(foot.toe[0])))
        slack = BESIDE * foot.length_px
        old[:, : max(int(x0 - slack), 0)] = 0
        old[:, max(int(x1 + slack), 0) :] = 0
    if request.silhouette_hw is not None and not foot.is_measured:
        top_y = float(foot.toe[1]) - UNSURE_HEIGHT * foot.length_px
        old[: max(int(top_y), 0)] = 0
    matrix, scale = _similarity(shoe, foot, _height(foot, old > 0))
    flat: Float32Array = shoe.image_hwc.astype(np.float32)
    flat[..., :3] *= flat[..., 3:] / 255.0
    if scale < 1.0:
        flat = np.asarray(cv2.GaussianBlur(flat, (0, 0), 0.45 / scale), np.float32)
    size = request.region_hw.shape[::-1]
    method = cv2.INTER_LINEAR if scale < 1.0 else cv2.INTER_CUBIC
    shown = cv2.warpAffine(flat, matrix, size, flags=method)
    cover = np.clip(shown[..., 3] / 255.0, 0.0, 1.0)
    rgb = shown[..., :3] / np.maximum(cover[..., None], 1e-3)
    leg = cv2.GaussianBlur((labels == LEG).astype(np.float32), (0, 0), 0.8)
    return _Placed(foot, rgb, cover, old > 0, np.asarray(leg, np.float32))


def _label(request: ExpertRequest, foot: Foot, standing: BoolArray) -> NDArray[np.int32]:
    """(H, W) parts; what stands there is trusted where a silhouette showed it."""
    if request.silhouette_hw is None:
        return label_parts(request.crop_hwc, foot)
    x0, x1 = sorted((int(foot.heel[0]), int(foot.toe[0])))
    rows = np.flatnonzero((request.region_hw[:, max(x0, 0) : x1 + 1] > 0).any(1))
    return label_parts(request.crop_hwc, foot, standing, float(rows[0]) if len(rows) else 0.0)


def _height(foot: Foot, old: BoolArray) -> float:
    """How high above the sole the old shoe reaches, in pixels; 0 where it was not found."""
    ys, xs = np.nonzero(old)
    if len(xs) < 16:
        return 0.0
    return float(np.percentile((np.stack([xs, ys], -1) - foot.heel) @ foot.up, 97.0))


def _similarity(shoe: Shoe, foot: Foot, height_px: float) -> tuple[FloatArray, float]:
    """Product pixels to crop pixels: heel on heel, toe on toe, mirrored if the foot points so."""
    scale = COVER * foot.length_px / max(shoe.length_px, 1.0)
    low_px, high_px = shoe.reach_px
    wanted = height_px / max(scale * (high_px - low_px), 1.0)
    stretch = float(np.clip(wanted, 1.0, MAX_STRETCH))
    along = (shoe.toe - shoe.heel) / max(shoe.length_px, 1.0)
    up = shoe.up
    turn = np.outer(foot.along, along) + stretch * np.outer(foot.up, up)
    linear = scale * turn
    middle = (foot.heel + foot.toe) / 2 - SINK * foot.length_px * foot.up
    offset = middle - linear @ ((shoe.heel + shoe.toe) / 2 + low_px * shoe.up)
    return np.column_stack([linear, offset]), float(scale)


def _without_old(
    request: ExpertRequest, placed: list[_Placed], standing: BoolArray
) -> Float32Array:
    """The crop with ground where the old shoes are."""
    hole = np.zeros(request.region_hw.shape, np.uint8)
    body = standing.astype(np.uint8)
    for one in placed:
        length_px = one.foot.length_px
        size = 2 * round(0.05 * length_px) + 1
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
        grown = np.asarray(cv2.dilate(one.old.astype(np.uint8), kernel), np.uint8)
        # The rim of the sole is often taken for ground.
        draw_line(grown, one.foot.heel, one.foot.toe, 0.16 * length_px, 1)
        if request.silhouette_hw is None:
            # Between collar and hem the old shoe passes for a sock; ground would look like a gap.
            low = one.foot.ankle - one.foot.up * 0.3 * length_px
            sock = np.zeros_like(hole)
            draw_line(sock, low, one.foot.ankle, 0.45 * length_px, 1)
            # Higher up is leg, whatever its colour.
            hem_y = max(round(float(one.foot.ankle[1]) - 0.12 * length_px), 0)
            grown[:hem_y] = 0
            grown[sock > 0] = 0
            body |= sock
        hole |= grown
        body |= grown | cv2.dilate((one.leg > 0.1).astype(np.uint8), kernel).astype(np.uint8)
    if request.silhouette_hw is not None:
        body |= (request.silhouette_hw > 127).astype(np.uint8)
    highest = min((one.foot.ankle[1] - 0.1 * one.foot.length_px for one in placed), default=0.0)
    body[: max(round(float(highest)), 0)] = 1
    crop = request.crop_hwc.astype(np.float32)
    for one in placed:
        hole[one.leg > 0.5] = 0
    if not hole.any() or body.all():
        return crop
    soft = cv2.GaussianBlur(hole.astype(np.float32), (0, 0), 1.0) * (hole > 0)
    ground = fill_from(request.crop_hwc, body == 0)
    out = np.asarray(crop + soft[..., None] * (ground - crop), np.float32)
    return out if request.silhouette_hw is None else _with_longer_legs(out, crop, placed)


def _with_longer_legs(out: Float32Array, crop: Float32Array, placed: list[_Placed]) -> Float32Array:
    """Legs drawn on down to the new shoe, where the old one reached higher."""
    for one in placed:
        leg = one.leg > 0.5
        if leg.sum() < 64:
            continue
        hem_y = int(np.percentile(np.nonzero(leg)[0], 99))
        size = max(round(0.08 * one.foot.length_px), 1)
        columns = np.flatnonzero(leg[max(hem_y - size, 0) : hem_y].any(0))
        if not len(columns):
            continue
        end_y = int(max(one.foot.heel[1], one.foot.toe[1]) - 0.35 * one.foot.length_px)
        # Ankles are narrower than hems.
        inset = round(0.16 * len(columns))
        x0, x1 = int(columns[0]) + inset, int(columns[-1]) + 1 - inset
        part = slice(max(hem_y - 2 * size, 0), max(end_y, hem_y) + 4), slice(max(x0 - 4, 0), x1 + 4)
        more = np.zeros(leg.shape, np.float32)
        more[part[0].start : end_y, x0:x1] = 1.0
        rim = cv2.dilate(one.old[part].astype(np.float32), np.ones((5, 5), np.uint8))
        soft = cv2.GaussianBlur(more[part] * rim, (0, 0), 0.8)[..., None]
        colours = fill_from(crop[part].astype(np.uint8), leg[part])
        out[part] += soft * (colours - out[part])
    return out


def _contact_shadow(one: _Placed) -> Float32Array:
    """Soft darkness that the sole throws on the ground, in [0, 1]."""
    length_px = one.foot.length_px
    x, y = -one.foot.up * 0.03 * length_px
    low = np.zeros(one.cover.shape, np.uint8)
    draw_line(low, one.foot.heel, one.foot.toe, 0.16 * length_px, 1)
    matrix = np.array([[1, 0, x], [0, 1, y]], np.float64)
    sole = cv2.warpAffine(one.cover * low, matrix, low.shape[::-1])
    return np.asarray(cv2.GaussianBlur(sole, (0, 0), max(0.035 * length_px, 0.6)), np.float32)


def _old_gain(request: ExpertRequest, shoe: Shoe, placed: list[_Placed]) -> float:
    """The light on the feet: new shoes are not darker than bright old ones were."""
    old = np.logical_or.reduce([one.old for one in placed]) if placed else np.zeros(0, np.bool_)
    new = shoe.image_hwc[shoe.image_hwc[..., 3] > 200][:, :3]
    if old.sum() < 64 or not len(new):
        return 0.0
    bright_old, bright_new = (
        float(np.percentile(pixels.mean(-1), 90)) for pixels in (request.crop_hwc[old], new)
    )
    return min(0.96 * bright_old / max(bright_new, 1.0), 1.0)


def _gain(request: ExpertRequest) -> Float32Array:
    if request.silhouette_hw is None:
        person = np.ones(request.region_hw.shape, np.bool_)
    else:
        person = request.silhouette_hw > 127
    return scene_gain(request.crop_hwc, person) * scene_tint(request.crop_hwc)
