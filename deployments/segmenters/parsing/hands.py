"""Where the hands are, for parsers that only know arms: at the far end of each arm."""

import cv2
import numpy as np

from deployments.segmenters.parsing.labels import Part
from deployments.segmenters.shapes import area, split
from serve.messages import Point, UInt8Array

WALK_SIDE_PX = 160
"""Distances along an arm are counted at this size."""
HAND_LENGTH = 0.95
"""Of the height of the face. Source: a hand is as long as a face from hairline to chin."""
HAND_SHARE = 0.35
"""Of the arm's length, where no face tells the size."""
ALL_HAND = 1.25
"""Bare skin at the end of a sleeve no longer than this many hands is the hand."""


def find_hands(parts_hw: UInt8Array, neck: Point, face_height_px: float | None) -> UInt8Array:
    """Mark both hands (H, W): as labelled, else the ends of the arms that are far from the neck.

    Args:
        neck: where the arms come from, in pixels.
        face_height_px: tells how long a hand is; None where no face is seen.
    """
    if (parts_hw == Part.HAND).any():
        return np.asarray((parts_hw == Part.HAND) * 255, np.uint8)
    hands = np.zeros_like(parts_hw)
    for arm in split(np.asarray((parts_hw == Part.ARM) * 255, np.uint8), min_share=0.1):
        hands = np.maximum(hands, _end_of_arm(arm, neck, face_height_px))
    return hands


def _end_of_arm(arm_hw: UInt8Array, neck: Point, face_height_px: float | None) -> UInt8Array:
    way_hw, longest_px = _way_along(arm_hw, neck)
    hand_px = HAND_SHARE * longest_px
    if face_height_px is not None:
        hand_px = HAND_LENGTH * face_height_px
        if longest_px <= ALL_HAND * hand_px:
            return arm_hw
    return np.asarray(((way_hw > longest_px - hand_px) & (arm_hw > 0)) * 255, np.uint8)


def _way_along(arm_hw: UInt8Array, neck: Point) -> tuple[np.ndarray, float]:
    """The way inside the arm from its end at the neck, in pixels (H, W), and the longest."""
    x, y, width, height = cv2.boundingRect(arm_hw)
    scale = min(1.0, WALK_SIDE_PX / max(width, height))
    small_size = max(round(width * scale), 1), max(round(height * scale), 1)
    inside = arm_hw[y : y + height, x : x + width]
    reduced = cv2.resize(inside, small_size, interpolation=cv2.INTER_AREA)
    small = np.asarray((reduced > 60) * 255, np.uint8)
    if not area(small):
        return np.zeros_like(arm_hw, np.float32), 0.0
    steps = _walk(small, ((neck[0] - x) * scale, (neck[1] - y) * scale)) / scale
    way = np.zeros(arm_hw.shape, np.float32)
    way[y : y + height, x : x + width] = cv2.resize(
        steps, (width, height), interpolation=cv2.INTER_LINEAR
    )
    return way, float(steps.max())


def _walk(arm_hw: UInt8Array, start: Point) -> np.ndarray:
    """Steps (H, W) from the arm's pixel nearest to `start`, each to a neighbour in the arm."""
    rows, columns = np.nonzero(arm_hw)
    first = int(np.argmin((columns - start[0]) ** 2 + (rows - start[1]) ** 2))
    reached = np.zeros_like(arm_hw)
    reached[rows[first], columns[first]] = 255
    steps = np.zeros(arm_hw.shape, np.float32)
    kernels = (np.ones((3, 3), np.uint8), cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3)))
    for step in range(1, 4 * WALK_SIDE_PX):
        # Squares and crosses in turn: nearly as round as a circle.
        larger = np.asarray(cv2.dilate(reached, kernels[step % 2]), np.uint8) & arm_hw
        fresh = (larger > 0) & (reached == 0)
        if not fresh.any():
            if step % 2 == 0:
                break
            continue
        steps[fresh] = step
        reached = larger
    return steps
