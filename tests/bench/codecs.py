"""Which library decodes and encodes fastest, and at what file size: a table to choose by.

Run as `python -m tests.bench.codecs [PHOTO]`; without a photo a synthetic one is used, which
compresses a little worse than a real one.
"""

import io
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

SIZES = {
    "0.5 MP": (816, 612),
    "3 MP": (2000, 1500),
    "12 MP": (4000, 3000),
    "24 MP": (6000, 4000),
}
COPY_SIDE_PX = 1024
JPEG_444 = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111]
Pixels = NDArray[np.uint8]


def make_photo(width_px: int, height_px: int, path: Path | None) -> Pixels:
    """(H, W, 3) RGB with the statistics of a photograph: smooth areas, edges, sensor noise."""
    rng = np.random.default_rng(7)
    if path is not None:
        photo = np.asarray(Image.open(path).convert("RGB"))
    else:
        coarse = rng.integers(0, 255, (24, 18, 3)).astype(np.uint8)
        photo = cv2.resize(coarse, (720, 960), interpolation=cv2.INTER_CUBIC)
    photo = cv2.resize(photo, (width_px, height_px), interpolation=cv2.INTER_CUBIC)
    noise = rng.normal(0, 1.5, photo.shape)
    return np.clip(photo + noise, 0, 255).astype(np.uint8)


def save(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def encode_cv2(extension: str, rgb: Pixels, options: list[int]) -> bytes:
    ok, data = cv2.imencode(extension, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), options)
    assert ok
    return data.tobytes()


def encoders(rgb: Pixels) -> Iterator[tuple[str, Callable[[], bytes]]]:
    image = Image.fromarray(rgb)
    level = cv2.IMWRITE_PNG_COMPRESSION
    strategy, filters = cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_FILTER
    yield "png  Pillow level 1", lambda: save(image, "PNG", compress_level=1)
    yield "png  Pillow level 2", lambda: save(image, "PNG", compress_level=2)
    yield "png  Pillow level 3", lambda: save(image, "PNG", compress_level=3)
    yield "png  Pillow level 6 (default)", lambda: save(image, "PNG")
    yield "png  cv2 default", lambda: encode_cv2(".png", rgb, [])
    yield "png  cv2 level 1", lambda: encode_cv2(".png", rgb, [level, 1])
    yield (
        "png  cv2 level 1, paeth, filtered",
        lambda: encode_cv2(".png", rgb, [level, 1, strategy, 1, filters, 128]),
    )
    yield (
        "png  cv2 level 1, up, huffman",
        lambda: encode_cv2(".png", rgb, [level, 1, strategy, 2, filters, 32]),
    )
    yield (
        "png  cv2 level 1, paeth, rle",
        lambda: encode_cv2(".png", rgb, [level, 1, strategy, 3, filters, 128]),
    )
    yield (
        "png  cv2 level 1, up, rle (chosen)",
        lambda: encode_cv2(".png", rgb, [level, 1, strategy, 3, filters, 32]),
    )
    yield (
        "webp Pillow lossless method 0, quality 20",
        lambda: save(image, "WEBP", lossless=True, method=0, quality=20),
    )
    yield (
        "webp Pillow lossless method 1, quality 20",
        lambda: save(image, "WEBP", lossless=True, method=1, quality=20),
    )
    yield (
        "webp Pillow lossless method 4, quality 80",
        lambda: save(image, "WEBP", lossless=True, method=4, quality=80),
    )
    yield "webp cv2 lossless", lambda: encode_cv2(".webp", rgb, [cv2.IMWRITE_WEBP_QUALITY, 101])
    yield "jpeg Pillow 95 4:4:4", lambda: save(image, "JPEG", quality=95, subsampling=0)
    yield "jpeg cv2 95 4:4:4 (chosen)", lambda: encode_cv2(".jpg", rgb, JPEG_444)
    # Below 96 its quick DCT cannot be switched off: larger files and more error.
    yield "jpeg simplejpeg 95 4:4:4", lambda: simplejpeg.encode_jpeg(rgb, 95, "RGB", "444")


def decoders(rgb: Pixels) -> Iterator[tuple[str, Callable[[], Pixels]]]:
    image = Image.fromarray(rgb)
    files = {
        "jpeg": save(image, "JPEG", quality=92),
        "png": save(image, "PNG", compress_level=6),
        "webp": save(image, "WEBP", quality=90),
    }
    for name, data in files.items():
        yield f"{name:4} Pillow", lambda data=data: np.asarray(Image.open(io.BytesIO(data)))
        yield f"{name:4} cv2, then RGB", lambda data=data: decode_cv2(data)
        yield f"{name:4} cv2 as RGB", lambda data=data: decode_cv2_rgb(data)
    jpeg = files["jpeg"]
    yield "jpeg simplejpeg (chosen)", lambda: simplejpeg.decode_jpeg(jpeg, "RGB")
    yield (
        "jpeg copy: whole, area means (chosen)",
        lambda: shrink(simplejpeg.decode_jpeg(jpeg, "RGB")),
    )
    yield "jpeg copy: scaled DCT, area means", lambda: decode_copy(jpeg, rgb.shape)


def decode_cv2(data: bytes) -> Pixels:
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def decode_cv2_rgb(data: bytes) -> Pixels:
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags)


def shrink(rgb: Pixels) -> Pixels:
    """As `serve.imaging.colour.to_srgb` makes the segmenter's copy."""
    factor = min(1.0, COPY_SIDE_PX / max(rgb.shape))
    size = round(rgb.shape[1] * factor), round(rgb.shape[0] * factor)
    return cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)


def decode_copy(jpeg: bytes, shape: tuple[int, ...]) -> Pixels:
    """The same size by decoding at 1/2, 1/4 or 1/8 first."""
    factor = min(1.0, COPY_SIDE_PX / max(shape))
    least = {"min_height": round(shape[0] * factor), "min_width": round(shape[1] * factor)}
    size = least["min_width"], least["min_height"]
    scaled = simplejpeg.decode_jpeg(jpeg, "RGB", min_factor=1, **least)
    return cv2.resize(scaled, size, interpolation=cv2.INTER_AREA)


def compare_copies(rgb: Pixels) -> str:
    """How far a scaled decode is from the copy that training saw."""
    jpeg = save(Image.fromarray(rgb), "JPEG", quality=92)
    whole = shrink(simplejpeg.decode_jpeg(jpeg, "RGB"))
    difference = cv2.absdiff(whole, decode_copy(jpeg, rgb.shape))
    return f"mean {difference.mean():.2f}, max {difference.max()} levels"


def measure_ms(call: Callable[[], object], budget_s: float = 1.0) -> float:
    """Best of as many calls as fit the budget: the machine is shared, the minimum is the code."""
    best, spent = float("inf"), 0.0
    while spent < budget_s:
        start = time.perf_counter()
        call()
        spent += (taken := time.perf_counter() - start)
        best = min(best, taken)
    return best * 1000


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    print(f"{'size':8} {'what':42} {'ms':>8} {'MB':>7}")
    for size, (width_px, height_px) in SIZES.items():
        rgb = make_photo(width_px, height_px, path)
        for name, decode in decoders(rgb):
            print(f"{size:8} decode {name:35} {measure_ms(decode):8.1f}")
        print(f"{size:8} scaled copy against the chosen one: {compare_copies(rgb)}")
        for name, encode in encoders(rgb):
            taken_ms, megabytes = measure_ms(encode), len(encode()) / 1e6
            print(f"{size:8} encode {name:35.35} {taken_ms:8.1f} {megabytes:7.2f}")


if __name__ == "__main__":
    main()
