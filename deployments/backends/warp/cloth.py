"""Finds the colours of the garment that is to be replaced."""

import cv2
import numpy as np
from numpy.typing import NDArray

from deployments.backends.warp.body import Body
from deployments.backends.warp.complexion import (
    Complexion,
    is_other_light,
    limb_mask,
    looks_like_skin,
    skin_distance,
)
from deployments.backends.warp.torso import near
from serve.messages import Expert

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]


def main_colours(
    lab_hwc: FloatArray,
    complexion: Complexion,
    body: Body,
    person_hw: BoolArray,
    expert: Expert,
    reach: float,
) -> tuple[list[FloatArray], list[FloatArray]]:
    """Colours of the old garment, the most frequent first, and of skin between its parts.

    Args:
        reach: how far down the spine to look, 1 at the hips.
    """
    size = (person_hw.shape[0], person_hw.shape[1])
    unit = body.unit_px
    if expert == "bottom":
        probe = np.zeros(size, bool)
        for leg in body.legs:
            probe |= limb_mask(size, leg[:2], (0.12 * unit, 0.1 * unit))
    else:
        ends = [np.mean(body.shoulders, axis=0), np.mean(body.hips, axis=0)]
        spine = [ends[0] + share * (ends[1] - ends[0]) for share in (0.15, reach)]
        probe = limb_mask(size, spine, (0.28 * unit, 0.24 * unit))
    samples = lab_hwc[probe & person_hw]
    samples = samples[skin_distance(samples[None], complexion)[0] > 11.0]
    if len(samples) < max(16, 0.15 * int((probe & person_hw).sum())):
        return [], []
    cv2.setRNGSeed(0)
    picked = np.ascontiguousarray(samples[:: max(1, len(samples) // 4000)])
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 0.5)
    count = min(4, len(picked))
    start = np.zeros((len(picked), 1), np.int32)
    _, labels, found = cv2.kmeans(picked, count, start, stop, 1, cv2.KMEANS_PP_CENTERS)
    centres = np.asarray(found, np.float32)
    shares = np.bincount(labels.ravel(), minlength=count) / len(picked)
    bare = is_other_light(centres, complexion) & _below_neck(lab_hwc, centres, body)
    if expert == "bottom":
        bare |= looks_like_skin(centres) & (shares < 0.25)  # a hand before the thighs
    if shares[~bare].sum() < 0.25:
        bare[:] = False
    order = np.argsort(-shares, kind="stable")
    centres, shares, bare = centres[order], shares[order], bare[order]
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
    samples = lab_hwc[box & ~near(person_hw, 5)]
    if len(samples) < 200:
        return np.zeros(len(centres), bool)
    samples = samples[:: max(1, len(samples) // 3000)]
    distance = np.linalg.norm(samples[:, None] - centres[None], axis=2)
    return np.asarray((distance < 15.0).mean(axis=0) > 0.06)


def colour_distance(lab_hwc: FloatArray, colours: list[FloatArray]) -> FloatArray:
    weights = np.array([0.6, 1.0, 1.0], np.float32)  # folds change lightness most
    distances = [np.linalg.norm((lab_hwc - colour) * weights, axis=2) for colour in colours]
    return np.asarray(np.min([np.full(lab_hwc.shape[:2], np.inf), *distances], axis=0), np.float32)
