"""How different two colours look: sRGB to CIELAB and CIEDE2000, over whole arrays."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from serve.messages import UInt8Array

LabArray = NDArray[np.float32]
"""(..., 3): L* in [0, 100], a* and b*, under D65."""

_TWENTY_FIVE_TO_7 = 25.0**7


def to_lab(rgb: UInt8Array) -> LabArray:
    """sRGB, (h, w, 3) or (n, 3), in CIELAB.

    Source: IEC 61966-2-1 and CIE 15:2004, as OpenCV computes them for 32-bit pictures:
        https://docs.opencv.org/4.x/de/d25/imgproc_color_conversions.html
    """
    picture: Any = rgb if rgb.ndim == 3 else rgb[:, None]
    lab: Any = cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
    return lab if rgb.ndim == 3 else lab[:, 0]  # type: ignore[no-any-return]


def from_lab(lab: LabArray) -> UInt8Array:
    """The nearest sRGB colours, (h, w, 3)."""
    rgb = cv2.cvtColor(np.ascontiguousarray(lab, np.float32), cv2.COLOR_Lab2RGB)
    return np.clip(np.rint(rgb * 255), 0, 255).astype(np.uint8)


def ciede2000(first: Any, second: Any, lightness_weight: float = 1.0) -> NDArray[np.float64]:
    """CIEDE2000 of colours in CIELAB; broadcasts like a subtraction.

    Args:
        first: (..., 3).
        second: (..., 3).
        lightness_weight: k_L: differences in lightness count so many times less. 1 for colours
            side by side, 2 for textiles (as in CMC 2:1).

    Returns:
        (...): about 1 is what an eye just sees.

    Source: Sharma, Wu, Dalal, "The CIEDE2000 color-difference formula: implementation notes,
        supplementary test data, and mathematical observations", Color Research & Application
        30(1), 2005; https://hajim.rochester.edu/ece/sites/gsharma/ciede2000/
    """
    one, two = np.asarray(first, np.float64), np.asarray(second, np.float64)
    mean_chroma_7 = ((_length(one) + _length(two)) / 2) ** 7
    stretch = 1.5 - 0.5 * np.sqrt(mean_chroma_7 / (mean_chroma_7 + _TWENTY_FIVE_TO_7))
    chroma_1, hue_1 = _polar(one, stretch)
    chroma_2, hue_2 = _polar(two, stretch)
    by_hue, mean_hue = _hues(chroma_1, hue_1, chroma_2, hue_2)
    mean_lightness = (one[..., 0] + two[..., 0]) / 2
    mean_chroma = (chroma_1 + chroma_2) / 2
    tint = _tint(mean_hue)
    off_middle = (mean_lightness - 50) ** 2
    scale_l = 1 + 0.015 * off_middle / np.sqrt(20 + off_middle)
    light = (two[..., 0] - one[..., 0]) / (lightness_weight * scale_l)
    chroma = (chroma_2 - chroma_1) / (1 + 0.045 * mean_chroma)
    hue = by_hue / (1 + 0.015 * mean_chroma * tint)
    squares = light**2 + chroma**2 + hue**2 + _rotation(mean_chroma, mean_hue) * chroma * hue
    return np.sqrt(np.maximum(squares, 0))


def _length(lab: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.hypot(lab[..., 1], lab[..., 2])


def _polar(
    lab: NDArray[np.float64], stretch: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """C' and h' in degrees."""
    a = lab[..., 1] * stretch
    return np.hypot(a, lab[..., 2]), np.degrees(np.arctan2(lab[..., 2], a)) % 360


def _hues(
    chroma_1: NDArray[np.float64],
    hue_1: NDArray[np.float64],
    chroma_2: NDArray[np.float64],
    hue_2: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Delta H' and the mean hue in degrees. A colour without chroma has no hue of its own."""
    product = chroma_1 * chroma_2
    turn = hue_2 - hue_1
    total = hue_1 + hue_2
    is_far = np.abs(turn) > 180
    turn = np.where(is_far, turn - 360 * np.sign(turn), turn)
    total = np.where(is_far, np.where(total < 360, total + 360, total - 360), total)
    # The sum where one of them has no chroma: its hue counts as 0.
    mean_hue = np.where(product == 0, hue_1 + hue_2, total / 2)
    return 2 * np.sqrt(product) * np.sin(np.radians(turn) / 2), mean_hue


def _tint(mean_hue: NDArray[np.float64]) -> NDArray[np.float64]:
    """T: how eyes differ by hue."""
    hue = np.radians(mean_hue)
    return np.asarray(
        1
        - 0.17 * np.cos(hue - np.radians(30))
        + 0.24 * np.cos(2 * hue)
        + 0.32 * np.cos(3 * hue + np.radians(6))
        - 0.20 * np.cos(4 * hue - np.radians(63))
    )


def _rotation(
    mean_chroma: NDArray[np.float64], mean_hue: NDArray[np.float64]
) -> NDArray[np.float64]:
    """R_T: chroma and hue are not independent among blues."""
    angle = np.radians(30 * np.exp(-(((mean_hue - 275) / 25) ** 2)))
    weight = 2 * np.sqrt(mean_chroma**7 / (mean_chroma**7 + _TWENTY_FIVE_TO_7))
    return np.asarray(-np.sin(2 * angle) * weight)
