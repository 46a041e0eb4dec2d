"""Which pixels may be skin: a loose rule for any person, a tight one learnt from a face."""

import cv2
import numpy as np
from numpy.typing import NDArray

from serve.messages import UInt8Array

Float32Array = NDArray[np.float32]

GREY_CHROMA = 4.0
"""A picture whose mean chroma (Lab units) is below this is black and white."""


def is_grey_picture(image_hwc: UInt8Array) -> bool:
    """True where colour says nothing: black-and-white and sepia-free pictures."""
    lab = cv2.cvtColor(np.ascontiguousarray(image_hwc[::4, ::4]), cv2.COLOR_RGB2Lab)
    return float(np.abs(lab[..., 1:].astype(np.float32) - 128.0).mean()) < GREY_CHROMA


def loose_skin(image_hwc: UInt8Array) -> UInt8Array:
    """Mark (H, W) as 1 what could be skin of any tone in ordinary light.

    Source: chroma box of Chai and Ngan 1999 (Cr 133-173, Cb 77-127), widened for dark skin and
    warm light, and bounded in hue so that saturated orange and red objects drop out.
    """
    ycc = cv2.cvtColor(image_hwc, cv2.COLOR_RGB2YCrCb)
    hsv = cv2.cvtColor(image_hwc, cv2.COLOR_RGB2HSV)
    luma, cr, cb = (ycc[..., i] for i in range(3))
    hue, saturation = hsv[..., 0], hsv[..., 1]
    chroma = (cr >= 132) & (cr <= 180) & (cb >= 77) & (cb <= 133) & (luma > 25)
    tone = ((hue <= 25) | (hue >= 168)) & (saturation >= 20) & (saturation <= 205)
    return (chroma & tone).astype(np.uint8)


def tight_skin(image_hwc: UInt8Array, sample_hw: UInt8Array) -> UInt8Array:
    """Mark (H, W) as 1 what has the chroma of the sampled skin, lighter or darker.

    Args:
        sample_hw: (H, W), non-zero on pixels known to be mostly this person's skin.
    """
    lab = cv2.cvtColor(image_hwc, cv2.COLOR_RGB2Lab).astype(np.float32)
    seeds = lab[sample_hw > 0]
    if len(seeds) < 16:
        return np.zeros(image_hwc.shape[:2], np.uint8)
    centre = np.median(seeds, axis=0)
    spread = np.median(np.abs(seeds - centre), axis=0) * 1.48
    width = np.clip(spread * np.float32(2.6), (30.0, 6.0, 6.0), (75.0, 13.0, 15.0))
    distance = (((lab - centre) / width.astype(np.float32)) ** 2).sum(axis=2)
    return np.asarray(distance < 1.0, np.uint8)
