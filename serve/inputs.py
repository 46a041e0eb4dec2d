"""What a request brings, decoded: once for whoever was sent the same picture a moment ago."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from deployments.bundle import Product
from deployments.cache import ContentCache, Made
from serve.imaging.canvas import build_canvas, trim_clear_border
from serve.imaging.colour import to_srgb, to_srgb_rgba
from serve.imaging.copies import CopyCounter
from serve.imaging.decode import DecodedImage, decode_image
from serve.imaging.limits import ImageLimits
from serve.imaging.mask import decode_mask
from serve.imaging.spool import Encoded, read_encoded
from serve.messages import SegmentReply, UInt8Array
from serve.remembering import ProductCopy
from serve.schemas.receipt import InputDigest
from serve.schemas.tryon import MaskConvention
from serve.tenancy.memory import remembered_as

SEGMENT_SIDE_PX = 1024


@dataclass(frozen=True, slots=True)
class Inputs:
    """Both pictures decoded, with the copies the replicas get."""

    person: DecodedImage
    product: ProductCopy
    person_copy_hwc: UInt8Array | None
    """(H, W, 3) sRGB, longer side at most SEGMENT_SIDE_PX; None when nobody has to find a region
    in it."""
    mask_hw: UInt8Array | None
    """The caller's own, at the person's size."""
    mask_sha256: str | None = None
    """Hex digest of the caller's mask file."""
    copies: CopyCounter = field(default_factory=CopyCounter)
    """Of the person's picture, as they are made."""
    known: SegmentReply | None = None
    """Of the person, where this router remembers it."""
    is_product_known: bool = False


def recall_nothing(sha256: str) -> SegmentReply | None:
    """Where nobody remembers pictures."""
    return None


def decode_person(
    file: Encoded,
    limits: ImageLimits,
    has_mask: bool,
    recall: Callable[[str], SegmentReply | None] = recall_nothing,
) -> tuple[DecodedImage, UInt8Array | None, SegmentReply | None]:
    """The person, with the copy for the segmenter or what is known of the file with that digest;
    neither where the caller brought a mask."""
    image = decode_image(read_encoded(file), limits)
    if has_mask:
        return image, None, None
    if (known := recall(image.sha256)) is not None:
        return image, None, known
    return image, to_srgb(image, max_side_px=SEGMENT_SIDE_PX), None


def decode_product(
    data: bytes, limits: ImageLimits, product: Product
) -> tuple[DecodedImage, UInt8Array]:
    """The product, and what of it the expert is given, (h, w, 4)."""
    image = decode_image(data, limits)
    canvas = product.canvas
    if canvas is None:
        return image, to_srgb_rgba(image, product.max_side_px)
    # Twice what is needed: a photo of 60 megapixels is not converted whole to be shown in one.
    product_rgba = to_srgb_rgba(trim_clear_border(image), 2 * max(canvas.size))
    return image, build_canvas(product_rgba, canvas.size, canvas.background, canvas.margin)


def prepare_product(
    file: Encoded,
    limits: ImageLimits,
    product: Product,
    tenant_id: str,
    cache: ContentCache[ProductCopy],
) -> Made[ProductCopy]:
    """The product as the expert is given it, maybe from an earlier request."""
    data = read_encoded(file)

    def make() -> ProductCopy:
        image, product_rgba = decode_product(data, limits, product)
        product_rgba.flags.writeable = False
        return ProductCopy(digest_of(image), product_rgba)

    sha256 = hashlib.sha256(data).hexdigest()
    return cache.make(remembered_as(tenant_id, sha256), product.model_dump_json(), make)


def digest_of(image: DecodedImage) -> InputDigest:
    """Which file it was and what it held."""
    return InputDigest(
        sha256=image.sha256, width=image.width, height=image.height, format=image.format
    )


def decode_caller_mask(
    file: Encoded | None, convention: MaskConvention, limits: ImageLimits
) -> tuple[UInt8Array | None, str | None]:
    """The caller's own mask and the hex digest of its file, if there is one.

    Raises:
        MaskRejected: empty, full, or a photograph.
    """
    if file is None:
        return None, None
    data = read_encoded(file)
    return decode_mask(data, convention, limits), hashlib.sha256(data).hexdigest()
