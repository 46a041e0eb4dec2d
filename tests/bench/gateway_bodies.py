"""Pictures of a given size, the request that carries them, and what their codecs take at least."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import httpx2
import numpy as np

from serve.imaging.decode import decode_image
from serve.imaging.encode import encode_image
from serve.imaging.limits import ImageLimits

BODY_BYTES = {"110 KB": 110_000, "1 MB": 1_000_000, "5 MB": 5_000_000, "20 MB": 20_000_000}


@dataclass(frozen=True)
class Bodies:
    """One size: the pictures and the multipart body that carries them."""

    person: bytes
    product: bytes
    mask: bytes


def photograph(num_bytes: int, seed: int) -> tuple[bytes, int, int]:
    """A JPEG of about num_bytes with the statistics of a photo: smooth shapes, edges, grain."""
    rng = np.random.default_rng(seed)
    data, width_px = b"", int((num_bytes / 0.32) ** 0.5)
    for _ in range(6):
        height_px = width_px * 4 // 3
        coarse = rng.integers(0, 255, (12, 9, 3)).astype(np.uint8)
        smooth = cv2.resize(coarse, (width_px, height_px), interpolation=cv2.INTER_CUBIC)
        grain = rng.normal(0, 6, (height_px, width_px, 1))
        pixels = np.clip(smooth + grain, 0, 255).astype(np.uint8)
        data = encode_image(pixels, None, format="jpeg", quality=90)
        if abs(len(data) / num_bytes - 1) < 0.05:
            break
        width_px = int(width_px * (num_bytes / len(data)) ** 0.5)
    return data, width_px, width_px * 4 // 3


def make_bodies(num_bytes: int) -> Bodies:
    person, width_px, height_px = photograph(num_bytes * 9 // 10, seed=1)
    product, _, _ = photograph(num_bytes // 10, seed=2)
    mask = np.zeros((height_px, width_px), np.uint8)
    mask[height_px // 3 : height_px * 2 // 3, width_px // 3 : width_px * 2 // 3] = 255
    _, encoded = cv2.imencode(".png", mask, [cv2.IMWRITE_PNG_BILEVEL, 1])
    return Bodies(person, product, encoded.tobytes())


def write_request(
    file: Path, path: str, bodies: Bodies, fields: Mapping[str, str], headers: Mapping[str, str]
) -> None:
    """The whole HTTP request as bytes: the same multipart body for an echo and a try-on."""
    request = httpx2.Request(
        "POST",
        f"http://127.0.0.1{path}",
        data=dict(fields),
        files={"person": bodies.person, "product": bodies.product, "mask": bodies.mask},
        headers=dict(headers),
    )
    body = request.read()
    head = [f"POST {path} HTTP/1.1", *(f"{k}: {v}" for k, v in request.headers.items())]
    file.write_bytes("\r\n".join(head).encode() + b"\r\n\r\n" + body)


def time_ms(function: Callable[[], object]) -> float:
    """Median of five calls."""
    samples = []
    for _ in range(5):
        started_s = time.perf_counter()
        function()
        samples.append((time.perf_counter() - started_s) * 1e3)
    return sorted(samples)[2]


def codec_floor_ms(bodies: Bodies) -> float:
    """Decoding both inputs and encoding the answer once, on one core."""
    cv2.setNumThreads(1)
    limits = ImageLimits()
    person = decode_image(bodies.person, limits)
    decode_ms = time_ms(lambda: decode_image(bodies.person, limits))
    decode_ms += time_ms(lambda: decode_image(bodies.product, limits))
    return decode_ms + time_ms(lambda: encode_image(person.pixels, None, format="jpeg"))
