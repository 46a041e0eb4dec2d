"""The proof that nothing outside the region changed, taken from the file that is delivered."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from serve.imaging.colour import IntBox, reduce_depth
from serve.imaging.decode import DecodedImage, Pixels, decode_image
from serve.imaging.limits import ImageLimits

_STRIP_ROWS = 512


@dataclass(frozen=True, slots=True)
class OutsideProof:
    """What the delivered file says, pixel by pixel."""

    max_abs_diff: int
    """Over every pixel and channel outside the region, in levels of the compared depth."""
    num_pixels_changed_inside: int
    exact: bool
    """Nothing outside differs, at the full depth of the source."""
    sha256: str
    """Hex digest of the delivered file."""


def prove_outside(
    final_bytes: bytes, source: DecodedImage, region_box_hw: NDArray[np.uint8], box: IntBox
) -> OutsideProof:
    """Decode the final file and compare it with the source wherever the region is zero.

    Args:
        region_box_hw: (box_h, box_w); the promise covers its zeros and everything outside `box`.

    Returns:
        For formats with less depth than the source, differences in 8-bit levels and never exact.
    """
    side_px = max(source.width, source.height)
    limits = ImageLimits(
        max_bytes=max(len(final_bytes), 1),
        max_pixels=source.width * source.height,
        max_side_px=side_px,
        min_side_px=1,
    )
    final = decode_image(final_bytes, limits, counts_as="proof")
    if (final.width, final.height) != (source.width, source.height):
        return OutsideProof(255, 0, exact=False, sha256=final.sha256)
    is_same_depth = final.bit_depth == source.bit_depth
    largest, num_changed = _compare(final, source, region_box_hw, box)
    is_same_kind = is_same_depth and final.icc_profile == source.icc_profile
    has_alpha = final.alpha is not None or source.alpha is None
    exact = largest == 0 and is_same_kind and has_alpha
    return OutsideProof(largest, num_changed, exact, final.sha256)


def _compare(
    final: DecodedImage, source: DecodedImage, region_box_hw: NDArray[np.uint8], box: IntBox
) -> tuple[int, int]:
    pairs = [(final.pixels, source.pixels)]
    if final.alpha is not None and source.alpha is not None:
        pairs.append((final.alpha, source.alpha))
    largest = num_changed = 0
    for new, old in pairs:
        for y_slice, x_slice in _around(source.width, source.height, box):
            largest = max(largest, _max_difference(new[y_slice, x_slice], old[y_slice, x_slice]))
    x0, y0, x1, _ = box
    # In strips: a background's box is the whole picture.
    for start in range(0, len(region_box_hw), _STRIP_ROWS):
        region_hw = region_box_hw[start : start + _STRIP_ROWS]
        top = y0 + start
        rows = slice(top, top + len(region_hw))
        changed = np.zeros(region_hw.shape, np.bool_)
        for new, old in pairs:
            difference = _largest_channel(_difference(new[rows, x0:x1], old[rows, x0:x1]))
            largest = max(largest, int(difference[region_hw == 0].max(initial=0)))
            changed |= difference > 0
        num_changed += int(np.count_nonzero(changed & (region_hw > 0)))
    return largest, num_changed


def _around(width_px: int, height_px: int, box: IntBox) -> Iterator[tuple[slice, slice]]:
    """Everything outside the box: above, below, left, right."""
    x0, y0, x1, y1 = box
    yield slice(0, y0), slice(0, width_px)
    yield slice(y1, height_px), slice(0, width_px)
    yield slice(y0, y1), slice(0, x0)
    yield slice(y0, y1), slice(x1, width_px)


def _max_difference(new: Pixels, old: Pixels) -> int:
    """In strips: NORM_INF needs no memory of its own on rows that lie together."""
    largest = 0
    num_rows = len(new) if new.size else 0  # OpenCV has no norm of nothing
    for start in range(0, num_rows, _STRIP_ROWS):
        rows = slice(start, start + _STRIP_ROWS)
        if new.dtype == old.dtype:
            largest = max(largest, int(cv2.norm(new[rows], old[rows], cv2.NORM_INF)))
        else:
            largest = max(largest, int(_difference(new[rows], old[rows]).max(initial=0)))
    return largest


def _difference(new: Pixels, old: Pixels) -> Pixels:
    """Absolute, in levels of the smaller depth; the shape of the inputs."""
    if new.dtype != old.dtype:
        new, old = reduce_depth(new), reduce_depth(old)
    difference: Any = cv2.absdiff(np.ascontiguousarray(new), np.ascontiguousarray(old))
    return difference  # type: ignore[no-any-return]


def _largest_channel(difference: Pixels) -> Pixels:
    """(H, W) from (H, W, 3) or (H, W)."""
    if difference.ndim == 2:
        return difference
    red, green, blue = (difference[..., channel] for channel in range(3))
    return np.maximum(np.maximum(red, green), blue)
