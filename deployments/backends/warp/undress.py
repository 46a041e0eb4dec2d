"""Takes the old garment away where the new one does not cover it: skin on the body, else backdrop."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from deployments.backends.warp.body import Body
from deployments.backends.warp.complexion import (
    Complexion,
    find_complexion,
    limb_mask,
    paint_skin,
    skin_distance,
    to_lab,
)
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


def read_wearer(request: ExpertRequest, body: Body, expert: Expert) -> Wearer:
    assert request.silhouette_hw is not None
    lab = to_lab(request.crop_hwc)
    person = request.silhouette_hw > 127
    complexion = find_complexion(lab, request.landmarks.face, body, person)
    to_skin = skin_distance(lab, complexion)
    zone = _garment_zone(body, person.shape, expert)
    to_cloth = _cloth_distance(lab, to_skin, body, person, expert)
    grown = cv2.dilate(person.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    cloth = grown & zone & (to_cloth < to_skin + 4.0) & (to_cloth < 26.0)
    cloth = _tidy(cloth, max(1, round(0.012 * body.unit_px)))
    skin = person & (to_skin < 15.0) & ~cloth
    skin = _tidy(skin, max(1, round(0.008 * body.unit_px)))
    return Wearer(lab, person, skin, cloth, _bare_body(body, person.shape), complexion)


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
    size = (shape[0], shape[1])
    unit = body.unit_px
    mask = np.zeros(size, bool)
    if expert in ("top", "dress"):
        mask |= _torso(body, size, 0.28 * unit)
        for arm in body.arms:
            mask |= limb_mask(size, arm, (0.34 * unit, 0.34 * unit, 0.25 * unit))
    if expert in ("bottom", "dress"):
        for leg in body.legs:
            mask |= limb_mask(size, leg, (0.45 * unit, 0.38 * unit, 0.32 * unit))
        mask |= limb_mask(size, list(body.hips), (0.45 * unit, 0.45 * unit))
    return mask


def _cloth_distance(
    lab_hwc: FloatArray, to_skin: FloatArray, body: Body, person_hw: BoolArray, expert: Expert
) -> FloatArray:
    """Lab distance to the nearest of the old garment's main colours."""
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
    samples = lab_hwc[probe & person_hw & (to_skin > 13.0)]
    if len(samples) < 0.15 * max(1, int((probe & person_hw).sum())):
        return np.full(size, np.inf, np.float32)
    cv2.setRNGSeed(0)
    picked = np.ascontiguousarray(samples[:: max(1, len(samples) // 4000)])
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 0.5)
    count = min(4, len(picked))
    _, labels, centres = cv2.kmeans(picked, count, np.empty(0), stop, 1, cv2.KMEANS_PP_CENTERS)
    shares = np.bincount(labels.ravel(), minlength=count) / len(picked)
    weights = np.array([0.6, 1.0, 1.0], np.float32)  # folds change lightness most
    distances = [
        np.linalg.norm((lab_hwc - centre) * weights, axis=2)
        for centre, share in zip(centres, shares, strict=True)
        if share > 0.08
    ]
    return np.asarray(np.min(distances, axis=0), np.float32)


def uncover(
    request: ExpertRequest, wearer: Wearer, body: Body, garment_alpha: FloatArray
) -> tuple[UInt8Array, FloatArray]:
    """The crop without what still shows of the old garment.

    Returns:
        The new (H, W, 3) crop and (H, W) where it was changed, in [0, 1].
    """
    unit = body.unit_px
    shown = wearer.cloth_hw & (garment_alpha < 0.98)
    fringe = max(2, round(0.015 * unit))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * fringe + 1, 2 * fringe + 1))
    shown = cv2.dilate(shown.astype(np.uint8), kernel) > 0
    shown &= ~(wearer.skin_hw & ~_near(wearer.cloth_hw, 2))
    shown &= request.region_hw > 0
    if not shown.any():
        return request.crop_hwc, np.zeros(shown.shape, np.float32)
    skin = paint_skin(wearer.lab_hwc, wearer.complexion, wearer.skin_hw, wearer.body_hw, unit)
    backdrop = fill_backdrop(request.crop_hwc, wearer.person_hw | wearer.cloth_hw, shown)
    body_soft = cv2.GaussianBlur(wearer.body_hw.astype(np.float32), (0, 0), 1.2)[..., None]
    filled = body_soft * skin + (1 - body_soft) * backdrop
    change = cv2.GaussianBlur(shown.astype(np.float32), (0, 0), 1.2)
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
