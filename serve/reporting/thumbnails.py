"""Pictures small enough to stand inside a page."""

import base64
import io
from collections.abc import Mapping

from PIL import Image

from serve.errors import Sm4llError
from serve.imaging.colour import to_srgb
from serve.imaging.decode import decode_image
from serve.imaging.limits import ImageLimits

MAX_SIDE_PX = 512
Thumbnails = Mapping[str, str]
"""Data URIs by the id of the asset."""


def make_thumbnail(data: bytes, limits: ImageLimits) -> str | None:
    """A data URI; None of what is no picture."""
    try:
        pixels_hwc = to_srgb(decode_image(data, limits), max_side_px=MAX_SIDE_PX)
    except Sm4llError:
        return None
    buffer = io.BytesIO()
    Image.fromarray(pixels_hwc).save(buffer, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
