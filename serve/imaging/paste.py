"""The painted crop back into the original: only pixels of the region are ever written."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from serve.imaging.blend import (
    DEFAULT_FEATHER,
    choose_feather_px,
    match_colour,
    remove_seam,
    soften_painted,
    weigh_region,
)
from serve.imaging.colour import IntBox, crop_to_srgb, from_srgb
from serve.imaging.copies import note_copy
from serve.imaging.decode import DecodedImage, Pixels
from serve.imaging.region import CropPlan, extract_crop, extract_map, restore_crop
from serve.messages import UInt8Array
from serve.schemas.receipt import Blend

FloatArray = NDArray[np.float32]
_PAINTED_LEVELS = 12  # above resampling and codec noise, below any visible product


@dataclass(frozen=True, slots=True)
class Overlay:
    """What was laid over the original."""

    weight_hw: FloatArray
    """(box_h, box_w) in [0, 1]: how much of each pixel is new."""
    painted_hwc: UInt8Array
    """(box_h, box_w, 3) sRGB: what was laid over, before the weight."""
    box: IntBox


@dataclass(frozen=True, slots=True)
class Pasted:
    """The finished picture and how it came to be."""

    pixels: Pixels
    """(H, W, 3) in the original's space and depth; identical to it outside the region."""
    alpha: Pixels | None
    overlay: Overlay


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
    # Tone is corrected at the expert's size: it is smooth, and a large original stays cheap.
    if colour_match or blend == "seamless" or (alpha_hw is None and image.alpha is not None):
        original = extract_crop(crop_to_srgb(image, plan.box), plan)
        inside = extract_map(region_box_hw, plan)
        if alpha_hw is None and image.alpha is not None:
            alpha_hw = _estimate_painted(generated_hwc, original)
        if colour_match:
            generated_hwc = match_colour(generated_hwc, original, inside)
        if blend == "seamless":
            generated_hwc = remove_seam(generated_hwc, original, inside)
    painted = restore_crop(generated_hwc, plan)
    if feather_px is None:
        feather_px = choose_feather_px(region_box_hw, DEFAULT_FEATHER)
    painted_alpha = None
    if alpha_hw is not None:
        # At the expert's size: a wide soft edge over ten megapixels takes most of a second.
        softened = soften_painted(alpha_hw, feather_px * plan.scale[0])
        painted_alpha = restore_crop(softened, plan)
    weight = weigh_region(region_box_hw, painted_alpha, feather_px)
    pixels, alpha = _write(image, painted, weight, plan.box)
    return Pasted(pixels, alpha, Overlay(weight, painted, plan.box))


def _write(
    image: DecodedImage, painted_hwc: UInt8Array, weight_hw: FloatArray, box: IntBox
) -> tuple[Pixels, Pixels | None]:
    x0, y0, x1, y1 = box
    pixels = image.pixels.copy()
    note_copy("paste", pixels)
    alpha = None if image.alpha is None else image.alpha.copy()
    colours = from_srgb(painted_hwc, image.icc_profile, image.bit_depth)
    full = np.iinfo(pixels.dtype).max
    target = pixels[y0:y1, x0:x1]
    is_whole = weight_hw >= 1
    # Writes through the view; NumPy's masked copy of three channels takes 80 times as long.
    cv2.copyTo(colours, is_whole.view(np.uint8), target)
    is_mixed = (weight_hw > 0) & ~is_whole
    weight = weight_hw[is_mixed][:, None]
    old, new = target[is_mixed].astype(np.float32), colours[is_mixed].astype(np.float32)
    if alpha is None:
        target[is_mixed] = np.rint(old + (new - old) * weight)
        return pixels, None
    # Over a transparent original the colour beneath is hidden: it must not shine through.
    cover = alpha[y0:y1, x0:x1]
    below = (1 - weight) * (cover[is_mixed].astype(np.float32)[:, None] / full)
    above = weight + below
    target[is_mixed] = np.rint((new * weight + old * below) / above)
    cover[is_mixed] = np.rint(above[:, 0] * full)
    cover[is_whole] = full
    return pixels, alpha


def _estimate_painted(generated_hwc: UInt8Array, original_hwc: UInt8Array) -> UInt8Array:
    """Where the expert changed the crop, for cut-out pictures whose background must stay clear."""
    difference = cv2.absdiff(generated_hwc, original_hwc).max(axis=2)
    changed = (difference > _PAINTED_LEVELS).astype(np.uint8) * np.uint8(255)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    closed = cv2.morphologyEx(changed, cv2.MORPH_CLOSE, kernel)
    return np.asarray(closed, np.uint8)
