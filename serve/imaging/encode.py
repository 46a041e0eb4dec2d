"""Pixels as a file that keeps depth, alpha, ICC profile and EXIF.

Speed and size were measured with tests/bench/codecs.py; lossless formats are lossless here.
"""

import struct
import zlib
from io import BytesIO
from typing import Any

import cv2
import numpy as np
import tifffile
from PIL import Image

from serve.errors import InvalidRequest
from serve.imaging.colour import reduce_depth
from serve.imaging.copies import note_copy
from serve.imaging.decode import Pixels
from serve.imaging.exif import MAX_EXIF_BYTES
from serve.schemas.receipt import Format

MEDIA_TYPES: dict[str, str] = {
    "png": "image/png",
    "webp": "image/webp",
    "jpeg": "image/jpeg",
    "tiff": "image/tiff",
    "heic": "image/heic",
}
LOSSLESS: tuple[Format, ...] = ("png", "webp", "tiff")
DEFAULT_JPEG_QUALITY = 95
MAX_SIDE_PX = {"webp": 16_383, "jpeg": 65_500}
# 12 MP photo, 2 cores: 0.28 s and 15.0 MB; Pillow's default 6.5 s and 15.3 MB.
_PNG_OPTIONS = (
    *(cv2.IMWRITE_PNG_COMPRESSION, 1),
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP),
)
_PNG_IHDR_END = 33
_EXIF_PREFIX = b"Exif\x00\x00"


def encode_image(
    pixels: Pixels,
    alpha: Pixels | None,
    *,
    format: Format,
    icc_profile: bytes | None = None,
    bit_depth: int = 8,
    exif: bytes | None = None,
    quality: int = DEFAULT_JPEG_QUALITY,
    may_overwrite: bool = False,
) -> bytes:
    """Write one picture.

    Args:
        pixels: (H, W, 3) uint8 or uint16.
        alpha: (H, W) of the same depth; laid on white for JPEG, which has none.
        bit_depth: 16 keeps 16 bit for PNG and TIFF; WebP and JPEG have 8.
        exif: without the "Exif" prefix; TIFF output carries none.
        quality: of JPEG only; chroma is never subsampled.
        may_overwrite: the pixels are not needed any more, so that they can change their order
            where they are.

    Raises:
        InvalidRequest: the format cannot hold a picture this large.
    """
    longest_px = max(pixels.shape[:2])
    if longest_px > MAX_SIDE_PX.get(format, longest_px):
        raise InvalidRequest(
            f"{format} holds at most {MAX_SIDE_PX[format]} pixels a side, this has {longest_px}",
            remedy="ask for png or tiff",
        )
    if pixels.dtype != np.uint8 and (bit_depth == 8 or format in ("webp", "jpeg")):
        pixels, alpha = reduce_depth(pixels), None if alpha is None else reduce_depth(alpha)
        note_copy("convert", pixels)
    if format == "png":
        return _encode_png(pixels, alpha, icc_profile, exif, may_overwrite)
    if format == "tiff":
        return _encode_tiff(pixels, alpha, icc_profile)
    options: dict[str, Any] = {"icc_profile": icc_profile}
    if exif is not None and len(exif) <= MAX_EXIF_BYTES:
        options["exif"] = _EXIF_PREFIX + exif
    if format == "webp":
        image = Image.fromarray(_join(pixels, alpha))
        note_copy("encode", pixels)
        return _save(image, "WEBP", lossless=True, method=0, quality=20, exact=True, **options)
    image = Image.fromarray(_flatten_on_white(pixels, alpha))
    note_copy("encode", pixels)
    return _save(image, "JPEG", quality=max(quality, 1), subsampling=0, **options)


def _encode_png(
    pixels: Pixels,
    alpha: Pixels | None,
    icc_profile: bytes | None,
    exif: bytes | None,
    may_overwrite: bool,
) -> bytes:
    bgr: Any
    if alpha is not None:
        bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGRA)
        cv2.insertChannel(alpha, bgr, 3)
        note_copy("encode", bgr)
    elif may_overwrite:
        bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR, dst=pixels)
    else:
        bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
        note_copy("encode", bgr)
    _, encoded = cv2.imencode(".png", bgr, _PNG_OPTIONS)
    extra = b""
    if icc_profile is not None:
        extra += _png_chunk(b"iCCP", b"ICC\x00\x00" + zlib.compress(icc_profile))
    if exif is not None:
        extra += _png_chunk(b"eXIf", exif)
    data = encoded.data
    return b"".join((data[:_PNG_IHDR_END], extra, data[_PNG_IHDR_END:]))


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def _encode_tiff(pixels: Pixels, alpha: Pixels | None, icc_profile: bytes | None) -> bytes:
    buffer = BytesIO()
    tifffile.imwrite(
        buffer,
        _join(pixels, alpha),
        photometric="rgb",
        extrasamples=None if alpha is None else ("unassalpha",),
        compression="zlib",
        compressionargs={"level": 1},
        predictor=True,
        iccprofile=icc_profile,
        metadata=None,
        software=False,
    )
    return buffer.getvalue()


def _save(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _join(pixels: Pixels, alpha: Pixels | None) -> Any:
    if alpha is None:
        return pixels
    joined = np.dstack([pixels, alpha])
    note_copy("convert", joined)
    return joined


def _flatten_on_white(pixels: Any, alpha: Any) -> Any:
    if alpha is None:
        return pixels
    image = Image.fromarray(pixels)
    white = Image.new("RGB", image.size, "white")
    return np.asarray(Image.composite(image, white, Image.fromarray(alpha)))
