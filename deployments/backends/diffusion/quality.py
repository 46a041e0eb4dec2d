"""How far a lossy run's pictures are from the plain run's."""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from serve.messages import UInt8Array

INFINITE_DB = 99.0
"""What `measured.QualityDelta` writes for pictures that are equal."""

# Wang, Bovik, Sheikh, Simoncelli: Image Quality Assessment, IEEE TIP 13(4), 2004, section III.C.
WINDOW_PX = 11
SIGMA_PX = 1.5
C1 = (0.01 * 255) ** 2
C2 = (0.03 * 255) ** 2

Plane = NDArray[np.float64]


def measure_quality(plain_nhwc: UInt8Array, images_nhwc: UInt8Array) -> tuple[float, float]:
    """Peak signal-to-noise ratio in dB and structural similarity in [-1, 1].

    Args:
        plain_nhwc, images_nhwc: (N, H, W, C), the same shape, at least 11 pixels high and wide.

    Returns:
        PSNR over all values, INFINITE_DB where they are equal; SSIM as the mean over channels and
        pictures, windows that cross the border left out.
    """
    if plain_nhwc.shape != images_nhwc.shape:
        raise ValueError(f"{plain_nhwc.shape} and {images_nhwc.shape} cannot be compared")
    if min(plain_nhwc.shape[1:3]) < WINDOW_PX:
        raise ValueError(f"pictures of {plain_nhwc.shape[1:3]} are smaller than the window")
    similarity = np.mean([_ssim(*pair) for pair in zip(plain_nhwc, images_nhwc, strict=True)])
    return _psnr(plain_nhwc, images_nhwc), float(similarity)


def _psnr(plain_nhwc: UInt8Array, images_nhwc: UInt8Array) -> float:
    squared = np.square(plain_nhwc.astype(np.float64) - images_nhwc)
    mean = float(squared.mean())
    return INFINITE_DB if mean == 0 else 10 * math.log10(255**2 / mean)


def _ssim(plain_hwc: UInt8Array, image_hwc: UInt8Array) -> float:
    x, y = plain_hwc.astype(np.float64), image_hwc.astype(np.float64)
    mean_x, mean_y = _window_mean(x), _window_mean(y)
    variances = _window_mean(x * x) - mean_x**2 + _window_mean(y * y) - mean_y**2
    covariance = _window_mean(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    structure = (2 * covariance + C2) / (variances + C2)
    return float((luminance * structure).mean())


def _window_mean(plane: Plane) -> Plane:
    blurred = cv2.GaussianBlur(plane, (WINDOW_PX, WINDOW_PX), SIGMA_PX)
    inside = slice(WINDOW_PX // 2, -(WINDOW_PX // 2))
    return np.asarray(blurred[inside, inside], dtype=np.float64)
