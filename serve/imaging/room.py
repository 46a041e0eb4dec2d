"""How many decoded pictures a router keeps while experts paint; the others are decoded again.

Twenty photos of 24 megapixels take 1.4 GB decoded, and wait most of their time.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from serve.imaging.decode import DecodedImage, decode_image
from serve.imaging.limits import ImageLimits
from serve.imaging.spool import Encoded, read_encoded

KEPT_BYTES = 96 * 2**20
"""Two of 12 megapixels, sixteen of 2: as many as wait where experts keep pace."""
_M_MMAP_THRESHOLD = -3
_LARGE_ARRAY_BYTES = 4 * 2**20
LARGE_PIXELS = 16_000_000
"""Of pictures larger than this one is pasted and encoded at a time."""


def return_large_arrays() -> None:
    """Have this process give arrays back to the system when they are freed.

    glibc keeps what it has seen freed below 32 MB for later: with twenty pictures at once a fifth
    of the peak.

    Source: mallopt(3), M_MMAP_THRESHOLD; setting it ends its adjustment.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_ARRAY_BYTES)


class PixelRoom:
    """Of one router, used from its event loop."""

    def __init__(self, max_bytes: int = KEPT_BYTES):
        self._left_bytes = max_bytes

    @contextmanager
    def keeping(self, image: DecodedImage) -> Iterator[DecodedImage]:
        """The picture, or where there is no room for it what is left without its pixels."""
        num_bytes = image.pixels.nbytes + (0 if image.alpha is None else image.alpha.nbytes)
        if num_bytes > self._left_bytes:
            image = drop_pixels(image)
            num_bytes = 0
        self._left_bytes -= num_bytes
        try:
            yield image
        finally:
            self._left_bytes += num_bytes


def drop_pixels(image: DecodedImage) -> DecodedImage:
    """Size, depth, profile and digest; its pixels take no memory and say nothing."""

    def empty(array: Any) -> Any:
        return np.broadcast_to(array.dtype.type(0), array.shape)

    alpha = None if image.alpha is None else empty(image.alpha)
    return replace(image, pixels=empty(image.pixels), alpha=alpha)


def restore_pixels(image: DecodedImage, file: Encoded) -> DecodedImage:
    """The picture as it was before its pixels were dropped, from the same file."""
    data = read_encoded(file)
    side_px = max(image.width, image.height)
    size = image.width * image.height
    return decode_image(data, ImageLimits(len(data), size, side_px, min_side_px=1))
