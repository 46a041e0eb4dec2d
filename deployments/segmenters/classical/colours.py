"""How often a colour at a place was seen on the person and how often off it."""

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter

from deployments.segmenters.classical.barrier import Float32Array
from serve.messages import UInt8Array

COLOUR_BINS = (20, 16, 16)
MIN_RANGES = (40.0, 24.0, 24.0)
"""Lab ranges below this are not stretched: noise would fill every bin."""
PLACE_BINS = (6, 4)
COLOUR_BLUR, PLACE_BLUR = 0.8, 1.0
GLOBAL_SHARE = 0.5
"""How much a colour seen elsewhere in the picture counts against one seen nearby."""


class ColourPlaces:
    """Sorts each pixel of one picture into a cell of colour and place."""

    def __init__(self, lab_hwc: UInt8Array) -> None:
        height, width = lab_hwc.shape[:2]
        across, down = sorted(PLACE_BINS) if height >= width else sorted(PLACE_BINS)[::-1]
        smooth = np.asarray(cv2.GaussianBlur(lab_hwc, (0, 0), 0.8), np.uint8)
        rows, columns = np.mgrid[:height, :width]
        self._shape = (*COLOUR_BINS, down, across)
        cells = [_binned(smooth[..., i], COLOUR_BINS[i], MIN_RANGES[i]) for i in range(3)]
        cells += [rows * down // height, columns * across // width]
        self._cell_hw = np.ravel_multi_index(cells, self._shape)

    def seen(self, weight_hw: Float32Array) -> Float32Array:
        """How much weight (H, W) lies on pixels like each pixel, in colour and place."""
        size = int(np.prod(self._shape))
        counts = np.bincount(self._cell_hw.ravel(), weights=weight_hw.ravel(), minlength=size)
        grid = counts.reshape(self._shape).astype(np.float32)
        grid = gaussian_filter(grid, (COLOUR_BLUR,) * 3 + (0, 0), truncate=2.5, mode="nearest")
        near = gaussian_filter(grid, (0, 0, 0) + (PLACE_BLUR,) * 2, truncate=2.0, mode="nearest")
        near += GLOBAL_SHARE * grid.mean(axis=(3, 4), keepdims=True)
        return np.asarray(near.ravel()[self._cell_hw], np.float32)


def _binned(channel_hw: UInt8Array, bins: int, min_range: float) -> "np.ndarray":
    """Half by value, half by rank: pictures crowded into the whites or blacks stay separable."""
    low, high = np.percentile(channel_hw, (0.5, 99.5))
    if high - low < min_range:
        low, high = (low + high - min_range) / 2, (low + high + min_range) / 2
    counts = np.bincount(channel_hw.ravel(), minlength=256)
    rank = (np.cumsum(counts) - counts / 2) / channel_hw.size
    linear = np.clip((np.arange(256) - low) / (high - low), 0.0, 1.0)
    table = np.clip(0.5 * (rank + linear) * bins, 0, bins - 1).astype(np.int64)
    return np.asarray(table[channel_hw])
