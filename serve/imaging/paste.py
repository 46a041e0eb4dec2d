"""The painted crop back into the original: only pixels of the region are ever written."""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from serve.imaging.blend import (
    DEFAULT_FEATHER,
    choose_feather_px,
    match_colour,
    remove_seam,
    weigh_region,
)
from serve.imaging.colour import IntBox, crop_to_srgb, from_srgb
from serve.imaging.decode import DecodedImage, Pixels
from serve.imaging.region import CropPlan, extract_crop, restore_crop

UInt8Array = NDArray[np.uint8]
FloatArray = NDArray[np.float32]
Blend = Literal["exact", "seamless"]
_PAINTED_LEVELS = 12  # above resampling and codec noise, below any visible product


@dataclass(frozen=True, slots=True)
class Pasted:
    """The finished picture and what was laid over the original to get it."""

    pixels: Pixels
    """(H, W, 3) in the original's space and depth; identical to it outside the region."""
    alpha: Pixels | None
    weight_hw: FloatArray
    """(box_h, box_w) in [0, 1]: how much of each pixel is new."""
    painted_hwc: UInt8Array
    """(box_h, box_w, 3) sRGB: what was laid over, before the weight."""
    box: IntBox


def paste_back(
    image: DecodedImage,
    generated_hwc: UInt8Array,
    alpha_hw: UInt8Array | None,
    plan: CropPlan,
    region_box_hw: UInt8Array,
    *,
    blend: Blend = "exact",
    feather_px: float | None = None,
    colour_match: bool = False,
) -> Pasted:
    """Lay what the expert made over the region of the original.

    Args:
        generated_hwc: (crop_h, crop_w, 3) sRGB.
        alpha_hw: (crop_h, crop_w), 0 where the expert left the crop as it was; None if unknown.
        region_box_hw: (box_h, box_w) as `upscale_region` gives it; 0 is never written.
        feather_px: width of the inner soft edge in pixels of the original; by default a fraction
            of the region's box.
        colour_match: undo a tone shift of the expert first.

    Returns:
        New arrays; the original is untouched.
    """
    painted = restore_crop(generated_hwc, plan)
    if colour_match or blend == "seamless":
        original = crop_to_srgb(image, plan.box)
        if colour_match:
            painted = match_colour(painted, original, region_box_hw)
        if blend == "seamless":
            painted = remove_seam(painted, original, region_box_hw)
    if feather_px is None:
        feather_px = choose_feather_px(region_box_hw, DEFAULT_FEATHER)
    if alpha_hw is None and image.alpha is not None:
        alpha_hw = _estimate_painted(generated_hwc, crop_to_srgb(image, plan.box), plan)
    painted_alpha = None if alpha_hw is None else restore_crop(alpha_hw, plan)
    weight = weigh_region(region_box_hw, painted_alpha, feather_px)
    pixels, alpha = _write(image, painted, weight, plan.box)
    return Pasted(pixels, alpha, weight, painted, plan.box)


def _write(
    image: DecodedImage, painted_hwc: UInt8Array, weight_hw: FloatArray, box: IntBox
) -> tuple[Pixels, Pixels | None]:
    x0, y0, x1, y1 = box
    pixels = image.pixels.copy()
    touched = weight_hw > 0
    colours = from_srgb(painted_hwc, image.icc_profile, image.bit_depth)
    new = colours[touched].astype(np.float32)
    old = image.pixels[y0:y1, x0:x1][touched].astype(np.float32)
    weight = weight_hw[touched][:, None]
    if image.alpha is None:
        pixels[y0:y1, x0:x1][touched] = np.rint(old + (new - old) * weight)
        return pixels, None
    # Over a transparent original the colour beneath is hidden: it must not shine through.
    full = float(np.iinfo(pixels.dtype).max)
    alpha = image.alpha.copy()
    below = image.alpha[y0:y1, x0:x1][touched].astype(np.float32)[:, None] / full
    above = weight + (1 - weight) * below
    mixed = (new * weight + old * (1 - weight) * below) / np.maximum(above, 1e-6)
    pixels[y0:y1, x0:x1][touched] = np.rint(mixed)
    alpha[y0:y1, x0:x1][touched] = np.rint(above[:, 0] * full)
    return pixels, alpha


def _estimate_painted(
    generated_hwc: UInt8Array, original_hwc: UInt8Array, plan: CropPlan
) -> UInt8Array:
    """Where the expert changed the crop, for cut-out pictures whose background must stay clear."""
    difference = cv2.absdiff(generated_hwc, extract_crop(original_hwc, plan)).max(axis=2)
    changed = (difference > _PAINTED_LEVELS).astype(np.uint8) * np.uint8(255)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    closed = cv2.morphologyEx(changed, cv2.MORPH_CLOSE, kernel)
    return np.asarray(closed, np.uint8)
