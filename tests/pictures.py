"""Pictures the tests draw themselves."""

import struct
import zlib
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def photo(width_px: int = 320, height_px: int = 480, seed: int = 0) -> NDArray[np.uint8]:
    """(H, W, 3): a smooth scene with grain, no person in it."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (6, 4, 3)).astype(np.uint8))
    smooth = np.asarray(small.resize((width_px, height_px), Image.Resampling.BICUBIC), np.int16)
    grain = rng.integers(-4, 5, (height_px, width_px, 1))
    return np.clip(smooth + grain, 0, 255).astype(np.uint8)


def encoded(pixels: NDArray[np.uint8], image_format: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, image_format, **options)
    return buffer.getvalue()


def box_mask(width_px: int = 320, height_px: int = 480) -> NDArray[np.uint8]:
    mask = np.zeros((height_px, width_px), np.uint8)
    mask[height_px // 3 : height_px // 2, width_px // 4 : width_px * 3 // 4] = 255
    return mask


def png_header(width_px: int, height_px: int) -> bytes:
    """A PNG that promises many pixels and carries none."""
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", width_px, height_px, 8, 2, 0, 0, 0)
    idat = b"IDAT" + zlib.compress(b"\0")
    chunks = [
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in (ihdr, idat, b"IEND")
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def animated_gif() -> bytes:
    frames = [Image.fromarray(photo(64, 64, seed)) for seed in range(3)]
    buffer = BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()
