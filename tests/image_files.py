"""Synthetic pictures, files, profiles and EXIF blocks for the imaging tests."""

import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

P3_PRIMARIES = ((0.5151, 0.2412, -0.0011), (0.2919, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))
D50 = (0.9642, 1.0, 0.8249)


def make_rgb(width_px: int = 96, height_px: int = 64, seed: int = 0, depth: int = 8) -> Any:
    """(H, W, 3) smooth colours with texture."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(40, 215, (4, 5, 3)).astype(np.float32)
    smooth = cv2.resize(coarse, (width_px, height_px), interpolation=cv2.INTER_CUBIC)
    values = np.clip(smooth + rng.normal(0, 3, smooth.shape), 0, 255)
    if depth == 16:
        return np.rint(values * 257).astype(np.uint16)
    return values.astype(np.uint8)


def make_region(width_px: int, height_px: int, box: tuple[int, int, int, int]) -> Any:
    """(H, W) with 255 on an ellipse inscribed in `box`."""
    region = np.zeros((height_px, width_px), np.uint8)
    x0, y0, x1, y1 = box
    centre, axes = ((x0 + x1) // 2, (y0 + y1) // 2), ((x1 - x0) // 2, (y1 - y0) // 2)
    return cv2.ellipse(region, centre, axes, 0, 0, 360, 255, -1)


def save(pixels: NDArray[Any] | Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, format, **options)
    return buffer.getvalue()


def encode_png16(pixels: NDArray[np.uint16]) -> bytes:
    """16-bit PNG of (H, W), (H, W, 3) or (H, W, 4)."""
    swapped = pixels if pixels.ndim == 2 else pixels[..., [2, 1, 0, *range(3, pixels.shape[2])]]
    return cv2.imencode(".png", np.ascontiguousarray(swapped))[1].tobytes()


def add_png_chunk(png: bytes, kind: bytes, content: bytes) -> bytes:
    """The file with one more chunk behind its header."""
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return png[:33] + struct.pack(">I", len(content)) + kind + content + checksum + png[33:]


def build_profile(
    primaries: tuple[tuple[float, float, float], ...] = P3_PRIMARIES, gamma: float = 2.2
) -> bytes:
    """A minimal ICC v2 matrix profile: three primaries under D50 and one gamma."""
    tags = {}
    for letter, primary in zip((b"r", b"g", b"b"), primaries, strict=True):
        tags |= {letter + b"XYZ": _xyz(*primary), letter + b"TRC": _curve(gamma)}
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags)


def build_grey_profile(gamma: float) -> bytes:
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": _curve(gamma)})


def build_cmyk_profile() -> bytes:
    """A press whose inks are all grey: any ink lowers L, colour stays neutral."""
    identity = bytes(range(256))
    grid = b"".join(bytes((255 - 60 * index.bit_count(), 128, 128)) for index in range(16))
    lut = struct.pack(">4sIBBBB", b"mft1", 0, 4, 3, 2, 0)
    lut += struct.pack(">9i", *(65536 if i in (0, 4, 8) else 0 for i in range(9)))
    lut += identity * 4 + grid + identity * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": lut, b"A2B1": lut})


def _profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    name = b"desc\x00\x00\x00\x00" + struct.pack(">I", 5) + b"none\x00" + bytes(78)
    common = {b"wtpt": _xyz(*D50), b"desc": name, b"cprt": b"text\x00\x00\x00\x00none\x00"}
    tags = common | tags
    table, body, offset = b"", b"", 128 + 4 + 12 * len(tags)
    for tag, content in tags.items():
        table += struct.pack(">4sII", tag, offset + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    size = offset + len(body)
    header = struct.pack(">I4sI4s4s4s", size, b"none", 0x02400000, kind, space, connection)
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    header += struct.pack(">3i", *(round(v * 65536) for v in D50))
    return header.ljust(128, b"\x00") + struct.pack(">I", len(tags)) + table + body


def _xyz(*values: float) -> bytes:
    return b"XYZ \x00\x00\x00\x00" + struct.pack(">3i", *(round(v * 65536) for v in values))


def _curve(gamma: float) -> bytes:
    return struct.pack(">4sIIH", b"curv", 0, 1, round(gamma * 256))


def build_exif(orientation: int, thumbnail: bytes = b"") -> bytes:
    """TIFF-style EXIF: orientation and maker in the first directory, a thumbnail in the second."""
    maker = b"sm4ll\x00"
    maker_at = 8 + 2 + 2 * 12 + 4
    second_at = maker_at + len(maker) if thumbnail else 0
    block = b"II*\x00" + struct.pack("<IH", 8, 2)
    block += struct.pack("<HHII", 0x010F, 2, len(maker), maker_at)
    block += struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    block += struct.pack("<I", second_at) + maker
    if thumbnail:
        at = second_at + 2 + 2 * 12 + 4
        block += struct.pack("<HHHII", 2, 0x0201, 4, 1, at)
        block += struct.pack("<HHIII", 0x0202, 4, 1, len(thumbnail), 0) + thumbnail
    return block
