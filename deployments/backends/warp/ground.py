"""Tells what stands on the ground from the ground, where a silhouette is at its weakest."""

import cv2
import numpy as np
from numpy.typing import NDArray

from serve.messages import ExpertRequest, UInt8Array

BoolArray = NDArray[np.bool_]

WORK_PX = 144
"""Longer side of the region when it is divided: enough for an outline, and quick."""

OUTLINE_PX = 200
"""Longer side of the picture when a silhouette is redrawn in it."""
GROUND_COLOURS, MIN_SHARE = 5, 0.1
STRANGE = 3.2
"""Spreads from the nearest colour of the ground beyond which a pixel stands on it."""


def find_standing(request: ExpertRequest) -> BoolArray:
    """(H, W): the feet and legs: the silhouette drawn along the picture's edges, or, without one,
    what inside the region is not coloured as the ground around it."""
    region = (request.region_hw > 0).astype(np.uint8)
    if request.silhouette_hw is not None and (request.silhouette_hw[region > 0] > 127).any():
        return _redrawn(request.crop_hwc, request.silhouette_hw > 127, region > 0)
    x, y, width, height = cv2.boundingRect(region)
    margin = round(0.35 * max(width, height)) + 4
    rows = slice(max(y - margin // 2, 0), y + height + margin)
    columns = slice(max(x - margin, 0), x + width + margin)
    scale = min(WORK_PX / max(width, height, 1), 1.0)
    part = request.crop_hwc[rows, columns]
    size = [max(round(side * scale), 8) for side in part.shape[1::-1]]
    crop = np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_AREA), np.uint8)
    inside = np.asarray(
        cv2.resize(region[rows, columns] * 255, size, interpolation=cv2.INTER_AREA) > 127
    )
    body = _divide(crop, inside)
    found = np.zeros(region.shape, np.bool_)
    large = cv2.resize(body.astype(np.float32), part.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    found[rows, columns] = large > 0.5
    return found & (region > 0)


def _redrawn(crop_hwc: UInt8Array, silhouette: BoolArray, region: BoolArray) -> BoolArray:
    """The silhouette without shadows and corners, with what it lacks: colours decide."""
    scale = min(OUTLINE_PX / max(region.shape), 1.0)
    size = [max(round(side * scale), 8) for side in region.shape[::-1]]
    small = np.asarray(cv2.resize(crop_hwc, size, interpolation=cv2.INTER_AREA), np.uint8)
    seen, inside = (
        (cv2.resize(hw * np.float32(1), size, interpolation=cv2.INTER_AREA) > 0.5).astype(np.uint8)
        for hw in (silhouette, region)
    )
    mask = np.full(seen.shape, cv2.GC_BGD, np.uint8)
    mask[cv2.dilate(seen, _disc(5)) > 0] = cv2.GC_PR_BGD
    mask[seen > 0] = cv2.GC_PR_FGD
    mask[cv2.erode(seen, _disc(9)) > 0] = cv2.GC_FGD
    mask[(inside > 0) & (cv2.dilate(seen, _disc(12)) > 0) & (seen == 0)] = cv2.GC_PR_BGD
    if (mask == cv2.GC_BGD).sum() < 16:
        return silhouette
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(small, mask, (0, 0, 1, 1), *models, 2, cv2.GC_INIT_WITH_MASK)
    body = ((mask == cv2.GC_FGD) | (mask == cv2.GC_PR_FGD)).astype(np.float32)
    large = cv2.resize(body, region.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return np.asarray(large > 0.5, np.bool_)


def _disc(radius_px: int) -> UInt8Array:
    size = 2 * radius_px + 1
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size)), np.uint8)


def _divide(crop: UInt8Array, inside: BoolArray) -> UInt8Array:
    """1 on what stands there."""
    ys, _ = np.nonzero(inside)
    if len(ys) < 16:
        return inside.astype(np.uint8)
    top, bottom = int(ys.min()), int(ys.max())
    near = cv2.dilate(inside.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    row = np.arange(inside.shape[0])[:, None]
    ground = ~near & (row > top + 0.6 * (bottom - top))
    # The lowest rows of a region are hardly ever shoe.
    ground |= inside & (row >= bottom - 1)
    if ground.sum() < 24:
        return inside.astype(np.uint8)
    strange = _strangeness(crop, ground)
    mask = np.where(strange > STRANGE, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    mask[~inside & ~ground] = cv2.GC_PR_BGD
    mask[ground & (strange < STRANGE)] = cv2.GC_BGD
    if (mask == cv2.GC_PR_FGD).sum() < 8:
        return inside.astype(np.uint8)
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(crop, mask, (0, 0, 1, 1), *models, 2, cv2.GC_INIT_WITH_MASK)
    body = ((mask == cv2.GC_FGD) | (mask == cv2.GC_PR_FGD)).astype(np.uint8)
    return np.asarray(cv2.morphologyEx(body, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)), np.uint8)


def _strangeness(crop: UInt8Array, ground: BoolArray) -> NDArray[np.float32]:
    """Distance of each pixel to the nearest of the ground's colours, in their spreads."""
    smooth = cv2.GaussianBlur(crop, (0, 0), 1.0)
    lab = cv2.cvtColor(smooth.astype(np.float32) / 255.0, cv2.COLOR_RGB2LAB)
    sample = np.asarray(lab[ground], np.float32)
    cv2.setRNGSeed(0)
    rule = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_MAX_ITER, 12, 0.5)
    num = min(GROUND_COLOURS, len(sample))
    _, labels, centres = cv2.kmeans(sample, num, np.empty(0), rule, 1, cv2.KMEANS_PP_CENTERS)
    best = np.full(lab.shape[:2], np.inf, np.float32)
    for k, centre in enumerate(centres):
        members = sample[labels[:, 0] == k]
        # A rare colour around the region may be a foot that reaches out of it.
        if len(members) < MIN_SHARE * len(sample):
            continue
        spread = members.std(0) + np.array([2.5, 1.5, 1.5], np.float32)
        best = np.minimum(best, np.sqrt((((lab - centre) / spread) ** 2).sum(-1)))
    return best
