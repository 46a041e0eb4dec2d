"""The background expert's region: everything that is nobody, softly."""

import cv2
import numpy as np

from deployments.segmenters.shapes import area
from serve.errors import SubjectNotFound
from serve.messages import UInt8Array

MIN_SHARE = 0.005
"""Of the picture, that a person and that a background must at least cover."""


def draw_background(silhouette_hw: UInt8Array) -> UInt8Array:
    """All but people, by as much as each pixel is none of them: hair stays hair.

    Args:
        silhouette_hw: (H, W), 255 on people, soft at their edge.

    Raises:
        SubjectNotFound: nobody is there, or nothing but somebody.
    """
    if area(np.asarray((silhouette_hw > 127) * 255, np.uint8)) < MIN_SHARE * silhouette_hw.size:
        raise SubjectNotFound(
            "no person found before the background",
            remedy="Send a photo of one person, or bring your own mask.",
        )
    softer = cv2.GaussianBlur(silhouette_hw, (3, 3), 0.6)
    region = np.asarray(255 - np.maximum(silhouette_hw, softer), np.uint8)
    if area(region) < MIN_SHARE * region.size:
        raise SubjectNotFound(
            "no background found: the person fills the picture",
            remedy="Send a photo that shows what is behind the person, or bring your own mask.",
        )
    return region
