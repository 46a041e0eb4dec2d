"""Fills a hole with what surrounds it, near things first; no texture is invented."""

import cv2
import numpy as np
from numpy.typing import NDArray

from serve.messages import UInt8Array

Float32Array = NDArray[np.float32]


def fill_from(image_hwc: UInt8Array, known_hw: NDArray[np.bool_]) -> Float32Array:
    """(H, W, 3): the image where known, elsewhere a blend of the nearest known colours."""
    weight = known_hw.astype(np.float32)
    layers = [(image_hwc.astype(np.float32) * weight[..., None], weight)]
    while min(layers[-1][1].shape) > 2:
        colour, share = layers[-1]
        layers.append(
            (
                np.asarray(cv2.pyrDown(colour), np.float32),
                np.asarray(cv2.pyrDown(share), np.float32),
            )
        )
    filled = _straight(*layers[-1])
    for colour, share in reversed(layers[:-1]):
        coarse = cv2.resize(filled, share.shape[::-1], interpolation=cv2.INTER_LINEAR)
        sure = np.minimum(4.0 * share, 1.0)[..., None]
        filled = np.asarray(coarse + sure * (_straight(colour, share) - coarse), np.float32)
    return np.where(known_hw[..., None], image_hwc, filled).astype(np.float32)


def _straight(colour: Float32Array, share: Float32Array) -> Float32Array:
    return np.asarray(colour / np.maximum(share[..., None], 1e-4), np.float32)
