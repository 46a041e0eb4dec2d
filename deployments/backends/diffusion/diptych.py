"""Two pictures in one: the product beside the person, each with its own aspect ratio kept."""

import cv2
import numpy as np

from serve.messages import UInt8Array

WHITE = 255


def compose_diptych(
    crop_hwc: UInt8Array, region_hw: UInt8Array, product_hwc: UInt8Array
) -> tuple[UInt8Array, UInt8Array]:
    """Product left, person right; only the person's region may be painted.

    Returns:
        The picture (H, 2W, 3), and its mask (H, 2W): zeros | region.

    Source: nftblackmagic/catvton-flux, tryon_inference.py; there the person is stretched.
    """
    height_px, width_px = region_hw.shape
    product = letterbox(product_hwc, width_px, height_px)
    picture = np.concatenate([product, crop_hwc], axis=1)
    return picture, np.concatenate([np.zeros_like(region_hw), region_hw], axis=1)


def take_right_half(images_nhwc: UInt8Array) -> UInt8Array:
    """The person's half of painted diptychs: (N, H, 2W, 3) to (N, H, W, 3)."""
    width_px = images_nhwc.shape[2] // 2
    return np.ascontiguousarray(images_nhwc[:, :, width_px:])


def letterbox(picture_hwc: UInt8Array, width_px: int, height_px: int) -> UInt8Array:
    """The whole picture, centred and as large as fits, on white."""
    old_height_px, old_width_px = picture_hwc.shape[:2]
    if (old_width_px, old_height_px) == (width_px, height_px):
        return picture_hwc
    scale = min(width_px / old_width_px, height_px / old_height_px)
    inner_w_px = max(1, round(old_width_px * scale))
    inner_h_px = max(1, round(old_height_px * scale))
    kernel = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    inner = cv2.resize(picture_hwc, (inner_w_px, inner_h_px), interpolation=kernel)
    box = np.full((height_px, width_px, 3), WHITE, np.uint8)
    top_px, left_px = (height_px - inner_h_px) // 2, (width_px - inner_w_px) // 2
    box[top_px : top_px + inner_h_px, left_px : left_px + inner_w_px] = inner
    return box
