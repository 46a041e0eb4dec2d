"""A pair of answers as pictures of the crop, which differ only where the experts do."""

from collections.abc import Mapping

import numpy as np

from deployments.bundle import Bundle
from serve.imaging.blend import choose_feather_px
from serve.imaging.decode import DecodedImage
from serve.imaging.encode import encode_image
from serve.imaging.paste import paste_back
from serve.imaging.region import CropPlan
from serve.messages import ExpertReply, ExpertRequest, UInt8Array
from serve.schemas.receipt import Blend

MEDIA_TYPE = "image/webp"


def compose_crop(
    request: ExpertRequest, reply: ExpertReply, bundle: Bundle, blend: Blend
) -> UInt8Array:
    """The first picture of a reply, pasted as its version's answers are, at the expert's size.

    Returns:
        (H, W, 3) sRGB; the crop itself outside the region.
    """
    height_px, width_px = request.region_hw.shape
    pasted = paste_back(
        _as_image(request.crop_hwc),
        reply.images_nhwc[0],
        None if reply.alpha_nhw is None else reply.alpha_nhw[0],
        CropPlan((0, 0, width_px, height_px), width_px, height_px, width_px, height_px),
        request.region_hw,
        blend=blend,
        feather_px=choose_feather_px(request.region_hw, bundle.blend.feather),
        colour_match=bundle.blend.colour_match,
    )
    return np.asarray(pasted.pixels, np.uint8)


def encode_pictures(
    live_hwc: UInt8Array, shadow_hwc: UInt8Array, request: ExpertRequest
) -> Mapping[str, tuple[bytes, tuple[int, int]]]:
    """Files of a pair and of what both were asked, with their width and height, by name.

    Args:
        request: that of the live answer.
    """
    product = request.product_hwc
    pictures: dict[str, tuple[UInt8Array, UInt8Array | None]] = {
        "live": (live_hwc, None),
        "shadow": (shadow_hwc, None),
        "before": (request.crop_hwc, None),
        "product": (np.ascontiguousarray(product[:, :, :3]), product[:, :, 3]),
    }
    return {
        name: (encode_image(pixels, alpha, format="webp"), (pixels.shape[1], pixels.shape[0]))
        for name, (pixels, alpha) in pictures.items()
    }


def _as_image(pixels_hwc: UInt8Array) -> DecodedImage:
    return DecodedImage(
        pixels=pixels_hwc,
        alpha=None,
        bit_depth=8,
        icc_profile=None,
        format="png",
        sha256="",
        exif=None,
        source_mode="RGB",
    )
