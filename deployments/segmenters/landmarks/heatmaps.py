"""From a person's box to a network's input, and from its heatmaps back to points."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from serve.messages import Box, UInt8Array

FloatArray = NDArray[np.float64]
Float32Array = NDArray[np.float32]

PADDING = 1.25
"""The box grows by this before it is cut. Source: ViTPose and Sapiens, box_to_center_and_scale."""
BLUR_PX = 11
"""Source: Zhang et al. 2020 (DARK), kernel of the modulation."""
MAX_SHIFT_PX = 1.0
"""A refinement beyond the next pixel is noise on a flat map."""


@dataclass(frozen=True, slots=True)
class Cut:
    """An upright rectangle of a picture that a network sees."""

    centre_x: float
    centre_y: float
    width: float
    height: float

    def extract(self, image_hwc: UInt8Array, size: tuple[int, int]) -> UInt8Array:
        """The rectangle at (width, height), black where it reaches out of the picture."""
        # Corner pixels map onto corners, as in Huang et al. 2020 (unbiased data processing).
        scale_x, scale_y = (size[0] - 1) / self.width, (size[1] - 1) / self.height
        matrix = np.array(
            [
                [scale_x, 0.0, scale_x * (0.5 * self.width - self.centre_x)],
                [0.0, scale_y, scale_y * (0.5 * self.height - self.centre_y)],
            ]
        )
        return np.asarray(cv2.warpAffine(image_hwc, matrix, size, flags=cv2.INTER_LINEAR), np.uint8)

    def to_picture(self, points: FloatArray, map_size: tuple[int, int]) -> FloatArray:
        """Points (K, 2) of heatmaps of this (width, height), in pixels of the picture."""
        share = points / (np.array(map_size) - 1)
        size = np.array([self.width, self.height])
        return np.asarray(share * size + (self.centre_x, self.centre_y) - 0.5 * size, np.float64)


def cut_around(box: Box, size: tuple[int, int]) -> Cut:
    """The rectangle of the input's aspect around a person's box, padded."""
    x0, y0, x1, y1 = box
    width, height = max(x1 - x0, 1.0), max(y1 - y0, 1.0)
    aspect = size[0] / size[1]
    width, height = max(width, height * aspect), max(height, width / aspect)
    return Cut((x0 + x1) / 2, (y0 + y1) / 2, PADDING * width, PADDING * height)


def decode_heatmaps(heatmaps_khw: Float32Array) -> tuple[FloatArray, FloatArray]:
    """The peak of every map between its pixels.

    Returns:
        Points (K, 2) as (x, y) in pixels of the maps, and the maps' values there (K,).

    Source: Zhang et al. 2020, Distribution-Aware Coordinate Representation (DARK).
    """
    num_points, height, width = heatmaps_khw.shape
    flat = heatmaps_khw.reshape(num_points, -1)
    peaks = flat.argmax(axis=1)
    scores = flat[np.arange(num_points), peaks].astype(np.float64)
    points = np.stack([peaks % width, peaks // width], axis=1).astype(np.float64)
    for index in range(num_points):
        points[index] += _refinement(heatmaps_khw[index], points[index])
    return points, scores


def _refinement(map_hw: Float32Array, peak: FloatArray) -> FloatArray:
    """Where the logarithm of a blurred peak has its maximum, relative to its pixel."""
    blurred = cv2.GaussianBlur(map_hw, (BLUR_PX, BLUR_PX), 0, borderType=cv2.BORDER_CONSTANT)
    log = np.log(np.clip(np.pad(blurred, 1, mode="edge"), 1e-3, 50.0)).astype(np.float64)
    x, y = int(peak[0]) + 1, int(peak[1]) + 1
    near = log[y - 1 : y + 2, x - 1 : x + 2]
    slope = np.array([near[1, 2] - near[1, 0], near[2, 1] - near[0, 1]]) / 2
    bend_x = near[1, 2] - 2 * near[1, 1] + near[1, 0]
    bend_y = near[2, 1] - 2 * near[1, 1] + near[0, 1]
    bend_xy = (near[2, 2] - near[2, 0] - near[0, 2] + near[0, 0]) / 4
    hessian = np.array([[bend_x, bend_xy], [bend_xy, bend_y]])
    if bend_x >= 0 or float(np.linalg.det(hessian)) <= 1e-9:
        return np.zeros(2)
    shift = -np.linalg.solve(hessian, slope)
    return np.asarray(np.clip(shift, -MAX_SHIFT_PX, MAX_SHIFT_PX), np.float64)
