"""A caller's own mask as a region, or a refusal that says what is wrong with it."""

import cv2
import numpy as np

from serve.errors import MaskRejected
from serve.imaging.colour import reduce_depth
from serve.imaging.decode import DecodedImage, decode_image
from serve.imaging.limits import ImageLimits
from serve.messages import UInt8Array
from serve.schemas.tryon import MaskConvention

_FULL_SHARE = 0.995
# Photographs of persons: over 0.5 neither black nor white, over 0.08 of it coloured (24 samples).
# Masks with very wide soft edges: up to 0.25, and grey.
_MAX_MID_SHARE = 0.4
_MAX_COLOURED_SHARE = 0.05
_MID_LOW, _MID_HIGH = 32, 223
_MIN_CHROMA = 24


def decode_mask(data: bytes, convention: MaskConvention, limits: ImageLimits) -> UInt8Array:
    """Read a mask file under an explicit polarity.

    Args:
        convention: which value means "may change"; `alpha_edits` is OpenAI's, transparent edits.

    Returns:
        (H, W) uint8: 255 may change, 0 may not.

    Raises:
        MaskRejected: empty, full, a photograph, or no alpha channel to read.
        InvalidImage, ImageTooLarge: the file is no usable picture.
    """
    mask = decode_image(data, limits)
    if convention == "alpha_edits":
        edit_hw = _read_transparency(mask)
    else:
        brightest, darkest = _read_extremes(mask)
        _check_photograph(brightest, darkest)
        edit_hw = brightest if convention == "white_edits" else np.invert(brightest)
    region_hw = np.asarray(cv2.threshold(edit_hw, 127, 255, cv2.THRESH_BINARY)[1], np.uint8)
    _check_share(region_hw, convention)
    return region_hw


def check_mask_size(region_hw: UInt8Array, image_w_px: int, image_h_px: int) -> None:
    """Refuse a mask that was not made for this picture.

    Args:
        image_w_px: of the upright picture.

    Raises:
        MaskRejected: says both sizes.
    """
    height_px, width_px = region_hw.shape
    if (width_px, height_px) != (image_w_px, image_h_px):
        raise MaskRejected(
            f"the mask is {width_px}x{height_px}, the picture is {image_w_px}x{image_h_px}",
            remedy="send a mask of exactly the picture's size, EXIF orientation applied",
        )


def _read_transparency(mask: DecodedImage) -> UInt8Array:
    if mask.alpha is None:
        raise MaskRejected(
            f"mask_convention is alpha_edits and the mask ({mask.source_mode}) has no alpha",
            remedy="send a PNG whose transparent pixels may change, or use white_edits",
        )
    return np.invert(reduce_depth(mask.alpha))


def _read_extremes(mask: DecodedImage) -> tuple[UInt8Array, UInt8Array]:
    """Brightest and darkest channel of each pixel; a tenth of the time of NumPy's over axis 2."""
    pixels = reduce_depth(mask.pixels)
    if mask.source_mode in ("L", "1"):
        grey = np.asarray(cv2.extractChannel(pixels, 0), np.uint8)
        return grey, grey
    red, green, blue = (cv2.extractChannel(pixels, channel) for channel in range(3))
    # No luminance weights: a pure red scribble on black is a mask too.
    brightest = cv2.max(cv2.max(red, green), blue)
    darkest = cv2.min(cv2.min(red, green), blue)
    return np.asarray(brightest, np.uint8), np.asarray(darkest, np.uint8)


def _check_photograph(brightest: UInt8Array, darkest: UInt8Array) -> None:
    is_mid = cv2.inRange(brightest, np.array(_MID_LOW + 1), np.array(_MID_HIGH - 1))
    chroma = cv2.subtract(brightest, darkest)
    has_chroma = cv2.threshold(chroma, _MIN_CHROMA, 255, cv2.THRESH_BINARY)[1]
    share = cv2.countNonZero(is_mid) / is_mid.size
    coloured_share = cv2.countNonZero(cv2.bitwise_and(is_mid, has_chroma)) / is_mid.size
    if share > _MAX_MID_SHARE or coloured_share > _MAX_COLOURED_SHARE:
        raise MaskRejected(
            f"the mask looks like a photograph: {share:.0%} of it is neither black nor white",
            remedy="send a black and white picture",
        )


def _check_share(region_hw: UInt8Array, convention: MaskConvention) -> None:
    share = cv2.countNonZero(region_hw) / region_hw.size
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
