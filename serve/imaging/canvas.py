"""The product whole and centred on a plain ground of one size, as diffusion experts want it."""

from dataclasses import replace
from typing import Any

import cv2
import numpy as np

from serve.errors import InvalidImage
from serve.imaging.colour import IntBox, reduce_depth
from serve.imaging.decode import DecodedImage
from serve.messages import UInt8Array

_SEEN_ABOVE = 12  # levels of alpha, 5 %: fainter rims of a cut-out would only make it smaller


def trim_clear_border(image: DecodedImage) -> DecodedImage:
    """The picture without the clear border around a cut-out; an opaque one as it is.

    Raises:
        InvalidImage: nothing of it can be seen.
    """
    if image.alpha is None:
        return image
    x0, y0, x1, y1 = _bound_visible(reduce_depth(image.alpha))
    return replace(image, pixels=image.pixels[y0:y1, x0:x1], alpha=image.alpha[y0:y1, x0:x1])


def build_canvas(
    product_rgba: UInt8Array, size: tuple[int, int], background: tuple[int, int, int], margin: float
) -> UInt8Array:
    """Lay a product on a plain ground, as large as fits, its aspect kept.

    Args:
        product_rgba: (h, w, 4) sRGB, straight alpha. A cut-out loses its clear border and gets
            `margin`; an opaque photo brings surroundings of its own and is letterboxed without.
        size: width and height of the canvas.
        margin: least free border, as a fraction of the canvas' shorter side.

    Returns:
        (size[1], size[0], 4), alpha 255 everywhere.

    Raises:
        InvalidImage: nothing of the product can be seen.
    """
    is_opaque = bool((product_rgba[..., 3] == 255).all())
    x0, y0, x1, y1 = _bound_visible(product_rgba[..., 3])
    width_px, height_px = size
    border_px = 0 if is_opaque else round(margin * min(size))
    scale = min((width_px - 2 * border_px) / (x1 - x0), (height_px - 2 * border_px) / (y1 - y0))
    placed_w_px, placed_h_px = max(1, round((x1 - x0) * scale)), max(1, round((y1 - y0) * scale))
    left, top = (width_px - placed_w_px) // 2, (height_px - placed_h_px) // 2
    cut = product_rgba[y0:y1, x0:x1]
    laid = _lay(cut, (placed_w_px, placed_h_px), scale, background, is_opaque)
    canvas = np.full((height_px, width_px, 4), (*background, 255), np.uint8)
    canvas[top : top + placed_h_px, left : left + placed_w_px, :3] = laid
    return canvas


def _lay(
    cut_rgba: UInt8Array,
    size: tuple[int, int],
    scale: float,
    background: tuple[int, int, int],
    is_opaque: bool,
) -> UInt8Array:
    """What was cut, at its size on the canvas, on the ground."""
    rgb = np.ascontiguousarray(cut_rgba[..., :3])
    if is_opaque:
        return np.asarray(_resample(rgb, size, scale), np.uint8)
    # Premultiplied while it is resampled: what a clear pixel hides must not colour its neighbours.
    alpha = np.ascontiguousarray(cut_rgba[..., 3])
    covered = cv2.multiply(rgb, cv2.merge((alpha,) * 3), scale=1 / 255, dtype=cv2.CV_32F)
    covered = _resample(covered, size, scale)
    clear = 1 - _resample(alpha.astype(np.float32), size, scale).clip(0, 255) / 255
    for channel, level in enumerate(background):
        covered[..., channel] += level * clear
    return np.asarray(cv2.convertScaleAbs(covered.clip(0, 255)), np.uint8)


def _bound_visible(alpha_hw: UInt8Array) -> IntBox:
    x, y, width, height = cv2.boundingRect((alpha_hw > _SEEN_ABOVE).astype(np.uint8))
    if width == 0:
        raise InvalidImage(
            "the product picture is transparent everywhere", remedy="send a visible product"
        )
    return x, y, x + width, y + height


def _resample(pixels: Any, size: tuple[int, int], scale: float) -> Any:
    if pixels.shape[1::-1] == size:
        return pixels
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LANCZOS4
    return cv2.resize(pixels, size, interpolation=how)
