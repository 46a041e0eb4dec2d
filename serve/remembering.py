"""What one router remembers of pictures, by tenant and content: it does not do that work again."""

from collections.abc import Collection
from dataclasses import dataclass

from deployments.cache import ContentCache
from serve.messages import SegmentReply, UInt8Array
from serve.observing.meter import NO_METER, Meter
from serve.schemas.receipt import InputDigest

DIGEST_BYTES = 1024
"""An `InputDigest` as Python keeps it, with what names and orders an entry."""


@dataclass(frozen=True, slots=True)
class ProductCopy:
    """A product as experts are given it, and which file it was."""

    digest: InputDigest
    rgba: UInt8Array
    """(h, w, 4) sRGB: the bundle's canvas, or its longer side at most the bundle's max_side_px.
    Read-only: requests share it."""

    @property
    def nbytes(self) -> int:
        return self.rgba.nbytes + DIGEST_BYTES


class PictureMemory:
    """Of one router, from any thread. Keeps nothing until it is given room."""

    def __init__(self, *, products_bytes: int = 0, regions_bytes: int = 0, meter: Meter = NO_METER):
        self.products: ContentCache[ProductCopy] = ContentCache("products", products_bytes, meter)
        self.regions: ContentCache[SegmentReply] = ContentCache("regions", regions_bytes, meter)

    def forget(self, content_hashes: Collection[str]) -> int:
        """Drop what is remembered of these contents; says how many entries."""
        return self.products.forget(content_hashes) + self.regions.forget(content_hashes)
