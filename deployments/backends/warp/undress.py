"""Takes the old garment away where the new one does not cover it: skin, else backdrop."""

import cv2
import numpy as np
from numpy.typing import NDArray

from deployments.backends.warp.body import Body
from deployments.backends.warp.complexion import limb_mask, paint_skin
from deployments.backends.warp.light import blur
from deployments.backends.warp.torso import near, torso_depth, torso_mask
from deployments.backends.warp.wearer import Wearer
from serve.messages import Expert, ExpertRequest, UInt8Array

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

_ANKLES = 2.45
"""Torso lengths below the shoulders at which trousers may end without seeming cut off."""


def uncover(
    request: ExpertRequest,
    wearer: Wearer,
    body: Body,
    expert: Expert,
    garment_alpha: FloatArray,
    covered_hw: BoolArray,
) -> tuple[UInt8Array, FloatArray]:
    """The crop without what still shows of the old garment.

    Args:
        covered_hw: under and beside new sleeves, where there is no bare arm.

    Returns:
        The new (H, W, 3) crop and (H, W) where it was changed, in [0, 1].
    """
    unit = body.unit_px
    worn = wearer.cloth_hw | wearer.under_hw
    shown = worn & (garment_alpha < 0.98)
    if expert == "top":
        # Below a shorter hem an undershirt looks better than a bare belly.
        size = (shown.shape[0], shown.shape[1])
        shown &= ~(torso_mask(body, size, 0.0) & (torso_depth(body, size) > 0.6))
    if expert == "dress":
        shown &= ~_continued_below(worn, garment_alpha, request.region_hw, body)
    if expert == "bottom":
        shown &= ~_cut_by_region(shown, request.region_hw, body)
    fringe = max(2, round(0.035 * unit))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * fringe + 1, 2 * fringe + 1))
    shown = cv2.dilate(shown.astype(np.uint8), kernel) > 0
    # The shadow that an old sleeve's hem casts on the arm goes with it.
    shown |= near(shown, round(0.05 * unit)) & wearer.arms_hw & (garment_alpha < 0.98)
    shown &= ~(wearer.skin_hw & ~near(worn, max(2, round(0.05 * unit))))
    shown &= request.region_hw > 0
    if not shown.any():
        return request.crop_hwc, np.zeros(shown.shape, np.float32)
    flesh = _bare_parts(wearer, body, garment_alpha) & ~covered_hw
    flesh = blur(flesh.astype(np.float32), 0.03 * unit) > 0.5
    # Where a body goes on under the garment it has no edge to be shaded.
    whole = flesh | (wearer.body_hw & (garment_alpha > 0.5))
    lit = wearer.skin_hw & ~near(worn, round(0.04 * unit))  # beside a garment lies its shadow
    lit &= ~_shoes(body, (lit.shape[0], lit.shape[1]))
    skin = paint_skin(wearer.lab_hwc, wearer.complexion, lit, whole, unit)
    backdrop = fill_backdrop(request.crop_hwc, wearer.person_hw | worn, shown)
    body_soft = blur(flesh.astype(np.float32), 1.2)[..., None]
    filled = body_soft * skin + (1 - body_soft) * backdrop
    change = blur(shown.astype(np.float32), max(1.2, 0.012 * unit))
    change = np.maximum(change, shown & near(~wearer.skin_hw, 1)) * (request.region_hw > 0)
    mixed = change[..., None] * filled + (1 - change[..., None]) * request.crop_hwc
    return np.asarray(np.rint(mixed), np.uint8), np.asarray(change, np.float32)


def _shoes(body: Body, size: tuple[int, int]) -> BoolArray:
    """Around the feet, where pale shoes look like skin."""
    mask = np.zeros(size, bool)
    for _, knee, ankle in body.legs:
        toe = ankle + 0.15 * (ankle - knee)
        mask |= limb_mask(size, [ankle, toe], (0.4 * body.unit_px, 0.4 * body.unit_px))
    return mask


def _bare_parts(wearer: Wearer, body: Body, garment_alpha: FloatArray) -> BoolArray:
    """Where skin would show: not beside the new garment, which hangs free of the body there."""
    depth = torso_depth(body, (garment_alpha.shape[0], garment_alpha.shape[1]))
    solid = garment_alpha > 0.5
    rows = np.flatnonzero(solid.any(axis=1))
    hem = np.zeros_like(wearer.body_hw)
    hem[int(rows[-1]) if rows.size else 0 :] = True
    # A hem is no straight line: legs begin where it ends above them.
    under = np.maximum.accumulate(solid[::-1], axis=0)[::-1]
    low = max(0, int(rows[-1] - 0.3 * body.unit_px)) if rows.size else 0
    hem[low:] |= (~under & solid.any(axis=0))[low:]
    beside = (depth > 0.3) & ~wearer.arms_hw & ~hem
    # What a collar covered beside the neck is no backdrop.
    size = (garment_alpha.shape[0], garment_alpha.shape[1])
    radius = 0.3 * body.unit_px
    collar = limb_mask(size, [body.neck, np.mean(body.shoulders, axis=0)], (radius, radius))
    collar &= wearer.person_hw & (depth < 0.15)
    return np.asarray((wearer.body_hw & ~beside) | wearer.skin_hw | collar)


def _cut_by_region(shown_hw: BoolArray, region_hw: UInt8Array, body: Body) -> BoolArray:
    """Parts that go on beyond the region: half a leg gone looks worse than a leg that stays."""
    _, labels = cv2.connectedComponents(shown_hw.astype(np.uint8))
    depth = torso_depth(body, (shown_hw.shape[0], shown_hw.shape[1]))
    at_end = (depth < 1.1) | (depth > _ANKLES)
    edge = labels[near(region_hw == 0, 1) & shown_hw & ~at_end]
    lengths = np.bincount(edge, minlength=int(labels.max()) + 1) / 2.0
    lengths[0] = 0.0
    areas = np.bincount(labels.ravel())
    lengths[areas < 0.15 * body.unit_px**2] = 0.0
    return np.asarray((lengths > 0.4 * body.unit_px)[labels])


def _continued_below(
    cloth_hw: BoolArray, garment_alpha: FloatArray, region_hw: UInt8Array, body: Body
) -> BoolArray:
    """Old cloth below the new hem that goes on beyond the region: trousers under a dress."""
    rows = np.flatnonzero((garment_alpha > 0.5).any(axis=1))
    below = np.zeros_like(cloth_hw)
    if rows.size:
        below[int(rows[-1] - 0.04 * body.unit_px) :] = True
    at_ankles = torso_depth(body, (cloth_hw.shape[0], cloth_hw.shape[1])) > _ANKLES
    cut = cloth_hw & below & near(region_hw == 0, 3) & ~at_ankles
    is_cut_by_hem = cut.any(axis=0).sum() > 0.25 * body.unit_px
    return cloth_hw & below if is_cut_by_hem else np.zeros_like(cloth_hw)


def fill_backdrop(crop_hwc: UInt8Array, person_hw: BoolArray, wanted_hw: BoolArray) -> UInt8Array:
    """Mirror the backdrop across the person's outline into `wanted_hw`."""
    outside = ~near(person_hw, 3)
    frame = np.zeros_like(outside)
    frame[8:-8, 8:-8] = True  # a picture's own border line is no backdrop
    outside &= frame
    if not outside.any():
        return crop_hwc
    _, labels = cv2.distanceTransformWithLabels(
        (~outside).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    places = np.argwhere(outside)
    lookup = np.zeros((int(labels.max()) + 1, 2), np.int64)
    lookup[labels[outside]] = places
    target = np.argwhere(wanted_hw)
    nearest = lookup[labels[wanted_hw]]
    height, width = person_hw.shape
    wanted = 2 * nearest - target
    mirrored = np.clip(wanted, 0, (height - 1, width - 1))
    is_free = outside[mirrored[:, 0], mirrored[:, 1]] & (mirrored == wanted).all(axis=1)
    source = np.where(is_free[:, None], mirrored, nearest)
    filled = crop_hwc.copy()
    filled[wanted_hw] = crop_hwc[source[:, 0], source[:, 1]]
    soft = cv2.GaussianBlur(filled, (0, 0), 1.5)
    filled[wanted_hw] = soft[wanted_hw]
    return filled
