"""Dresses a person in a top, a bottom or a dress by bending the product along the body."""

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from deployments.backends.warp.body import Body, find_body
from deployments.backends.warp.complexion import limb_mask
from deployments.backends.warp.cutout import cut_out
from deployments.backends.warp.light import (
    blur,
    composite,
    fold_shading,
    scene_gain,
    scene_tint,
    shade,
)
from deployments.backends.warp.lower import fit_lower
from deployments.backends.warp.mesh import FloatArray, over, warp
from deployments.backends.warp.neckline import neck_hole
from deployments.backends.warp.outline import read_lower, read_upper
from deployments.backends.warp.placement import Part, Seen, fit_region
from deployments.backends.warp.seams import close_seams
from deployments.backends.warp.torso import near, torso_depth, torso_mask
from deployments.backends.warp.undress import uncover
from deployments.backends.warp.upper import fit_upper
from deployments.backends.warp.wearer import Wearer, garment_core, read_wearer
from serve.messages import Expert, ExpertRequest, UInt8Array

BoolArray = NDArray[np.bool_]


def dress_garment(
    request: ExpertRequest,
    expert: Expert,
    rng: np.random.Generator,
    read: Callable[[UInt8Array], UInt8Array] = cut_out,
) -> tuple[UInt8Array, UInt8Array]:
    """Put the product on the person.

    Args:
        expert: top, bottom or dress.
        rng: unused: the same inputs give the same picture whatever the seed.
        read: cuts the product out.

    Returns:
        (H, W, 3) the crop with the garment on, and (H, W) its change in [0, 255]; both leave the
        crop as it was where the region is 0.

    Raises:
        GenerationFailed: the product picture shows no product.
    """
    product = read(request.product_hwc)
    body = find_body(request.landmarks)
    if body is None or request.silhouette_hw is None or not request.silhouette_hw.any():
        return _dress_region(request, product)
    wearer, body = read_wearer(request, body, expert)
    parts, hole = place_garment(product, expert, body, _see(request, wearer, body, expert))
    layer = _draw_in_order(parts, hole, wearer, body, expert)
    layer = _light(layer, request, wearer.cloth_hw, wearer.person_hw, body.unit_px)
    allowed = request.region_hw.astype(np.float32) / 255.0
    sleeves = [part for part in parts if part.is_sleeve]
    sleeves_hw = draw_parts(sleeves, wearer.person_hw.shape)[..., 3] > 127
    alpha = layer[..., 3] / 255.0
    hidden = near(sleeves_hw, round(0.14 * body.unit_px)) & ~_below_cuffs(parts, body, alpha.shape)
    base, change = uncover(request, wearer, body, expert, alpha, hidden)
    return _finish(request, base, layer, np.maximum(change, alpha), allowed)


def _dress_region(request: ExpertRequest, product: UInt8Array) -> tuple[UInt8Array, UInt8Array]:
    region = request.region_hw > 0
    height, width = region.shape
    if not region.any():
        return request.crop_hwc.copy(), np.zeros((height, width), np.uint8)
    layer = draw_parts(fit_region(product, request.region_hw), (height, width))
    unit = float(np.sqrt(region.sum()) / 2)
    layer = _light(layer, request, region, region, unit)
    allowed = request.region_hw.astype(np.float32) / 255.0
    return _finish(request, request.crop_hwc, layer, layer[..., 3] / 255.0, allowed)


def _finish(
    request: ExpertRequest,
    base_hwc: UInt8Array,
    layer: FloatArray,
    change: FloatArray,
    allowed: FloatArray,
) -> tuple[UInt8Array, UInt8Array]:
    rgb = layer[..., :3] / np.maximum(layer[..., 3:], 1e-3) * 255.0
    dressed = composite(base_hwc, np.asarray(rgb, np.float32), layer[..., 3] / 255.0)
    image = composite(request.crop_hwc, dressed.astype(np.float32), allowed)
    alpha = np.rint(change.clip(0, 1) * allowed * 255.0).astype(np.uint8)
    return np.where(alpha[..., None] > 0, image, request.crop_hwc), alpha


def _see(request: ExpertRequest, wearer: Wearer, body: Body, expert: Expert) -> Seen:
    person = wearer.person_hw.astype(np.uint8)
    garment = person
    if _covers(wearer, body, expert):
        kernel_px = 2 * round(0.06 * body.unit_px) + 1
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (kernel_px, kernel_px))
        worn = wearer.cloth_hw | wearer.under_hw
        closed = cv2.morphologyEx(worn.astype(np.uint8), cv2.MORPH_CLOSE, kernel)
        garment = np.asarray(closed, np.uint8)
    return Seen(person * 255, garment * 255, request.region_hw, wearer.hem_depth)


def place_garment(
    product_hwc: UInt8Array,
    expert: Expert,
    body: Body,
    seen: Seen,
) -> tuple[list[Part], Part | None]:
    """Where the parts of the product fall, and the opening that the neck comes out of."""
    if expert == "bottom":
        outline = read_lower(product_hwc)
        return fit_lower(product_hwc, outline, body, seen), None
    outline = read_upper(product_hwc, expert == "dress")
    parts = fit_upper(product_hwc, outline, body, seen, expert == "dress")
    return parts, replace(parts[0], product_hwc=neck_hole(product_hwc, outline))


def draw_parts(parts: list[Part], size_hw: tuple[int, ...]) -> FloatArray:
    """(H, W, 4) premultiplied; later parts in front."""
    height, width = size_hw[:2]
    drawn = np.zeros((height, width, 4), np.float32)
    for part in parts:
        drawn = over(warp(part.product_hwc, part.source, part.target, (height, width)), drawn)
    return drawn


def _draw_in_order(
    parts: list[Part], hole: Part | None, wearer: Wearer, body: Body, expert: Expert
) -> FloatArray:
    """Body of the garment, then bare arms and hands, then sleeves."""
    size = (wearer.person_hw.shape[0], wearer.person_hw.shape[1])
    behind = [part for part in parts if not part.is_sleeve]
    front = [part for part in parts if part.is_sleeve]
    layer = draw_parts(behind, size)
    hands = _front_skin(wearer, _hands(body, size, has_sleeves=bool(front)), body, 0.035)
    zone = _forearms(body, size, expert)
    if _covers(wearer, body, expert):
        # On somebody who is dressed, skin before the body is an arm, wherever landmarks have it.
        zone |= _before_body(wearer, body, expert)
    arms = _front_skin(wearer, zone, body, 0.05)
    layer *= (1.0 - np.maximum(hands, arms))[..., None]
    layer = over(draw_parts(front, size) * (1.0 - hands)[..., None], layer)
    layer = close_seams(layer, front, body.unit_px)
    if hole is not None:
        # Beside the neck the inside of the collar's back stays in sight.
        opening = (
            draw_parts([hole], size)[..., 3] / 255.0 * _feather(wearer.person_hw, body.unit_px)
        )
        layer *= (1.0 - np.maximum(_face(body, wearer, size), opening))[..., None]
    return layer


def _front_skin(wearer: Wearer, zone_hw: BoolArray, body: Body, least_share: float) -> FloatArray:
    """Bare arms and hands; not the specks of a garment in the colour of skin.

    Args:
        least_share: half of the least thickness, in shoulder widths.
    """
    kernel_px = 2 * round(least_share * body.unit_px) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (kernel_px, kernel_px))
    skin = cv2.morphologyEx((wearer.skin_hw & zone_hw).astype(np.uint8), cv2.MORPH_CLOSE, kernel)
    opened = np.asarray(cv2.morphologyEx(skin, cv2.MORPH_OPEN, kernel), np.uint8)
    solid = _without_specks(opened, body.unit_px)
    grown = cv2.dilate(solid, np.ones((5, 5), np.uint8)) > 0
    return _feather(grown & (skin > 0), body.unit_px)


def _without_specks(mask_hw: UInt8Array, unit_px: float) -> UInt8Array:
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask_hw)
    is_large = stats[:, cv2.CC_STAT_AREA] > 0.045 * unit_px**2
    return np.asarray(is_large[labels] & (mask_hw > 0), np.uint8)


def _feather(mask_hw: BoolArray, unit_px: float) -> FloatArray:
    sigma = max(0.7, 0.006 * unit_px)
    return np.asarray(blur(mask_hw.astype(np.float32), sigma), np.float32)


def _covers(wearer: Wearer, body: Body, expert: Expert) -> bool:
    """Whether the old garment covers where the new one goes."""
    core = garment_core(body, wearer.person_hw.shape, expert) & wearer.person_hw
    return bool((wearer.cloth_hw & core).sum() > 0.6 * max(1, int(core.sum())))


def _before_body(wearer: Wearer, body: Body, expert: Expert) -> BoolArray:
    """Skin before the body that is no neckline and no cut-out: it comes in from the side."""
    size = (wearer.skin_hw.shape[0], wearer.skin_hw.shape[1])
    depth = torso_depth(body, size)
    if expert == "bottom":
        return np.asarray((depth > 0.75) & (depth < 1.6))
    inside = torso_mask(body, size, 0.1 * body.unit_px) & (depth > 0.4)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(
        (wearer.skin_hw & inside).astype(np.uint8)
    )
    edge = np.unique(labels[near(~inside, 2) & inside])
    is_arm = stats[:, cv2.CC_STAT_AREA] > 0.07 * body.unit_px**2
    is_arm &= np.isin(np.arange(len(stats)), edge[edge > 0])
    return np.asarray(is_arm[labels])


def _forearms(body: Body, size: tuple[int, int], expert: Expert) -> BoolArray:
    """From the middle of the upper arm: above, a strap or a sleeveless shoulder lies on the arm."""
    unit = body.unit_px
    mask = np.zeros(size, bool)
    if expert == "bottom":
        return _hands(body, size, has_sleeves=False)
    for shoulder, elbow, wrist in body.arms:
        joints = [0.4 * shoulder + 0.6 * elbow, elbow, wrist]
        mask |= limb_mask(size, joints, (0.17 * unit, 0.17 * unit, 0.14 * unit))
    return mask | _hands(body, size, has_sleeves=False)


def _hands(body: Body, size: tuple[int, int], has_sleeves: bool) -> BoolArray:
    unit = body.unit_px
    mask = np.zeros(size, bool)
    for _, elbow, wrist in body.arms:
        forearm = wrist - elbow
        along = forearm / max(float(np.linalg.norm(forearm)), 1e-6) * unit
        start = wrist + (0.12 if has_sleeves else 0.0) * along
        mask |= limb_mask(size, [start, wrist + 0.45 * along], (0.16 * unit, 0.24 * unit))
    return mask


def _below_cuffs(parts: list[Part], body: Body, size: tuple[int, ...]) -> BoolArray:
    """Upper arms from where short sleeves end."""
    mask = np.zeros(size[:2], bool)
    for part in parts:
        if not part.is_sleeve:
            continue
        shoulder, elbow, _ = body.arms[part.side]
        arm = elbow - shoulder
        cuff = part.target[-2, part.target.shape[1] // 2] - shoulder
        share = float(cuff @ arm) / max(float(arm @ arm), 1e-6)
        if share < 1.0:
            joints = [shoulder + max(share, 0.0) * arm, elbow]
            mask |= limb_mask((size[0], size[1]), joints, (0.2 * body.unit_px,) * 2)
    return mask


def _face(body: Body, wearer: Wearer, size: tuple[int, int]) -> FloatArray:
    """Chin and all above it stay in front of any collar."""
    unit = body.unit_px
    up = body.chin - body.neck
    up = up / max(float(np.linalg.norm(up)), 1e-6)
    face = limb_mask(
        size, [body.chin + 0.15 * unit * up, body.chin + 0.6 * unit * up], (0.2 * unit, 0.3 * unit)
    )
    return _feather(face & wearer.person_hw, unit)


def _light(
    layer: FloatArray,
    request: ExpertRequest,
    cloth_hw: BoolArray,
    person_hw: BoolArray,
    unit_px: float,
) -> FloatArray:
    factor = fold_shading(request.crop_hwc, cloth_hw, layer[..., 3] > 127, unit_px)
    # A garment turns away from us at its outline and gets darker there.
    inside = cv2.distanceTransform((layer[..., 3] > 127).astype(np.uint8), cv2.DIST_L2, 3)
    edge = np.clip(1.0 - inside / (0.09 * unit_px), 0.0, 1.0)
    round_off = 1.0 - 0.16 * blur(edge * edge, max(1.0, 0.02 * unit_px))
    factor = factor * np.asarray(round_off, np.float32)
    layer = shade(layer, factor * np.float32(scene_gain(request.crop_hwc, person_hw)))
    layer[..., :3] *= scene_tint(request.crop_hwc)
    layer[..., :3] = np.minimum(layer[..., :3], layer[..., 3:])
    return layer
