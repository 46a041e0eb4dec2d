"""Pictures in a size that a pipeline insists on, without stretching them."""

from dataclasses import dataclass
from typing import Self

import cv2
import numpy as np

from serve.messages import UInt8Array


@dataclass(frozen=True, slots=True)
class Frame:
    """Where a picture lies in a larger one: scaled evenly, its edges repeated up to the border."""

    width_px: int
    height_px: int
    inner: tuple[int, int, int, int]
    """left, top, width and height of the picture in the frame."""

    @classmethod
    def around(cls, picture_hw: tuple[int, int], width_px: int, height_px: int) -> Self:
        """Centred and as large as fits.

        Args:
            picture_hw: height and width of the picture.
        """
        old_height_px, old_width_px = picture_hw
        scale = min(width_px / old_width_px, height_px / old_height_px)
        inner_w_px = min(width_px, max(1, round(old_width_px * scale)))
        inner_h_px = min(height_px, max(1, round(old_height_px * scale)))
        left_px, top_px = (width_px - inner_w_px) // 2, (height_px - inner_h_px) // 2
        return cls(width_px, height_px, (left_px, top_px, inner_w_px, inner_h_px))

    def place(self, picture_hwc: UInt8Array) -> UInt8Array:
        """(h, w, 3) of any size, to (height_px, width_px, 3)."""
        return self._pad(resample(picture_hwc, *self.inner[2:]), cv2.BORDER_REPLICATE)

    def place_region(self, region_hw: UInt8Array) -> UInt8Array:
        """The same for a region; the border is not in it, and no thin part of it gets lost."""
        inner_hw = resample(region_hw, *self.inner[2:])
        touched_hw = np.where(inner_hw > 0, 255, 0).astype(np.uint8)
        return self._pad(touched_hw, cv2.BORDER_CONSTANT)

    def cut(self, images_nhwc: UInt8Array, width_px: int, height_px: int) -> UInt8Array:
        """The pictures back out of their frames, at the size they had."""
        left_px, top_px, inner_w_px, inner_h_px = self.inner
        inner_nhwc = images_nhwc[:, top_px : top_px + inner_h_px, left_px : left_px + inner_w_px]
        return np.stack([resample(image, width_px, height_px) for image in inner_nhwc])

    def _pad(self, inner: UInt8Array, border: int) -> UInt8Array:
        left_px, top_px, inner_w_px, inner_h_px = self.inner
        right_px = self.width_px - left_px - inner_w_px
        bottom_px = self.height_px - top_px - inner_h_px
        padded: UInt8Array = cv2.copyMakeBorder(  # type: ignore[assignment]
            inner, top_px, bottom_px, left_px, right_px, border, value=0
        )
        return padded


def resample(picture: UInt8Array, width_px: int, height_px: int) -> UInt8Array:
    """To a size: areas averaged where it shrinks, Lanczos where it grows."""
    old_height_px, old_width_px = picture.shape[:2]
    if (old_width_px, old_height_px) == (width_px, height_px):
        return picture
    shrinks = width_px * height_px < old_width_px * old_height_px
    kernel = cv2.INTER_AREA if shrinks else cv2.INTER_LANCZOS4
    resampled: UInt8Array = cv2.resize(  # type: ignore[assignment]
        np.ascontiguousarray(picture), (width_px, height_px), interpolation=kernel
    )
    return resampled
