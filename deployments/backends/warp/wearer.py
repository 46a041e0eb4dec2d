"""Tells skin from the old garment on the person, and completes the body by what it sees."""

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from deployments.backends.warp.body import Body, trace
from deployments.backends.warp.cloth import colour_distance, main_colours
from deployments.backends.warp.complexion import (
    Complexion,
    find_complexion,
    guess_complexion,
    limb_mask,
    skin_distance,
    to_lab,
)
from deployments.backends.warp.limbs import refine_arms, refine_hips, refine_legs
from deployments.backends.warp.outline import smooth
from deployments.backends.warp.torso import near, torso_depth, torso_mask
from serve.messages import Expert, ExpertRequest

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
    under_hw: BoolArray
    """What a dress hides besides it: the trousers or the skirt."""
    body_hw: BoolArray
    """Where a body without loose clothes would be."""
    arms_hw: BoolArray
    """The part of it that is arms."""
    complexion: Complexion
    hem_depth: float | None
    """Where the old top ends, 0 at the shoulders and 1 at the hips; None where it is not seen."""


def read_wearer(request: ExpertRequest, body: Body, expert: Expert) -> tuple[Wearer, Body]:
    """What is seen of the wearer, and the body with its limbs moved to where they are seen."""
    assert request.silhouette_hw is not None
    lab = to_lab(request.crop_hwc)
    person = request.silhouette_hw > 127
    complexion = find_complexion(lab, request.landmarks.face, body, person)
    if expert != "bottom":
        # Hips are guessed more often than shoulders: the chest's colour shows where they are.
        chest, _ = main_colours(lab, complexion, body, person, expert, 0.5)
        body = refine_hips(body, person & (colour_distance(lab, chest[:1]) < 20.0))
    colours, bare = main_colours(lab, complexion, body, person, expert, 0.85)
    if not complexion.is_seen:
        complexion = guess_complexion(lab[person & (colour_distance(lab, colours) > 22.0)], body)
    complexion = replace(complexion, tones=(*complexion.tones, *bare))
    to_skin, to_cloth = skin_distance(lab, complexion), colour_distance(lab, colours)
    # In doubt, what lies on the torso is the garment in shade or its print, and no skin.
    trunk = near(torso_mask(body, person.shape, 0.0), _size(body, 0.2))
    doubt = np.where(trunk, 9.0, 2.0)
    bare_hw = _tidy(person & (to_skin < 15.0) & (to_skin + doubt < to_cloth), _size(body, 0.008))
    body = refine_arms(body, person, bare_hw)
    grown = cv2.dilate(person.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    cloth = grown & (to_cloth < to_skin + doubt) & (to_cloth < 24.0)
    if expert == "bottom":
        body = refine_legs(body, _tidy(person & (cloth | bare_hw), _size(body, 0.03)))
    cloth &= _garment_zone(body, person.shape, expert)
    cloth = _tidy(cloth, _size(body, 0.012)) | _specks_on_torso(cloth, body)
    cloth = _connected(cloth, garment_core(body, person.shape, expert))
    skin = _tidy(person & (to_skin < 15.0) & ~cloth, _size(body, 0.008))
    under = np.zeros_like(cloth)
    if expert == "dress":
        under = _find_trousers(lab, complexion, body, grown & ~cloth & ~skin)
    arms = _bare_arms(body, skin)
    body_hw = _bare_body(body, person.shape) | arms
    hem = None
    if expert == "top":
        hem = _find_hem(body, cloth & (colour_distance(lab, colours[:1]) < 24.0))
    return Wearer(lab, person, skin, cloth, under, body_hw, arms, complexion, hem), body


def _find_hem(body: Body, cloth_hw: BoolArray) -> float | None:
    """Last depth at which the garment's main colour spans the middle of the body."""
    size = (cloth_hw.shape[0], cloth_hw.shape[1])
    depth = torso_depth(body, size)
    top, bottom = np.mean(body.shoulders, axis=0), np.mean(body.hips, axis=0)
    middle = limb_mask(size, [top, bottom + 0.3 * (bottom - top)], (0.2 * body.unit_px,) * 2)
    steps = ((depth[middle] - 0.5) / 0.02).astype(int)
    known = (steps >= 0) & (steps < 40)
    every = np.bincount(steps[known], minlength=40)
    worn = np.bincount(steps[known], weights=cloth_hw[middle][known], minlength=40)
    spanned = np.flatnonzero((every >= 4) & (worn > 0.5 * every))
    return 0.5 + 0.02 * float(spanned[-1] + 1) if spanned.size else None


def _find_trousers(
    lab_hwc: FloatArray, complexion: Complexion, body: Body, free_hw: BoolArray
) -> BoolArray:
    """What else is worn below the hips, in its own colours."""
    colours, _ = main_colours(lab_hwc, complexion, body, free_hw, "bottom", 0.85)
    worn = free_hw & (colour_distance(lab_hwc, colours) < 24.0)
    worn &= torso_depth(body, (free_hw.shape[0], free_hw.shape[1])) > 0.7
    worn = _tidy(worn, _size(body, 0.012))
    return _connected(worn, garment_core(body, free_hw.shape, "bottom"))


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
    inside = torso_mask(body, size, 0.05 * unit)
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


def _bare_arms(body: Body, skin_hw: BoolArray) -> BoolArray:
    """Arms as thick as what is seen of them, and where it is seen."""
    size, unit = (skin_hw.shape[0], skin_hw.shape[1]), body.unit_px
    mask = np.zeros(size, bool)
    for arm in body.arms:
        path = trace([*arm, arm[2] + 0.35 * (arm[2] - arm[1])], 0.1 * unit)
        t = np.linspace(0.0, path.length_px, 40)
        place, tangent = path.at(t)
        normal = np.stack([-tangent[:, 1], tangent[:, 0]], axis=1)
        knots = np.array([0.0, 0.4, 0.75, 1.0]) * path.length_px
        usual = unit * np.interp(t, knots, (0.15, 0.125, 0.085, 0.08))
        aside, half = _seen_across(skin_hw, place, normal, unit)
        seen = np.isfinite(aside)
        if seen.sum() >= 4:
            # Under the old sleeve the arm goes on from where it came out, to the shoulder.
            stout = np.interp(t, t[seen], (half / usual)[seen]).clip(0.7, 1.35)
            fade = np.clip(t / max(float(t[seen][0]), 1.0), 0.0, 1.0)
            place = place + (np.interp(t, t[seen], aside[seen]) * fade)[:, None] * normal
            usual = usual * smooth(stout, 2)
        mask |= limb_mask(size, list(place), tuple(usual))
    return mask


def _seen_across(
    skin_hw: BoolArray,
    place: NDArray[np.float64],
    normal: NDArray[np.float64],
    unit_px: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(n,) how far aside of each place bare skin has its middle, and its half-width; else NaN."""
    height, width = skin_hw.shape
    steps = np.arange(-round(0.35 * unit_px), round(0.35 * unit_px) + 1)
    xy = np.rint(place[:, None] + steps[:, None] * normal[:, None]).astype(int)
    within = (xy >= 0).all(axis=2) & (xy[..., 0] < width) & (xy[..., 1] < height)
    clipped = xy.clip(0, (width - 1, height - 1))
    on = skin_hw[clipped[..., 1], clipped[..., 0]] & within
    aside, half = np.full(len(place), np.nan), np.full(len(place), np.nan)
    for i, profile in enumerate(np.pad(on, ((0, 0), (1, 1))).astype(np.int8)):
        starts, ends = np.flatnonzero(np.diff(profile) == 1), np.flatnonzero(np.diff(profile) == -1)
        # What reaches the end of the scan is more than an arm.
        fits = (ends - starts > 0.1 * unit_px) & (ends - starts < 0.4 * unit_px)
        fits &= (starts > 0) & (ends < len(steps))
        if fits.any():
            middles = steps[0] + (starts + ends - 1)[fits] / 2.0
            nearest = int(np.abs(middles).argmin())
            aside[i], half[i] = middles[nearest], (ends - starts)[fits][nearest] / 2.0
    return aside, half


def _bare_body(body: Body, shape: tuple[int, ...]) -> BoolArray:
    size, unit = (shape[0], shape[1]), body.unit_px
    mask = torso_mask(body, size, 0.0)
    for leg in body.legs:
        mask |= limb_mask(size, leg, (0.25 * unit, 0.18 * unit, 0.11 * unit))
    return mask | limb_mask(size, [body.chin, body.neck], (0.17 * unit, 0.19 * unit))


def _garment_zone(body: Body, shape: tuple[int, ...], expert: Expert) -> BoolArray:
    """Where the old garment of this kind may be; generous."""
    depth = torso_depth(body, (shape[0], shape[1]))
    size, unit = (shape[0], shape[1]), body.unit_px
    if expert == "dress":
        spine = body.axis(with_legs=True).points[::8]
        return limb_mask(size, list(spine), (1.1 * unit,) * len(spine))
    if expert == "top":
        mask = near(torso_mask(body, size, 0.0), round(0.28 * unit))
        for arm in body.arms:
            mask |= limb_mask(size, arm, (0.36 * unit, 0.36 * unit, 0.25 * unit))
        return np.asarray(mask & (depth < 1.05))
    return np.asarray(depth > 0.8)
