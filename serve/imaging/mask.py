"""A caller's own mask as a region, or a refusal that says what is wrong with it."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from serve.errors import MaskRejected
from serve.imaging.colour import reduce_depth
from serve.imaging.decode import DecodedImage, decode_image
from serve.imaging.limits import ImageLimits

MaskConvention = Literal["white_edits", "black_edits", "alpha_edits"]
UInt8Array = NDArray[np.uint8]
_FULL_SHARE = 0.995
# Photographs of persons: over 0.5 neither black nor white, over 0.08 of it coloured (24 samples).
# Masks with very wide soft edges: up to 0.25, and grey.
_MAX_MID_SHARE = 0.4
_MAX_COLOURED_SHARE = 0.05
_MID_LOW, _MID_HIGH = 32, 223
_MIN_CHROMA = 24


def decode_mask(
    data: bytes,
    convention: MaskConvention,
    image_w_px: int,
    image_h_px: int,
    limits: ImageLimits,
) -> UInt8Array:
    """Read a mask file under an explicit polarity.

    Args:
        convention: which value means "may change"; `alpha_edits` is OpenAI's, transparent edits.
        image_w_px: of the upright picture the mask belongs to.

    Returns:
        (H, W) uint8: 255 may change, 0 may not.

    Raises:
        MaskRejected: wrong size, empty, full, a photograph, or no alpha channel to read.
        InvalidImage, ImageTooLarge: the file is no usable picture.
    """
    mask = decode_image(data, limits)
    if (mask.width, mask.height) != (image_w_px, image_h_px):
        raise MaskRejected(
            f"the mask is {mask.width}x{mask.height}, the picture is {image_w_px}x{image_h_px}",
            remedy="send a mask of exactly the picture's size, EXIF orientation applied",
        )
    edit_hw = _read_edit(mask, convention)
    if convention != "alpha_edits":
        _check_photograph(reduce_depth(mask.pixels))
    region_hw = np.where(edit_hw > 127, 255, 0).astype(np.uint8)
    _check_share(region_hw, convention)
    return region_hw


def _read_edit(mask: DecodedImage, convention: MaskConvention) -> UInt8Array:
    if convention == "alpha_edits":
        if mask.alpha is None:
            raise MaskRejected(
                f"mask_convention is alpha_edits and the mask ({mask.source_mode}) has no alpha",
                remedy="send a PNG whose transparent pixels may change, or use white_edits",
            )
        return np.invert(reduce_depth(mask.alpha))
    # No luminance weights: a pure red scribble on black is a mask too.
    brightest: UInt8Array = reduce_depth(mask.pixels).max(axis=2)
    return brightest if convention == "white_edits" else np.invert(brightest)


def _check_photograph(pixels_hwc: UInt8Array) -> None:
    brightest, darkest = pixels_hwc.max(axis=2), pixels_hwc.min(axis=2)
    is_mid = (brightest > _MID_LOW) & (brightest < _MID_HIGH)
    share = np.count_nonzero(is_mid) / is_mid.size
    is_coloured = is_mid & (brightest - darkest > _MIN_CHROMA)
    coloured_share = np.count_nonzero(is_coloured) / is_mid.size
    if share > _MAX_MID_SHARE or coloured_share > _MAX_COLOURED_SHARE:
        raise MaskRejected(
            f"the mask looks like a photograph: {share:.0%} of it is neither black nor white",
            remedy="send a black and white picture",
        )


def _check_share(region_hw: UInt8Array, convention: MaskConvention) -> None:
    share = np.count_nonzero(region_hw) / region_hw.size
    other = "black_edits" if convention == "white_edits" else "white_edits"
    if share == 0:
        raise MaskRejected(
            f"the mask is empty: under {convention} no pixel may change",
            remedy=f"paint the part to change, or set mask_convention={other}",
        )
    if share > _FULL_SHARE:
        raise MaskRejected(
            f"the mask is full: under {convention} {share:.1%} of the picture may change",
            remedy=f"leave out what must stay, or set mask_convention={other}",
        )
