"""Divides the surroundings of one foot into worn shoe, leg and ground."""

import cv2
import numpy as np
from numpy.typing import NDArray

from deployments.backends.warp.feet import Foot
from serve.messages import UInt8Array

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
Labels = NDArray[np.int32]

SHOE, LEG, GROUND = 1, 2, 3
WORK_PX = 72
"""Length of a foot at which it is divided: enough for an outline, little enough to be quick."""
REACH = 1.0
"""How far around the middle of the foot is looked, in its lengths."""

LOWEST_HEM = 0.38
"""Foot lengths above the sole; what looks like leg below that is part of a shoe."""
MIN_CONTRAST = 18.0
"""Lab units between leg and shoe below which no edge between them can be trusted."""


def label_parts(
    crop_hwc: UInt8Array, foot: Foot, body_hw: BoolArray | None = None, leg_y: float = 0.0
) -> Labels:
    """(H, W): SHOE, LEG or GROUND; GROUND everywhere far from the foot.

    Args:
        body_hw: (H, W) what is foot or leg; where None it is told from the ground by colour.
        leg_y: with a body: the row above which it is leg in any case.
    """
    height, width = crop_hwc.shape[:2]
    labels = np.full((height, width), GROUND, np.int32)
    middle, reach_px = (foot.heel + foot.toe + foot.ankle) / 3, REACH * foot.length_px
    x0, y0 = (int(v) for v in np.clip(np.floor(middle - reach_px), 0, (width - 1, height - 1)))
    if body_hw is not None:
        y0 = max(min(y0, int(leg_y - 0.2 * foot.length_px)), 0)
    x1, y1 = (int(v) for v in np.clip(np.ceil(middle + reach_px), 1, (width, height)))
    if x1 - x0 < 8 or y1 - y0 < 8:
        return labels
    part = crop_hwc[y0:y1, x0:x1]
    scale = WORK_PX / foot.length_px
    size = (max(round((x1 - x0) * scale), 8), max(round((y1 - y0) * scale), 8))
    small = np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_AREA), np.uint8)
    near = foot.transformed(scale, np.array([-x0, -y0]) * scale)
    if body_hw is None:
        found = _divide(small, near, _is_body(small, near), _seeds(small.shape, near))
    else:
        part_hw = body_hw[y0:y1, x0:x1].astype(np.uint8) * 255
        body = np.asarray(cv2.resize(part_hw, size, interpolation=cv2.INTER_AREA) > 127, np.uint8)
        found = _divide_body(small, near, body, round((leg_y - y0) * scale))
    labels[y0:y1, x0:x1] = _enlarged(found, (x1 - x0, y1 - y0))
    return labels


def _is_body(small: UInt8Array, foot: Foot) -> UInt8Array:
    """1 on the foot and leg, told from the ground by colour: the silhouette is weakest here."""
    length_px = foot.length_px
    mask = np.full(small.shape[:2], cv2.GC_BGD, np.uint8)
    hull = np.zeros_like(mask)
    corners = np.array([foot.heel, foot.toe, foot.ankle + 0.1 * foot.up * length_px], np.float32)
    cv2.fillPoly(hull, [np.rint(cv2.convexHull(corners)).astype(np.int32)], 1)
    draw_line(hull, foot.ankle, foot.knee_side(0.7), 0.3 * length_px, 1)
    mask[cv2.dilate(hull, _disc(0.30 * length_px)) > 0] = cv2.GC_PR_BGD
    mask[cv2.dilate(hull, _disc(0.15 * length_px)) > 0] = cv2.GC_PR_FGD
    low = 0.3 * foot.up * length_px
    draw_line(mask, foot.heel - low, foot.toe - low, 0.1 * length_px, cv2.GC_BGD)
    mask[_seeds(small.shape, foot) > 0] = cv2.GC_FGD
    if (mask == cv2.GC_BGD).sum() < 16:
        return hull
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(small, mask, (0, 0, 1, 1), *models, 3, cv2.GC_INIT_WITH_MASK)
    body = ((mask == cv2.GC_FGD) | (mask == cv2.GC_PR_FGD)).astype(np.uint8)
    return np.asarray(cv2.morphologyEx(body, cv2.MORPH_OPEN, _disc(1)), np.uint8)


def _divide_body(small: UInt8Array, foot: Foot, body: UInt8Array, leg_row: int) -> Labels:
    """Leg reaches down from its row as far as it differs from the shoe; else all is shoe."""
    low = _seeds(small.shape, foot) * body
    seeds = np.where(low == SHOE, SHOE, 0).astype(np.uint8)
    leg = np.zeros_like(seeds)
    leg[max(leg_row - 5, 0) : max(leg_row, 1)] = 1
    leg = np.where((cv2.erode(body, _disc(1)) > 0) & (seeds == 0), leg, 0).astype(np.uint8)
    y, x = np.mgrid[: body.shape[0], : body.shape[1]]
    above_px = (x - foot.heel[0]) * foot.up[0] + (y - foot.heel[1]) * foot.up[1]
    is_low = (above_px < 0.75 * foot.length_px) & (y >= leg_row)
    everything = np.where((body > 0) & is_low, SHOE, GROUND).astype(np.int32)
    if min(leg.sum(), (seeds == SHOE).sum()) < 12:
        return everything
    lab = cv2.cvtColor(small.astype(np.float32) / 255.0, cv2.COLOR_RGB2LAB)
    colours = [np.median(lab[at > 0], axis=0) for at in (leg, seeds == SHOE)]
    if np.linalg.norm(colours[0] - colours[1]) < MIN_CONTRAST:
        return everything
    seeds[leg > 0] = LEG
    divided = _divide(small, foot, body, seeds)
    is_leg = (divided == LEG) & (above_px > LOWEST_HEM * foot.length_px)
    shoe = ((body > 0) & ~is_leg).astype(np.uint8)
    # The rim of a trouser leg is no shoe.
    thick = np.asarray(cv2.morphologyEx(shoe, cv2.MORPH_OPEN, _disc(3)), np.uint8)
    _, parts, stats, _ = cv2.connectedComponentsWithStats(thick)
    if len(stats) > 1:
        thick = (parts == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())).astype(np.uint8)
    thin = (
        (shoe > 0) & (cv2.dilate(thick, _disc(2)) == 0) & (above_px > LOWEST_HEM * foot.length_px)
    )
    return np.where(body > 0, np.where(is_leg | thin, LEG, SHOE), GROUND).astype(np.int32)


def _divide(small: UInt8Array, foot: Foot, body: UInt8Array, seeds: UInt8Array) -> Labels:
    """Shoe and leg meet along the picture's own edges between their seeds."""
    markers = np.where(body > 0, 0, GROUND).astype(np.int32)
    markers[seeds > 0] = seeds[seeds > 0]
    cv2.watershed(np.ascontiguousarray(cv2.GaussianBlur(small, (0, 0), 0.8)), markers)
    return _with_hem(small, markers, foot)


def _with_hem(small: UInt8Array, labels: Labels, foot: Foot) -> Labels:
    """The hem counted to the leg by its colour, where leg and shoe differ in colour."""
    lab = cv2.cvtColor(small.astype(np.float32) / 255.0, cv2.COLOR_RGB2LAB)
    y, x = np.mgrid[: labels.shape[0], : labels.shape[1]]
    above_px = (x - foot.heel[0]) * foot.up[0] + (y - foot.heel[1]) * foot.up[1]
    leg = labels == LEG
    shoe = (labels == SHOE) & (above_px < 0.22 * foot.length_px)
    if min(leg.sum(), shoe.sum()) < 24:
        return labels
    leg_lab, shoe_lab = np.median(lab[leg], axis=0), np.median(lab[shoe], axis=0)
    if np.linalg.norm(leg_lab - shoe_lab) < 25.0:
        return labels
    hem = (labels == SHOE) & (above_px > 0.25 * foot.length_px)
    hem &= np.linalg.norm(lab - leg_lab, axis=-1) < 14.0
    hem = cv2.morphologyEx((hem | leg).astype(np.uint8), cv2.MORPH_OPEN, _disc(2)) > 0
    return np.where(hem & (labels == SHOE), LEG, labels).astype(np.int32)


def _seeds(shape: tuple[int, ...], foot: Foot) -> UInt8Array:
    """SHOE along the sole and up the heel, LEG above the ankle."""
    length_px, up = foot.length_px, foot.up
    seeds = np.zeros(shape[:2], np.uint8)
    rise = 0.1 * length_px * up
    heel, toe = (foot.heel + share * (foot.toe - foot.heel) + rise for share in (0.14, 0.86))
    draw_line(seeds, heel, toe, 0.08 * length_px, SHOE)
    draw_line(seeds, heel, heel + 0.45 * (foot.ankle - heel), 0.1 * length_px, SHOE)
    draw_line(seeds, foot.knee_side(0.25), foot.knee_side(0.6), 0.14 * length_px, LEG)
    return seeds


def _enlarged(labels: Labels, size: tuple[int, int]) -> Labels:
    shares = [
        cv2.resize(cv2.GaussianBlur((labels == part).astype(np.float32), (0, 0), 0.7), size)
        for part in (SHOE, LEG, GROUND)
    ]
    return np.asarray((1 + np.argmax(np.stack(shares), axis=0)), np.int32)


def draw_line(mask: UInt8Array, start: FloatArray, end: FloatArray, px: float, value: int) -> None:
    """A line from one (x, y) to another, in place."""
    ends = [tuple(int(v) for v in np.rint(point)) for point in (start, end)]
    cv2.line(mask, ends[0], ends[1], value, max(round(px), 1))


def _disc(radius_px: float) -> UInt8Array:
    size = 2 * max(round(radius_px), 1) + 1
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size)), np.uint8)
