"""Cuts the person out of the picture: GrabCut at reduced size, then a soft edge at full size."""

from dataclasses import replace

import cv2
import numpy as np

from deployments.segmenters.classical.barrier import Float32Array, border_seeds
from deployments.segmenters.classical.belief import CERTAIN, guided, weigh
from deployments.segmenters.classical.figure import CROTCH, HIP, Figure, draw_half, prior_odds
from deployments.segmenters.classical.headmarks import Head
from serve.messages import UInt8Array

CUT_SIDE_PX = 256
ITERATIONS = 2
SEED = 20
EDGE_EPSILON = 1e-4
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
    belief, prior = weigh(lab, prior, background & (prior < CERTAIN))
    body = complete_legs(cut_person(lab, belief, prior), lab, small_figure)
    return refine(image_hwc, body)


def complete_legs(body_hw: UInt8Array, lab_hwc: UInt8Array, figure: Figure) -> UInt8Array:
    """Give back the legs to a person who ends at the hips in the middle of a picture.

    White trousers before a white wall have no colour of their own; proportions know where they are.
    Nothing is added where the picture is empty: legs have edges.
    """
    rows = np.flatnonzero(body_hw.any(axis=1))
    height, unit = body_hw.shape[0], figure.unit_px
    end = float(rows[-1]) if rows.size else float(height)
    starts_low = end < figure.row(HIP - 0.8)
    if starts_low or end > min(figure.row(CROTCH + 1.2), height - 1.5 * unit):
        return body_hw
    legs = np.zeros_like(body_hw)
    draw_half(legs, figure, LEGS, 1)
    legs[: int(end - 0.3 * unit)] = 0
    light = lab_hwc[..., 0].astype(np.float32)
    slope = np.hypot(cv2.Sobel(light, cv2.CV_32F, 1, 0), cv2.Sobel(light, cv2.CV_32F, 0, 1)) / 8
    if float((slope[legs > 0] > EDGE_SLOPE).mean()) < MIN_EDGES:
        return body_hw
    return np.asarray(body_hw | legs, np.uint8)


def reduce_lab(image_hwc: UInt8Array) -> tuple[UInt8Array, float]:
    """The picture in Lab at the size it is cut at, and its scale."""
    scale = min(1.0, CUT_SIDE_PX / max(image_hwc.shape[:2]))
    small = cv2.resize(image_hwc, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2Lab), np.uint8), scale


def cut_person(lab_hwc: UInt8Array, belief_hw: Float32Array, prior_hw: Float32Array) -> UInt8Array:
    """Cut at reduced size and keep what hangs together; (H, W) of 0 and 1."""
    body = cut(lab_hwc, belief_hw, prior_hw)
    return keep_person(body, (prior_hw > CERTAIN).astype(np.uint8))


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


def keep_person(body_hw: UInt8Array, certain_hw: UInt8Array) -> UInt8Array:
    """The connected parts that contain certain pixels, without specks, gaps and holes."""
    tidy = cv2.morphologyEx(body_hw, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    tidy = np.maximum(tidy, certain_hw & body_hw)
    count, parts = cv2.connectedComponents(np.asarray(tidy, np.uint8), connectivity=8)
    hits = np.bincount(parts[certain_hw > 0], minlength=count)
    hits[0] = 0
    kept = np.isin(parts, np.flatnonzero(hits > 0.1 * max(int(hits.max()), 1)))
    return _fill_small_holes(kept.astype(np.uint8))


def _fill_small_holes(body_hw: UInt8Array) -> UInt8Array:
    """Fill what is enclosed and small; the opening under a bent arm stays open."""
    count, parts, stats, _ = cv2.connectedComponentsWithStats(1 - body_hw, connectivity=4)
    limit = 0.02 * float(body_hw.sum())
    small = np.flatnonzero(stats[:, cv2.CC_STAT_AREA] < limit)
    filled = body_hw | np.isin(parts, small[small > 0]).astype(np.uint8)
    return np.asarray(filled, np.uint8)


def refine(image_hwc: UInt8Array, body_hw: UInt8Array) -> UInt8Array:
    """Bring a small cut to full size and let its edge follow the picture's."""
    height, width = image_hwc.shape[:2]
    scale = max(image_hwc.shape[:2]) / max(body_hw.shape)
    mask = cv2.resize(body_hw.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    guide = cv2.cvtColor(image_hwc, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255.0
    soft = guided(guide, np.asarray(mask, np.float32), int(1.5 * scale), EDGE_EPSILON)
    soft = np.clip((soft - 0.5) * 1.6 + 0.5, 0.0, 1.0)
    return np.asarray(np.rint(soft * 255.0), np.uint8)


def scale_head(head: Head, scale: float) -> Head:
    eye_a, eye_b = ((x * scale, y * scale) for x, y in (head.eye_a, head.eye_b))
    return replace(head, eye_a=eye_a, eye_b=eye_b, size_px=head.size_px * scale)


def scale_figure(figure: Figure, scale: float) -> Figure:
    eyes = figure.eyes[0] * scale, figure.eyes[1] * scale
    return Figure(eyes, figure.neck_x * scale, figure.unit_px * scale)
