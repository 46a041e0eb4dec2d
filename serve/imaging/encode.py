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
_STRIP_ROWS = 128
_PIECE_BYTES = 2**20
_JPEG_JFIF_END = 20
_EXIF_PREFIX, _ICC_PREFIX = b"Exif\x00\x00", b"ICC_PROFILE\x00"
_ICC_PART_BYTES = 65_519  # what fits one APP2 segment behind its prefix and number


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
    exif = None if exif is None or len(exif) > MAX_EXIF_BYTES else _EXIF_PREFIX + exif
    if format == "webp":
        return _encode_webp(pixels, alpha, icc_profile, exif)
    if alpha is not None:
        pixels, may_overwrite = _flatten_on_white(pixels, alpha), False
    return _encode_jpeg(pixels, quality, icc_profile, exif, may_overwrite)


def _encode_jpeg(
    pixels: Pixels,
    quality: int,
    icc_profile: bytes | None,
    exif: bytes | None,
    may_overwrite: bool,
) -> bytes:
    """Byte for byte what Pillow writes, without its two copies of the picture."""
    options = (
        *(cv2.IMWRITE_JPEG_QUALITY, max(quality, 1)),
        *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
    )
    _, encoded = cv2.imencode(".jpg", _to_bgr(pixels, may_overwrite), options)
    extra = b"" if exif is None else _jpeg_segment(0xE1, exif)
    if icc_profile is not None:
        starts = range(0, len(icc_profile), _ICC_PART_BYTES)
        for number, start in enumerate(starts, 1):
            place = _ICC_PREFIX + bytes((number, len(starts)))
            part = icc_profile[start : start + _ICC_PART_BYTES]
            extra += _jpeg_segment(0xE2, place + part)
    return _insert(encoded.data, _JPEG_JFIF_END, extra)


def _jpeg_segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, 2 + len(content)) + content


def _encode_webp(
    pixels: Pixels, alpha: Pixels | None, icc_profile: bytes | None, exif: bytes | None
) -> bytes:
    image = Image.fromarray(_join(pixels, alpha))
    note_copy("encode", pixels)
    options: dict[str, Any] = {} if exif is None else {"exif": exif}
    buffer = BytesIO()
    image.save(
        buffer,
        "WEBP",
        lossless=True,
        method=0,
        quality=20,
        exact=True,
        icc_profile=icc_profile,
        **options,
    )
    return buffer.getvalue()


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
    else:
        bgr = _to_bgr(pixels, may_overwrite)
    _, encoded = cv2.imencode(".png", bgr, _PNG_OPTIONS)
    extra = b""
    if icc_profile is not None:
        extra += _png_chunk(b"iCCP", b"ICC\x00\x00" + zlib.compress(icc_profile))
    if exif is not None:
        extra += _png_chunk(b"eXIf", exif)
    return _insert(encoded.data, _PNG_IHDR_END, extra)


def _insert(encoded: memoryview, at: int, extra: bytes) -> bytes:
    """In pieces: one copy of 40 MB would hold up every other thread for as long as it takes."""
    buffer = BytesIO()
    buffer.write(encoded[:at])
    buffer.write(extra)
    for start in range(at, len(encoded), _PIECE_BYTES):
        buffer.write(encoded[start : start + _PIECE_BYTES])
    return buffer.getvalue()


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


def _to_bgr(pixels: Any, may_overwrite: bool) -> Any:
    if may_overwrite:
        for start in range(0, len(pixels), _STRIP_ROWS):  # OpenCV copies what it turns in place
            rows = pixels[start : start + _STRIP_ROWS]
            cv2.cvtColor(rows, cv2.COLOR_RGB2BGR, dst=rows)
        return pixels
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    note_copy("encode", bgr)
    return bgr


def _join(pixels: Pixels, alpha: Pixels | None) -> Any:
    if alpha is None:
        return pixels
    joined = np.dstack([pixels, alpha])
    note_copy("convert", joined)
    return joined


def _flatten_on_white(pixels: Any, alpha: Any) -> Any:
    image = Image.fromarray(pixels)
    white = Image.new("RGB", image.size, "white")
    note_copy("convert", pixels)
    return np.asarray(Image.composite(image, white, Image.fromarray(alpha)))
