"""Pictures on their way to a third party and back."""

import base64
import io

import cv2
import numpy as np
from PIL import Image

from serve.errors import UpstreamFailed
from serve.messages import UInt8Array

MAX_ANSWER_PIXELS = 40_000_000
MAX_SQUEEZE = 0.03
"""Largest relative change of aspect that rounding to whole pixels explains."""


def encode_png(image: UInt8Array) -> bytes:
    """(H, W, 3) or (H, W, 4) as PNG."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file.getvalue()


def to_data_uri(image: UInt8Array) -> str:
    return f"data:image/png;base64,{base64.b64encode(encode_png(image)).decode()}"


def flatten(product_hwc: UInt8Array) -> UInt8Array:
    """(h, w, 4) with straight alpha on white, (h, w, 3)."""
    alpha = product_hwc[:, :, 3:].astype(np.float32) / 255
    return np.rint(product_hwc[:, :, :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def decode_answer(data: bytes, name: str) -> UInt8Array:
    """What an API sent back, (H, W, 3).

    Raises:
        UpstreamFailed: not a picture, or one of absurd size; known before it is decoded.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_ANSWER_PIXELS:
                raise UpstreamFailed(f"{name} answered {image.width}x{image.height} pixels")
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as exc:
        raise UpstreamFailed(f"{name} answered no picture: {exc}") from exc


def decode_base64(text: str, name: str) -> bytes:
    """Bytes of base64 text, with or without a data URI's head.

    Raises:
        UpstreamFailed: it is neither.
    """
    try:
        return base64.b64decode(text.partition("base64,")[2] or text, validate=True)
    except ValueError as exc:
        raise UpstreamFailed(f"{name} answered no base64: {exc}") from exc


def fit_answer(image: UInt8Array, width_px: int, height_px: int, name: str) -> UInt8Array:
    """The answer at the crop's size.

    Raises:
        UpstreamFailed: it has another aspect: the scene was reframed and would not fit.
    """
    got_h_px, got_w_px = image.shape[:2]
    squeeze = (got_w_px / got_h_px) / (width_px / height_px)
    if abs(squeeze - 1) > MAX_SQUEEZE:
        raise UpstreamFailed(
            f"{name} reframed the picture: {got_w_px}x{got_h_px} for {width_px}x{height_px}"
        )
    return resize(image, width_px, height_px)


def resize(image: UInt8Array, width_px: int, height_px: int) -> UInt8Array:
    if image.shape[:2] == (height_px, width_px):
        return image
    shrinks = image.shape[0] > height_px
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LANCZOS4
    return np.asarray(cv2.resize(image, (width_px, height_px), interpolation=how), np.uint8)
