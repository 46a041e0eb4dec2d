"""The eyewear region of the sm4ll authors, from a mesh of 478 face points."""

import cv2
import numpy as np
from numpy.typing import NDArray

from serve.messages import UInt8Array

# Source: risunobushi/ComfyUI_FaceMesh_Eyewear_Mask, to 2025-09-16.
POLYGON = (
    *(21, 68, 104, 69, 108, 151, 337, 299, 333, 298, 301, 389, 454, 366, 323, 411, 425, 423),
    *(294, 344, 440, 275, 4, 45, 220, 115, 48, 64, 203, 205, 137, 127, 162, 21),
)
KERNEL_PX, ITERATIONS = 5, 2


def eyewear_polygon(points_478x2: NDArray[np.float64], shape: tuple[int, ...]) -> UInt8Array:
    """Fill the polygon and dilate it, as the masks that eyewear was trained with.

    Args:
        points_478x2: (x, y) in pixels, in the order of MediaPipe FaceMesh with refined irises.
        shape: (H, W) of the region.
    """
    region = np.zeros(shape[:2], np.uint8)
    corners = points_478x2[list(POLYGON)].astype(np.int32)
    cv2.fillPoly(region, [corners], 255)
    kernel = np.ones((KERNEL_PX, KERNEL_PX), np.uint8)
    return np.asarray(cv2.dilate(region, kernel, iterations=ITERATIONS), np.uint8)
