"""Which pixels are surely the person, surely not, or for the matting network to decide."""

import cv2
import numpy as np

from deployments.segmenters.parsing.labels import Part
from deployments.segmenters.shapes import box_of, grown
from serve.messages import UInt8Array

PERSON, UNSURE, NOBODY = 255, 128, 0
EDGE, HAIR_EDGE = 0.008, 0.03
"""Of the person's longer side: parsers are off by a few pixels, and hair reaches further."""
MIN_EDGE_PX = 3.0


def draw_trimap(parts_hw: UInt8Array) -> UInt8Array:
    """Erode and dilate the person (H, W): 255 person, 0 not, 128 between; wider around hair."""
    person = np.asarray((parts_hw != Part.BACKGROUND) * 255, np.uint8)
    if not person.any():
        return person
    hair = np.asarray((parts_hw == Part.HAIR) * 255, np.uint8)
    left, top, right, bottom = box_of(person)
    longer = max(right - left, bottom - top)
    edge_px, hair_px = (max(share * longer, MIN_EDGE_PX) for share in (EDGE, HAIR_EDGE))
    possible = grown(person, edge_px) | grown(hair, hair_px)
    trimap = np.where(possible > 0, UNSURE, NOBODY).astype(np.uint8)
    trimap[_depth(person) > np.where(hair > 0, hair_px, edge_px)] = PERSON
    return trimap


def _depth(person_hw: UInt8Array) -> np.ndarray:
    """Pixels to the nearest background; the picture's border is none."""
    if person_hw.all():
        return np.full(person_hw.shape, np.inf, np.float32)
    return np.asarray(cv2.distanceTransform(person_hw, cv2.DIST_L2, cv2.DIST_MASK_5))
