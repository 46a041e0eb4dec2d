"""Takes the old garment away where the new one does not cover it: skin, else backdrop."""

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from deployments.backends.warp.body import Body
from deployments.backends.warp.complexion import (
    Complexion,
    find_complexion,
    is_other_light,
    limb_mask,
    paint_skin,
    skin_distance,
    to_lab,
)
from deployments.backends.warp.limbs import refine_arms, refine_hips, refine_legs
from serve.messages import Expert, ExpertRequest, UInt8Array

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Wearer:
    """What each pixel of the person is, as far as a garment has to know."""

    lab_hwc: FloatArray
    person_hw: BoolArray
    skin_hw: BoolArray
    cloth_hw: BoolArray
    """The garment to be replaced."""
    body_hw: BoolArray
    """Where a body without loose clothes would be."""
    complexion: Complexion


def read_wearer(request: ExpertRequest, body: Body, expert: Expert) -> tuple[Wearer, Body]:
    """What is seen of the wearer, and the body with its limbs moved to where they are seen."""
    assert request.silhouette_hw is not None
    lab = to_lab(request.crop_hwc)
    person = request.silhouette_hw > 127
    complexion = find_complexion(lab, request.landmarks.face, body, person)
    colours, bare = _main_colours(lab, complexion, body, person, expert)
    complexion = replace(complexion, tones=(*complexion.tones, *bare))
    to_skin, to_cloth = skin_distance(lab, complexion), _colour_distance(lab, colours)
    bare_hw = _tidy(person & (to_skin < 15.0) & (to_skin < to_cloth), _size(body, 0.008))
    body = refine_arms(body, person, bare_hw)
    grown = cv2.dilate(person.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    cloth = grown & (to_cloth < to_skin + 2.0) & (to_cloth < 24.0)
    if expert == "bottom":
        body = refine_legs(body, _tidy(person & (cloth | bare_hw), _size(body, 0.03)))
    else:
        body = refine_hips(body, cloth)
    cloth &= _garment_zone(body, person.shape, expert)
    cloth = _tidy(cloth, _size(body, 0.012)) | _specks_on_torso(cloth, body)
    cloth = _connected(cloth, garment_core(body, person.shape, expert))
    skin = _tidy(person & (to_skin < 15.0) & ~cloth, _size(body, 0.008))
    return Wearer(lab, person, skin, cloth, _bare_body(body, person.shape), complexion), body


def garment_core(body: Body, shape: tuple[int, ...], expert: Expert) -> BoolArray:
    """Where the old garment is for sure, if there is one: along the spine or the thighs."""
    size, radius = (shape[0], shape[1]), 0.15 * body.unit_px
    if expert == "bottom":
        first, second = (limb_mask(size, leg[:2], (radius, radius)) for leg in body.legs)
        return first | second
    top, bottom = np.mean(body.shoulders, axis=0), np.mean(body.hips, axis=0)
    return limb_mask(size, [0.8 * top + 0.2 * bottom, 0.2 * top + 0.8 * bottom], (radius, radius))


def _connected(mask_hw: BoolArray, core_hw: BoolArray) -> BoolArray:
    """Components that reach into the core: a wall of the garment's colour does not."""
    _, labels = cv2.connectedComponents(mask_hw.astype(np.uint8))
    inside = np.unique(labels[core_hw & mask_hw])
    return np.asarray(np.isin(labels, inside[inside > 0]))


def _size(body: Body, share: float) -> int:
    return max(1, round(share * body.unit_px))


def _specks_on_torso(cloth_hw: BoolArray, body: Body) -> BoolArray:
    """Prints and shaded folds that look like skin, in the middle of the cloth."""
    size = (cloth_hw.shape[0], cloth_hw.shape[1])
    unit = body.unit_px
    inside = _torso(body, size, 0.05 * unit)
    for arm in body.arms:
        inside &= ~limb_mask(size, arm[1:], (0.17 * unit, 0.17 * unit))
    kernel_px = 2 * round(0.07 * unit) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (kernel_px, kernel_px))
    closed = cv2.morphologyEx(cloth_hw.astype(np.uint8), cv2.MORPH_CLOSE, kernel) > 0
    return np.asarray(closed & inside)


def _tidy(mask_hw: BoolArray, radius_px: int) -> BoolArray:
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius_px + 1, 2 * radius_px + 1))
    closed = cv2.morphologyEx(mask_hw.astype(np.uint8), cv2.MORPH_CLOSE, kernel)
    return np.asarray(cv2.morphologyEx(closed, cv2.MORPH_OPEN, kernel) > 0)


def _polygon(shape: tuple[int, ...], corners: list[NDArray[np.float64]]) -> BoolArray:
    mask = np.zeros(shape[:2], np.uint8)
    cv2.fillPoly(mask, [np.rint(np.array(corners)).astype(np.int32)], 1)
    return mask > 0


def _bare_body(body: Body, shape: tuple[int, ...]) -> BoolArray:
    unit = body.unit_px
    size = (shape[0], shape[1])
    mask = _torso(body, size, 0.0)
    for arm in body.arms:
        hand = arm[2] + 0.35 * (arm[2] - arm[1])
        mask |= limb_mask(
            size, [*arm, hand], (0.15 * unit, 0.125 * unit, 0.085 * unit, 0.08 * unit)
        )
    for leg in body.legs:
        mask |= limb_mask(size, leg, (0.25 * unit, 0.18 * unit, 0.11 * unit))
    return mask | limb_mask(size, [body.chin, body.neck], (0.17 * unit, 0.19 * unit))


def _torso(body: Body, size: tuple[int, int], grow_px: float) -> BoolArray:
    """Shoulders to hips, without arms."""
    middle = np.mean(body.shoulders, axis=0)
    down = np.mean(body.hips, axis=0) - middle
    half = 0.5 * body.shoulder_px + grow_px
    corners = []
    for sign, shares in ((-1.0, (0.0, 0.3, 0.62, 1.0, 1.2)), (1.0, (1.2, 1.0, 0.62, 0.3, 0.0))):
        widths = dict(zip((0.0, 0.3, 0.62, 1.0, 1.2), (1.0, 0.92, 0.8, 0.95, 0.97), strict=True))
        corners += [
            middle + share * down + sign * widths[share] * half * body.across for share in shares
        ]
    neck = body.neck - 0.05 * body.unit_px * np.array([0.0, 1.0])
    side = 0.2 * body.unit_px * body.across
    return _polygon(size, [*corners, neck + side, neck - side])


def _garment_zone(body: Body, shape: tuple[int, ...], expert: Expert) -> BoolArray:
    """Where the old garment of this kind may be; generous."""
    depth = _depth(body, (shape[0], shape[1]))
    size = (shape[0], shape[1])
    if expert == "top":
        unit = body.unit_px
        mask = _near(_torso(body, size, 0.0), round(0.28 * unit))
        for arm in body.arms:
            mask |= limb_mask(size, arm, (0.36 * unit, 0.36 * unit, 0.25 * unit))
        return np.asarray(mask & (depth < 1.05))
    return depth > 0.8 if expert == "bottom" else depth > -1.0


def _depth(body: Body, size: tuple[int, int]) -> FloatArray:
    """How far down each pixel lies: 0 at the shoulders, 1 at the hips."""
    top, bottom = np.mean(body.shoulders, axis=0), np.mean(body.hips, axis=0)
    down = (bottom - top) / max(body.torso_px**2, 1.0)
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    return np.asarray((x - top[0]) * down[0] + (y - top[1]) * down[1], np.float32)


def _main_colours(
    lab_hwc: FloatArray,
    complexion: Complexion,
    body: Body,
    person_hw: BoolArray,
    expert: Expert,
) -> tuple[list[FloatArray], list[FloatArray]]:
    """Colours of the old garment, and of skin that shows between its parts."""
    size = (person_hw.shape[0], person_hw.shape[1])
    unit = body.unit_px
    if expert == "bottom":
        probe = np.zeros(size, bool)
        for leg in body.legs:
            probe |= limb_mask(size, leg[:2], (0.12 * unit, 0.1 * unit))
    else:
        ends = [np.mean(body.shoulders, axis=0), np.mean(body.hips, axis=0)]
        spine = [ends[0] + share * (ends[1] - ends[0]) for share in (0.15, 0.85)]
        probe = limb_mask(size, spine, (0.28 * unit, 0.24 * unit))
    samples = lab_hwc[probe & person_hw & (skin_distance(lab_hwc, complexion) > 11.0)]
    if len(samples) < 0.15 * max(1, int((probe & person_hw).sum())):
        return [], []
    cv2.setRNGSeed(0)
    picked = np.ascontiguousarray(samples[:: max(1, len(samples) // 4000)])
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 0.5)
    count = min(4, len(picked))
    start = np.zeros((len(picked), 1), np.int32)
    _, labels, centres = cv2.kmeans(picked, count, start, stop, 1, cv2.KMEANS_PP_CENTERS)
    shares = np.bincount(labels.ravel(), minlength=count) / len(picked)
    bare = is_other_light(centres, complexion) & _below_neck(lab_hwc, centres, body)
    if shares[~bare].sum() < 0.25:
        bare[:] = False
    own = ~bare & (shares > 0.06)
    # A gap in the silhouette, between legs or an arm and the body, is no cloth.
    backdrop = _looks_like_backdrop(lab_hwc, centres, person_hw) & (shares < 0.35)
    if shares[own & ~backdrop].sum() > 0.4:
        own &= ~backdrop
    return list(centres[own]), list(centres[bare])


def _below_neck(lab_hwc: FloatArray, centres: FloatArray, body: Body) -> BoolArray:
    """Which colours lie in a neckline rather than all over the chest."""
    size = (lab_hwc.shape[0], lab_hwc.shape[1])
    top, bottom = np.mean(body.shoulders, axis=0), np.mean(body.hips, axis=0)
    radius = 0.12 * body.unit_px
    shares = []
    for low, high in ((0.0, 0.2), (0.45, 0.85)):
        ends = [top + share * (bottom - top) for share in (low, high)]
        samples = lab_hwc[limb_mask(size, ends, (radius, radius))]
        nearest = np.linalg.norm(samples[:, None] - centres[None], axis=2)
        hits = (nearest.argmin(axis=1)[:, None] == np.arange(len(centres))) & (nearest < 14.0)
        shares.append(hits.mean(axis=0) if len(samples) else np.zeros(len(centres)))
    return np.asarray((shares[0] > 0.15) & (shares[0] > 1.5 * shares[1]))


def _looks_like_backdrop(
    lab_hwc: FloatArray, centres: FloatArray, person_hw: BoolArray
) -> BoolArray:
    rows, columns = np.nonzero(person_hw)
    box = np.zeros_like(person_hw)
    box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    samples = lab_hwc[box & ~_near(person_hw, 5)]
    if len(samples) < 200:
        return np.zeros(len(centres), bool)
    samples = samples[:: max(1, len(samples) // 3000)]
    distance = np.linalg.norm(samples[:, None] - centres[None], axis=2)
    return np.asarray((distance < 15.0).mean(axis=0) > 0.06)


def _colour_distance(lab_hwc: FloatArray, colours: list[FloatArray]) -> FloatArray:
    weights = np.array([0.6, 1.0, 1.0], np.float32)  # folds change lightness most
    distances = [np.linalg.norm((lab_hwc - colour) * weights, axis=2) for colour in colours]
    return np.asarray(np.min([np.full(lab_hwc.shape[:2], np.inf), *distances], axis=0), np.float32)


def uncover(
    request: ExpertRequest,
    wearer: Wearer,
    body: Body,
    expert: Expert,
    garment_alpha: FloatArray,
    sleeves_hw: BoolArray,
) -> tuple[UInt8Array, FloatArray]:
    """The crop without what still shows of the old garment.

    Returns:
        The new (H, W, 3) crop and (H, W) where it was changed, in [0, 1].
    """
    unit = body.unit_px
    shown = wearer.cloth_hw & (garment_alpha < 0.98)
    if expert == "top":
        # Below a shorter hem an undershirt looks better than a bare belly.
        size = (shown.shape[0], shown.shape[1])
        shown &= ~(_torso(body, size, 0.0) & (_depth(body, size) > 0.6))
    fringe = max(2, round(0.015 * unit))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * fringe + 1, 2 * fringe + 1))
    shown = cv2.dilate(shown.astype(np.uint8), kernel) > 0
    shown &= ~(wearer.skin_hw & ~_near(wearer.cloth_hw, 2))
    shown &= request.region_hw > 0
    if not shown.any():
        return request.crop_hwc, np.zeros(shown.shape, np.float32)
    # Beside a new sleeve there is no bare arm.
    flesh = (wearer.body_hw | wearer.skin_hw) & ~_near(sleeves_hw, round(0.14 * unit))
    flesh = cv2.GaussianBlur(flesh.astype(np.float32), (0, 0), 0.03 * unit) > 0.5
    skin = paint_skin(wearer.lab_hwc, wearer.complexion, wearer.skin_hw, flesh, unit)
    backdrop = fill_backdrop(request.crop_hwc, wearer.person_hw | wearer.cloth_hw, shown)
    body_soft = cv2.GaussianBlur(flesh.astype(np.float32), (0, 0), 1.2)[..., None]
    filled = body_soft * skin + (1 - body_soft) * backdrop
    change = cv2.GaussianBlur(shown.astype(np.float32), (0, 0), max(1.2, 0.012 * unit))
    change = np.maximum(change, shown & _near(~wearer.skin_hw, 1)) * (request.region_hw > 0)
    mixed = change[..., None] * filled + (1 - change[..., None]) * request.crop_hwc
    return np.asarray(np.rint(mixed), np.uint8), np.asarray(change, np.float32)


def _near(mask_hw: BoolArray, radius_px: int) -> BoolArray:
    kernel = np.ones((2 * radius_px + 1, 2 * radius_px + 1), np.uint8)
    return np.asarray(cv2.dilate(mask_hw.astype(np.uint8), kernel) > 0)


def fill_backdrop(crop_hwc: UInt8Array, person_hw: BoolArray, wanted_hw: BoolArray) -> UInt8Array:
    """Mirror the backdrop across the person's outline into `wanted_hw`."""
    outside = ~_near(person_hw, 3)
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
    mirrored = np.clip(2 * nearest - target, 0, (height - 1, width - 1))
    is_free = outside[mirrored[:, 0], mirrored[:, 1]]
    source = np.where(is_free[:, None], mirrored, nearest)
    filled = crop_hwc.copy()
    filled[wanted_hw] = crop_hwc[source[:, 0], source[:, 1]]
    soft = cv2.GaussianBlur(filled, (0, 0), 1.5)
    filled[wanted_hw] = soft[wanted_hw]
    return filled
