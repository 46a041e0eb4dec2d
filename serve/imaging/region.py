"""Which part of the picture the expert sees, and how to get there and back without a shift.

All resampling keeps pixel centres: pixel i covers [i, i + 1), in the picture and in the crop.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from serve.errors import SubjectNotFound
from serve.imaging.colour import IntBox
from serve.messages import Point, UInt8Array

_CUBIC_ABOVE = 1.5
_AREA_BELOW = 0.75
_PAINTABLE = 63
_EDGE_SIGMA = 1.4  # pixels of the copy; halves the error on discs and straight edges, 4x and 8x up
_SOFT_SHARE = 0.02  # a thresholded region has none between; antialiased edges stay well below
_MAX_SQUEEZE = 0.02  # of one axis against the other; invisible, and above what whole pixels cost


@dataclass(frozen=True, slots=True)
class CropPolicy:
    """How an expert wants its crop; part of what its weights were trained with."""

    context: float = 1.3
    """The region's box times this is the least the expert sees."""
    size_px: int = 768
    """Longer side of the crop at the expert."""
    multiple_of: int = 16
    sizes: tuple[tuple[int, int], ...] = ()
    """When given, every crop has one of these (width, height); of equals the first."""
    min_side_px: int = 256
    """Shorter side of the crop at the expert is at least this."""
    max_aspect: float = 2.5
    """Longer side over shorter side of what is cut out, where the picture has room."""
    max_upscale: float = 4.0
    """A tiny region gets more surroundings rather than more invented pixels."""


@dataclass(frozen=True, slots=True)
class CropPlan:
    """A box of the original and the size at which the expert works on it."""

    box: IntBox
    """In pixels of the original, inside the picture, never empty."""
    crop_w_px: int
    crop_h_px: int
    image_w_px: int
    image_h_px: int
    border_px: IntBox = (0, 0, 0, 0)
    """Left, top, right and bottom of the crop that lie outside the picture: its edge repeated."""

    @property
    def box_w_px(self) -> int:
        return self.box[2] - self.box[0]

    @property
    def box_h_px(self) -> int:
        return self.box[3] - self.box[1]

    @property
    def shown_w_px(self) -> int:
        """Of the crop, without its border: what shows the box."""
        return self.crop_w_px - self.border_px[0] - self.border_px[2]

    @property
    def shown_h_px(self) -> int:
        return self.crop_h_px - self.border_px[1] - self.border_px[3]

    @property
    def scale(self) -> Point:
        """Crop pixels per pixel of the original, across and down."""
        return self.shown_w_px / self.box_w_px, self.shown_h_px / self.box_h_px

    @property
    def origin(self) -> Point:
        """Where in the original the crop's upper left corner lies; outside of it by the border."""
        scale_x, scale_y = self.scale
        return self.box[0] - self.border_px[0] / scale_x, self.box[1] - self.border_px[1] / scale_y

    def affine_from_copy(self, copy_w_px: int, copy_h_px: int) -> tuple[Point, Point]:
        """(scale, offset) from pixels of a scaled copy of the picture to crop pixels."""
        scale_x, scale_y = self.scale
        left, top = self.origin
        return (
            (scale_x * self.image_w_px / copy_w_px, scale_y * self.image_h_px / copy_h_px),
            (-left * scale_x, -top * scale_y),
        )


def plan_crop(
    region_hw: UInt8Array, image_w_px: int, image_h_px: int, policy: CropPolicy
) -> CropPlan:
    """Choose the box around a region and the expert's size for it.

    Args:
        region_hw: (h, w) at the size of the picture or of a scaled copy of it; 0 is outside.

    Raises:
        SubjectNotFound: the region is empty.
    """
    bounds = x0, y0, x1, y1 = _bound_region(region_hw, image_w_px, image_h_px)
    if policy.sizes:
        return _plan_fixed(bounds, image_w_px, image_h_px, policy)
    width_px, height_px = (x1 - x0) * policy.context, (y1 - y0) * policy.context
    least_px = policy.size_px / policy.max_upscale
    grow = max(1.0, least_px / max(width_px, height_px))
    width_px, height_px = width_px * grow, height_px * grow
    width_px = max(width_px, height_px / policy.max_aspect)
    height_px = max(height_px, width_px / policy.max_aspect)
    width_px, height_px = min(width_px, image_w_px), min(height_px, image_h_px)
    crop_w_px, crop_h_px = _choose_size(width_px, height_px, policy)
    # Rounding to multiples changed the aspect a little: take in more, so that nothing is squeezed.
    width_px, height_px = (
        max(width_px, height_px * crop_w_px / crop_h_px),
        max(height_px, width_px * crop_h_px / crop_w_px),
    )
    left, right = _place(x0, x1, width_px, image_w_px)
    top, bottom = _place(y0, y1, height_px, image_h_px)
    return CropPlan((left, top, right, bottom), crop_w_px, crop_h_px, image_w_px, image_h_px)


def extract_crop(box_hwc: UInt8Array, plan: CropPlan) -> UInt8Array:
    """The pixels of `plan.box` (H, W, C) at the expert's size."""
    shown = resample(box_hwc, plan.shown_w_px, plan.shown_h_px)
    return _extend(shown, plan, cv2.BORDER_REPLICATE)


def extract_map(map_box_hw: UInt8Array, plan: CropPlan) -> UInt8Array:
    """A map (h, w) over `plan.box` at the expert's size, 0 outside the picture."""
    shown = resample(map_box_hw, plan.shown_w_px, plan.shown_h_px)
    return _extend(shown, plan, cv2.BORDER_CONSTANT)


def restore_crop(crop: UInt8Array, plan: CropPlan) -> UInt8Array:
    """What the expert made, (h, w, C) or (h, w), at the size of `plan.box`."""
    left, top, _, _ = plan.border_px
    shown = crop[top : top + plan.shown_h_px, left : left + plan.shown_w_px]
    return resample(shown, plan.box_w_px, plan.box_h_px)


def resample(pixels: UInt8Array, width_px: int, height_px: int) -> UInt8Array:
    """Change the size without moving anything: Lanczos, area means far down, linear for maps."""
    if pixels.shape[:2] == (height_px, width_px):
        return pixels
    factor = (width_px * height_px / (pixels.shape[0] * pixels.shape[1])) ** 0.5
    # Area means soften: 45 dB against Lanczos' 51-60 on a crop that comes back from 1.05x-1.35x.
    how = cv2.INTER_AREA if factor < _AREA_BELOW else cv2.INTER_LANCZOS4
    if factor > _CUBIC_ABOVE:
        how = cv2.INTER_CUBIC  # as good there (58.7 dB both at 2.5x), in a fifteenth of the time
    if pixels.ndim == 2 and how != cv2.INTER_AREA:
        how = cv2.INTER_LINEAR  # overshoot would mark pixels in a map that nobody painted
    resized: Any = cv2.resize(pixels, (width_px, height_px), interpolation=how)
    return resized  # type: ignore[no-any-return]


def upscale_region(region_hw: UInt8Array, plan: CropPlan) -> UInt8Array:
    """The region inside `plan.box` at the size of the original: the one that is promised.

    Args:
        region_hw: (h, w) at the size of the picture or of a scaled copy of it.

    Returns:
        (box_h, box_w) uint8. A binary region stays 0 or 255, a soft one stays soft.
    """
    if region_hw.shape == (plan.image_h_px, plan.image_w_px):
        x0, y0, x1, y1 = plan.box
        return np.ascontiguousarray(region_hw[y0:y1, x0:x1])
    size = plan.box_w_px, plan.box_h_px
    if not _is_binary(region_hw):
        return _cut_from_copy(region_hw, plan, size, cv2.INTER_LINEAR)
    binary = np.where(region_hw > 127, 255, 0).astype(np.uint8)
    # Smoothed before it grows: otherwise every pixel of the copy leaves a step in the edge.
    smooth = _cut_from_copy(
        cv2.GaussianBlur(binary, (0, 0), _EDGE_SIGMA), plan, size, cv2.INTER_CUBIC
    )
    # What the smoothing would erase, such as the frame of spectacles, stays as it was found.
    thick = cv2.morphologyEx(binary, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    thin = _cut_from_copy(cv2.subtract(binary, thick), plan, size, cv2.INTER_LINEAR)
    either: Any = cv2.threshold(cv2.max(smooth, thin), 127, 255, cv2.THRESH_BINARY)[1]
    return either  # type: ignore[no-any-return]


def shrink_region(region_box_hw: UInt8Array, plan: CropPlan) -> UInt8Array:
    """The region inside the box at the expert's size: 255 where it may paint, else 0."""
    resized = extract_map(region_box_hw, plan)
    # Rather too wide than too narrow: paste-back cuts it, and a thin region must not vanish.
    paintable = resized > min(_PAINTABLE, int(resized.max(initial=0)) - 1)
    return np.where(paintable, 255, 0).astype(np.uint8)


def cut_copy_to_crop(copy: UInt8Array, plan: CropPlan) -> UInt8Array:
    """The part of a map at copy scale that the crop shows, (h, w), at the expert's size."""
    shown = _cut_from_copy(copy, plan, (plan.shown_w_px, plan.shown_h_px), cv2.INTER_LINEAR)
    return _extend(shown, plan, cv2.BORDER_REPLICATE)


def _extend(shown: UInt8Array, plan: CropPlan, how: int) -> UInt8Array:
    left, top, right, bottom = plan.border_px
    if not any(plan.border_px):
        return shown
    extended: Any = cv2.copyMakeBorder(shown, top, bottom, left, right, how, value=0)
    return extended  # type: ignore[no-any-return]


def _cut_from_copy(copy: Any, plan: CropPlan, size: tuple[int, int], how: int) -> UInt8Array:
    copy_h_px, copy_w_px = copy.shape[:2]
    step_x = plan.box_w_px / size[0] * copy_w_px / plan.image_w_px
    step_y = plan.box_h_px / size[1] * copy_h_px / plan.image_h_px
    left = plan.box[0] * copy_w_px / plan.image_w_px
    top = plan.box[1] * copy_h_px / plan.image_h_px
    inverse = np.array([[step_x, 0, left + step_x / 2 - 0.5], [0, step_y, top + step_y / 2 - 0.5]])
    cut: Any = cv2.warpAffine(
        copy, inverse, size, flags=how | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE
    )
    return cut  # type: ignore[no-any-return]


def _is_binary(region_hw: UInt8Array) -> bool:
    between = np.count_nonzero((region_hw > 0) & (region_hw < 255))
    return int(between) <= _SOFT_SHARE * int(np.count_nonzero(region_hw))


def _bound_region(
    region_hw: UInt8Array, image_w_px: int, image_h_px: int
) -> tuple[float, float, float, float]:
    """Box of the region in pixels of the original, with the reach of its resampling."""
    x, y, width, height = cv2.boundingRect((region_hw > 0).astype(np.uint8))
    if width == 0:
        raise SubjectNotFound("the region to edit is empty", remedy="send a mask")
    copy_h_px, copy_w_px = region_hw.shape
    scale_x, scale_y = image_w_px / copy_w_px, image_h_px / copy_h_px
    reach = 0 if (copy_w_px, copy_h_px) == (image_w_px, image_h_px) else 1
    return (
        max(0.0, (x - reach) * scale_x),
        max(0.0, (y - reach) * scale_y),
        min(float(image_w_px), (x + width + reach) * scale_x),
        min(float(image_h_px), (y + height + reach) * scale_y),
    )


def _plan_fixed(
    bounds: tuple[float, float, float, float], image_w_px: int, image_h_px: int, policy: CropPolicy
) -> CropPlan:
    """The size whose aspect costs least: surroundings taken in, or context given up."""
    x0, y0, x1, y1 = bounds
    least = x1 - x0, y1 - y0
    wanted = min(least[0] * policy.context, image_w_px), min(least[1] * policy.context, image_h_px)
    views = [_view(size, least, wanted, (image_w_px, image_h_px), policy) for size in policy.sizes]
    _, _, (width_px, height_px), size = min(views, key=lambda view: view[:2])
    left, right = _place(x0, x1, min(width_px, image_w_px), image_w_px)
    top, bottom = _place(y0, y1, min(height_px, image_h_px), image_h_px)
    border_px = _choose_border(right - left, bottom - top, size)
    return CropPlan((left, top, right, bottom), *size, image_w_px, image_h_px, border_px)


_View = tuple[bool, float, tuple[float, float], tuple[int, int]]
"""Reaches outside the picture; what it costs; its width and height in the original; its size."""


def _view(
    size: tuple[int, int],
    least: tuple[float, float],
    wanted: tuple[float, float],
    image: tuple[int, int],
    policy: CropPolicy,
) -> _View:
    """What of the original one size would show: exactly its aspect, at least the region."""
    aspect = size[0] / size[1]
    width_px = max(wanted[0], wanted[1] * aspect, size[0] / policy.max_upscale)
    room_px = min(image[0], image[1] * aspect)
    needed_px = max(least[0], least[1] * aspect)
    growth = width_px * width_px / aspect / (wanted[0] * wanted[1])
    if needed_px <= room_px * (1 + _MAX_SQUEEZE):
        loss = max(1.0, width_px / room_px) ** 2
        width_px = min(width_px, room_px)
        return False, growth * loss, (width_px, width_px / aspect), size
    return True, growth, (width_px, width_px / aspect), size


def _choose_border(box_w_px: int, box_h_px: int, size: tuple[int, int]) -> IntBox:
    """None where the box has the size's aspect; else what keeps it from being squeezed."""
    scale_x, scale_y = size[0] / box_w_px, size[1] / box_h_px
    scale = min(scale_x, scale_y)
    if max(scale_x, scale_y) <= scale * (1 + _MAX_SQUEEZE):
        return 0, 0, 0, 0
    free_x, free_y = size[0] - round(box_w_px * scale), size[1] - round(box_h_px * scale)
    return free_x // 2, free_y // 2, free_x - free_x // 2, free_y - free_y // 2


def _choose_size(width_px: float, height_px: float, policy: CropPolicy) -> tuple[int, int]:
    """The expert's size: the longer side is the class, both are multiples."""
    step = policy.multiple_of
    longer_px = max(step, policy.size_px // step * step)
    scale = longer_px / max(width_px, height_px)
    least_px = min(longer_px, -(-policy.min_side_px // step) * step)

    def snap(side_px: float) -> int:
        return min(longer_px, max(least_px, round(side_px * scale / step) * step))

    return snap(width_px), snap(height_px)


def _place(low: float, high: float, length: float, limit_px: int) -> tuple[int, int]:
    """A stretch of about `length` around [low, high], shifted rather than cut at the border."""
    first, last = int(np.floor(low)), int(np.ceil(high))
    whole = min(limit_px, max(round(length), last - first, 1))
    start = min(max(0, round((low + high - whole) / 2)), limit_px - whole)
    start = min(start, first)
    start = max(start, last - whole)
    return start, start + whole
