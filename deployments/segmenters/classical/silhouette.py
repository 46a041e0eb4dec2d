"""Cuts the person out of the picture: GrabCut at reduced size, then a soft edge at full size."""

from dataclasses import replace

import cv2
import numpy as np

from deployments.segmenters.classical.barrier import BoolArray, Float32Array, border_seeds
from deployments.segmenters.classical.belief import CERTAIN, weigh
from deployments.segmenters.classical.figure import (
    BETWEEN_LEGS,
    CROTCH,
    HIP,
    SURE,
    Figure,
    draw_half,
    prior_odds,
)
from deployments.segmenters.classical.footing import find_shoes
from deployments.segmenters.classical.headmarks import Head
from deployments.segmenters.classical.matte import draw_matte
from serve.messages import UInt8Array

CUT_SIDE_PX = 256
ITERATIONS = 2
SEED = 20
MAX_HOLES = (0.02, 0.002)
"""Of the person's area, above and below the crotch."""
BESIDE_SHARES = (0.5, 0.8)
LEG_SHARE = 0.5
FAR_ASIDE = 2.2
"""Face sizes from the spine."""
EDGE_SLOPE = 2.0
MIN_EDGES = 0.15
LEGS = ((0.85, 3.0), (0.85, 4.3), (0.75, 6.2), (0.7, 8.7))
"""Right half: (right of the spine, below the eyes) in face sizes."""


def cut_silhouette(image_hwc: UInt8Array, head: Head | None, figure: Figure) -> UInt8Array:
    """Separate the person with this head or figure from the background.

    Returns:
        (H, W): 255 on the person, 0 off it, soft along the edge.
    """
    lab, scale = reduce_lab(image_hwc)
    small_head = None if head is None else scale_head(head, scale)
    small_figure = scale_figure(figure, scale)
    prior = prior_odds(lab.shape, small_head, small_figure)
    background = border_seeds(lab, int(small_figure.row(0.6))) | (prior < -CERTAIN)
    background |= _far_rim(lab.shape[:2], small_figure)
    share = _barrier_share(prior, small_head, small_figure)
    belief, prior = weigh(lab, prior, background & (prior < CERTAIN), share)
    body = cut_person(lab, belief, prior, int(small_figure.row(CROTCH)))
    legs = find_legs(body, lab, small_figure)
    matte = draw_matte(image_hwc, body | legs, (prior >= SURE) | (legs > 0))
    return np.maximum(matte, find_shoes(image_hwc, matte, figure))


def _far_rim(shape: tuple[int, ...], figure: Figure) -> BoolArray:
    """The side borders, where they lie further off than arms are held."""
    rim = np.zeros(shape, np.bool_)
    width = max(2, shape[1] // 80)
    reach = FAR_ASIDE * figure.unit_px
    rim[:, :width] = figure.neck_x > reach
    rim[:, -width:] = shape[1] - figure.neck_x > reach
    return rim


def _barrier_share(prior_hw: Float32Array, head: Head | None, figure: Figure) -> Float32Array:
    """What being unreachable counts (H, W): beside a trunk it may be furniture, below it a gap."""
    hip, crotch = (max(int(figure.row(level)), 0) for level in (HIP, CROTCH))
    beside = prior_hw < 0.0
    share = np.ones_like(prior_hw)
    share[hip:][beside[hip:]] = BESIDE_SHARES[1]
    if head is not None:
        share[:hip][beside[:hip]] = BESIDE_SHARES[0]
    share[crotch:][~beside[crotch:]] = LEG_SHARE
    share[prior_hw == BETWEEN_LEGS] = 0.0
    return share


def find_legs(body_hw: UInt8Array, lab_hwc: UInt8Array, figure: Figure) -> UInt8Array:
    """The legs (H, W) missing from a person who ends at the hips in the middle of a picture.

    White trousers before a white wall have no colour of their own; proportions know where they are.
    None are found where the picture is empty: legs have edges.
    """
    legs = np.zeros_like(body_hw)
    rows = np.flatnonzero(body_hw.any(axis=1))
    height, unit = body_hw.shape[0], figure.unit_px
    end = float(rows[-1]) if rows.size else float(height)
    starts_low = end < figure.row(HIP - 0.8)
    if starts_low or end > min(figure.row(CROTCH + 1.2), height - 1.5 * unit):
        return legs
    draw_half(legs, figure, LEGS, 1)
    legs[: int(end - 0.8 * unit)] = 0
    light = lab_hwc[..., 0].astype(np.float32)
    slope = np.hypot(cv2.Sobel(light, cv2.CV_32F, 1, 0), cv2.Sobel(light, cv2.CV_32F, 0, 1)) / 8
    if float((slope[legs > 0] > EDGE_SLOPE).mean()) < MIN_EDGES:
        return np.zeros_like(body_hw)
    return legs


def reduce_lab(image_hwc: UInt8Array) -> tuple[UInt8Array, float]:
    """The picture in Lab at the size it is cut at, and its scale."""
    scale = min(1.0, CUT_SIDE_PX / max(image_hwc.shape[:2]))
    small = cv2.resize(image_hwc, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2Lab), np.uint8), scale


def cut_person(
    lab_hwc: UInt8Array, belief_hw: Float32Array, prior_hw: Float32Array, crotch_row: int
) -> UInt8Array:
    """Cut at reduced size and keep what hangs together; (H, W) of 0 and 1."""
    body = cut(lab_hwc, belief_hw, prior_hw)
    return keep_person(body, (prior_hw > CERTAIN).astype(np.uint8), crotch_row)


def cut(lab_hwc: UInt8Array, belief_hw: Float32Array, prior_hw: Float32Array) -> UInt8Array:
    """GrabCut started from a belief and seeded for repeatability; (H, W) of 0 and 1."""
    labels = np.where(belief_hw > 0.5, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[(belief_hw > 0.95) & (prior_hw > 1.0)] = cv2.GC_FGD
    labels[belief_hw < 0.03] = cv2.GC_BGD
    labels[prior_hw > CERTAIN] = cv2.GC_FGD
    if not (labels & 1).any() or (labels & 1).all():
        return np.asarray(labels & 1, np.uint8)
    cv2.setRNGSeed(SEED)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    whole = (0, 0, *labels.shape[::-1])
    cv2.grabCut(lab_hwc, labels, whole, models[0], models[1], ITERATIONS, cv2.GC_INIT_WITH_MASK)
    return np.asarray(labels & 1, np.uint8)


def keep_person(body_hw: UInt8Array, certain_hw: UInt8Array, crotch_row: int) -> UInt8Array:
    """The connected parts that contain certain pixels, without specks, gaps and holes."""
    tidy = cv2.morphologyEx(body_hw, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    tidy = np.maximum(tidy, certain_hw & body_hw)
    count, parts = cv2.connectedComponents(np.asarray(tidy, np.uint8), connectivity=8)
    hits = np.bincount(parts[certain_hw > 0], minlength=count)
    hits[0] = 0
    kept = np.isin(parts, np.flatnonzero(hits > 0.1 * max(int(hits.max()), 1)))
    return _fill_small_holes(kept.astype(np.uint8), crotch_row)


def _fill_small_holes(body_hw: UInt8Array, crotch_row: int) -> UInt8Array:
    """Fill what is enclosed and small; openings under a bent arm and between legs stay open."""
    count, parts, stats, centres = cv2.connectedComponentsWithStats(1 - body_hw, connectivity=4)
    share = np.where(centres[:, 1] < crotch_row, *MAX_HOLES)
    small = np.flatnonzero(stats[:, cv2.CC_STAT_AREA] < share * float(body_hw.sum()))
    filled = body_hw | np.isin(parts, small[small > 0]).astype(np.uint8)
    return np.asarray(filled, np.uint8)


def scale_head(head: Head, scale: float) -> Head:
    eye_a, eye_b = ((x * scale, y * scale) for x, y in (head.eye_a, head.eye_b))
    return replace(head, eye_a=eye_a, eye_b=eye_b, size_px=head.size_px * scale)


def scale_figure(figure: Figure, scale: float) -> Figure:
    eyes = figure.eyes[0] * scale, figure.eyes[1] * scale
    return Figure(eyes, figure.neck_x * scale, figure.unit_px * scale)
