"""Between a picture's own colours and the 8-bit sRGB that models and segmenters see."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from serve.imaging.copies import note_copy
from serve.imaging.decode import DecodedImage, Pixels
from serve.imaging.profiles import rgb_to_srgb, srgb_to_rgb

IntBox = tuple[int, int, int, int]
"""x0, y0, x1, y1 in whole pixels of the original; x1 and y1 exclusive."""
_STRIP_ROWS = 256


def to_srgb(image: DecodedImage, max_side_px: int | None = None) -> NDArray[np.uint8]:
    """The whole picture for a model or a segmenter.

    Args:
        max_side_px: scale down, before converting, so that the longer side is at most this.

    Returns:
        (h, w, 3) uint8 sRGB; transparent parts lie on white.
    """
    return _convert(image, image.pixels, image.alpha, max_side_px)


def to_srgb_rgba(image: DecodedImage, max_side_px: int | None = None) -> NDArray[np.uint8]:
    """The whole picture with its transparency, for a product that was cut out already.

    Returns:
        (h, w, 4) uint8 sRGB, straight alpha: the colours at the edge are the product's own, not
        mixed with white. Alpha is 255 everywhere for an opaque picture.
    """
    if image.alpha is None:
        rgb = to_srgb(image, max_side_px)
        return np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])
    rgb, alpha = reduce_depth(image.pixels), reduce_depth(image.alpha)
    factor = 1.0 if max_side_px is None else max_side_px / max(alpha.shape)
    if factor < 1:
        # Premultiplied while shrinking: what a clear pixel hides must not colour its neighbours.
        shrunk = _shrink(cv2.multiply(rgb, cv2.merge((alpha,) * 3), scale=1 / 255), factor)
        alpha = _shrink(alpha, factor)
        whole = shrunk.astype(np.float32) * (255 / np.maximum(alpha, 1))[..., None]
        rgb = np.clip(np.rint(whole), 0, 255).astype(np.uint8)
    return np.dstack([rgb_to_srgb(np.ascontiguousarray(rgb), image.icc_profile), alpha])


def crop_to_srgb(image: DecodedImage, box: IntBox) -> NDArray[np.uint8]:
    """One part of the picture at its own resolution, as `to_srgb` gives it."""
    x0, y0, x1, y1 = box
    alpha = None if image.alpha is None else image.alpha[y0:y1, x0:x1]
    return _convert(image, image.pixels[y0:y1, x0:x1], alpha, None)


def from_srgb(pixels_hwc: NDArray[np.uint8], icc_profile: bytes | None, bit_depth: int) -> Pixels:
    """8-bit sRGB -> the space and depth of a source picture.

    Returns:
        (H, W, 3) uint8 or uint16.
    """
    converted = srgb_to_rgb(pixels_hwc, icc_profile)
    return converted.astype(np.uint16) * np.uint16(257) if bit_depth == 16 else converted


def reduce_depth(pixels: Pixels) -> NDArray[np.uint8]:
    """16 bit -> 8 bit, rounded; 8 bit passes through."""
    if pixels.dtype == np.uint8:
        return pixels  # type: ignore[return-value]
    reduced: Any = cv2.convertScaleAbs(pixels, alpha=1 / 257)
    return reduced  # type: ignore[no-any-return]


def _convert(
    image: DecodedImage, pixels: Pixels, alpha: Pixels | None, max_side_px: int | None
) -> NDArray[np.uint8]:
    if alpha is not None:
        pixels = _flatten(pixels, alpha)
    longer_px = max(pixels.shape[:2])
    if max_side_px is not None and longer_px > max_side_px:
        pixels = _shrink(pixels, max_side_px / longer_px)
    return rgb_to_srgb(np.ascontiguousarray(reduce_depth(pixels)), image.icc_profile)


def _shrink(pixels: Any, factor: float) -> Any:
    height_px, width_px = (max(1, round(side * factor)) for side in pixels.shape[:2])
    return cv2.resize(pixels, (width_px, height_px), interpolation=cv2.INTER_AREA)


def _flatten(pixels: Pixels, alpha: Pixels) -> Pixels:
    """Lay on white, in strips: in one piece the intermediate would be four times the picture."""
    white = np.float32(np.iinfo(pixels.dtype).max)
    flat = np.empty_like(pixels)
    note_copy("convert", flat)
    for start in range(0, len(pixels), _STRIP_ROWS):
        rows = slice(start, start + _STRIP_ROWS)
        weight = alpha[rows, :, None].astype(np.float32) / white
        flat[rows] = np.rint(white + (pixels[rows] - white) * weight)
    return flat
