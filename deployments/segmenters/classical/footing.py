"""Finds shoes below a silhouette that ends at the trousers: by edges, as their colours are lost."""

import cv2
import numpy as np

from deployments.segmenters.classical.barrier import BoolArray, Float32Array
from deployments.segmenters.classical.figure import Figure
from serve.messages import UInt8Array

UNIT_PX = 56.0
"""Face size in the copy that is searched."""
REACH = 0.9
"""Face sizes below the silhouette's end within which shoes end."""
FRAME_PX = 4
"""Many pictures end in a line that is no floor."""
ABOVE = 0.5
ASIDE = 0.75
"""Face sizes by which toes stand out beside the legs."""
MIN_EDGE = 11.0
"""Lab units per square pixel."""
FLOOR_RIM = 0.3
FLOOR_MULTIPLE = 1.3
"""A patterned floor has edges of its own; those of shoes are sharper."""
GAP = 0.16
MIN_THICKNESS = 0.26
AREAS = (0.1, 2.5)
"""In square face sizes."""


def find_shoes(image_hwc: UInt8Array, silhouette_hw: UInt8Array, figure: Figure) -> UInt8Array:
    """What is worn below the silhouette's end (H, W): 255, soft at the edge."""
    shoes = np.zeros_like(silhouette_hw)
    window = _window(silhouette_hw, figure)
    if window is None:
        return shoes
    rows, columns = window
    size = (columns.stop - columns.start, rows.stop - rows.start)
    scale = UNIT_PX / figure.unit_px
    small = (max(round(size[0] * scale), 8), max(round(size[1] * scale), 8))
    copy = cv2.resize(image_hwc[rows, columns], small, interpolation=cv2.INTER_AREA)
    legs = cv2.resize(silhouette_hw[rows, columns], small, interpolation=cv2.INTER_AREA) > 127
    found = _below(_edges(np.asarray(copy, np.uint8)), legs)
    soft = cv2.resize(found.astype(np.uint8) * 255, size, interpolation=cv2.INTER_LINEAR)
    shoes[rows, columns] = soft
    return shoes


def _window(silhouette_hw: UInt8Array, figure: Figure) -> tuple[slice, slice] | None:
    """Rows and columns about the end of the legs; None where legs are cut off by the border."""
    height, width = silhouette_hw.shape
    unit = figure.unit_px
    filled = np.flatnonzero((silhouette_hw > 127).any(axis=1))
    if not filled.size or filled[-1] > height - max(3, 0.1 * unit):
        return None
    end = int(filled[-1]) + 1
    low = silhouette_hw[max(int(end - ABOVE * unit), 0) : end] > 127
    columns = np.flatnonzero(low.any(axis=0))
    left, right = columns[0] - ASIDE * unit, columns[-1] + ASIDE * unit
    rows = slice(max(int(end - ABOVE * unit), 0), min(int(end + REACH * unit), height - FRAME_PX))
    return rows, slice(max(int(left), 0), min(int(right) + 1, width))


def _edges(image_hwc: UInt8Array) -> Float32Array:
    """How sharply colours bend (H, W): a sole does, the shadow beside it does not."""
    lab = cv2.cvtColor(image_hwc, cv2.COLOR_RGB2Lab).astype(np.float32)
    bend = np.abs(cv2.Laplacian(cv2.GaussianBlur(lab, (0, 0), 0.8), cv2.CV_32F, ksize=3))
    return np.asarray(bend.max(axis=2), np.float32)


def _below(edges_hw: Float32Array, legs_hw: BoolArray) -> BoolArray:
    """What edges enclose below the legs and in touch with them."""
    rim = round(FLOOR_RIM * UNIT_PX)
    floor = np.concatenate((edges_hw[:, :rim].ravel(), edges_hw[:, -rim:].ravel()))
    sharp = edges_hw > max(MIN_EDGE, FLOOR_MULTIPLE * float(np.percentile(floor, 90)))
    joined = cv2.morphologyEx((sharp | legs_hw).astype(np.uint8), cv2.MORPH_CLOSE, _disc(GAP))
    solid = _between(_touching(joined > 0, legs_hw)).astype(np.uint8)
    solid = np.asarray(cv2.morphologyEx(solid, cv2.MORPH_OPEN, _disc(MIN_THICKNESS)), np.uint8)
    solid = np.asarray(cv2.erode(solid, np.ones((5, 5), np.uint8)), np.uint8)
    found = _touching((solid > 0) | legs_hw, legs_hw) & ~legs_hw
    _, labels = cv2.connectedComponents(found.astype(np.uint8))
    # A shoe ends inside the window; what runs on is floor.
    found &= ~np.isin(labels, np.unique(labels[-1]))
    found[: round(0.5 * ABOVE * UNIT_PX)] = False
    area = float(found.sum()) / UNIT_PX**2
    if not AREAS[0] < area < AREAS[1]:
        return np.zeros_like(found)
    return cv2.dilate(found.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0


def _touching(part_hw: BoolArray, legs_hw: BoolArray) -> BoolArray:
    _, labels = cv2.connectedComponents(part_hw.astype(np.uint8))
    touching = np.unique(labels[legs_hw & part_hw])
    return np.asarray(np.isin(labels, touching[touching > 0]))


def _between(part_hw: BoolArray) -> BoolArray:
    """What has the part on all four sides."""
    sides = [
        np.flip(np.maximum.accumulate(np.flip(part_hw, axis), axis=axis), axis)
        if is_flipped
        else np.maximum.accumulate(part_hw, axis=axis)
        for axis in (0, 1)
        for is_flipped in (False, True)
    ]
    return np.asarray(np.logical_and.reduce(sides))


def _disc(sizes: float) -> UInt8Array:
    side = 2 * max(round(sizes * UNIT_PX / 2), 1) + 1
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)), np.uint8)
