"""Whatever the bytes are, decoding answers with a picture or with a RequestError."""

import tracemalloc

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from serve.errors import RequestError
from serve.imaging.decode import decode_image
from serve.imaging.limits import ImageLimits
from tests.image_files import build_exif, build_profile, encode_png16, make_rgb, save

RGB = make_rgb(48, 32)
EXIF = b"Exif\x00\x00" + build_exif(6, b"thumbnail" * 4)
FILES = (
    save(RGB, "PNG", icc_profile=build_profile(), exif=EXIF),
    encode_png16(make_rgb(48, 32, depth=16)),
    save(Image.fromarray(RGB).quantize(8), "PNG", transparency=b"\x00\x80"),
    save(RGB, "JPEG", icc_profile=build_profile(), exif=EXIF),
    save(RGB, "JPEG", progressive=True),
    save(RGB, "WEBP", icc_profile=build_profile(), exif=EXIF),
    save(RGB, "WEBP", lossless=True),
    save(RGB, "TIFF", compression="tiff_lzw", icc_profile=build_profile()),
    save(RGB, "TIFF", compression="jpeg"),
)
LIMITS = ImageLimits(max_pixels=1_000_000)
BOUND = settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)


def accept(data: bytes) -> bool:
    """True for a picture, False for a refusal; anything else raises through."""
    try:
        image = decode_image(data, LIMITS)
    except RequestError:
        return False
    assert image.width * image.height <= LIMITS.max_pixels
    assert image.pixels.shape == (image.height, image.width, 3)
    return True


@BOUND
@given(st.binary(max_size=200))
@example(b"\x89PNG\r\n\x1a\n")
@example(b"\xff\xd8\xff")
@example(b"\xff\xd8" + b"\xff" * 100)
@example(b"RIFF\xff\xff\xff\xffWEBP")
@example(b"RIFF\x04\x00\x00\x00WEBPVP8X")
@example(b"II*\x00\x08\x00\x00\x00")
@example(b"MM\x00*\xff\xff\xff\xff")
@example(b"\x00\x00\x00\x18ftypheic")
def test_any_bytes_are_refused(data: bytes) -> None:
    assert not accept(data)


@BOUND
@given(
    st.sampled_from(FILES),
    st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=4)), max_size=6),
    st.floats(0, 1),
)
def test_damaged_files_are_pictures_or_refusals(
    file: bytes, edits: list[tuple[float, bytes]], cut: float
) -> None:
    data = bytearray(file)
    for share, patch in edits:
        at = int(share**3 * len(data))  # headers get most of the damage
        data[at : at + len(patch)] = patch
    accept(bytes(data[: len(data) - int(cut**8 * len(data))]))


def test_every_undamaged_file_is_a_picture() -> None:
    assert all(accept(file) for file in FILES)


def test_a_refusal_needs_no_memory() -> None:
    bomb = bytearray(save(make_rgb(64, 64), "PNG"))
    bomb[16:24] = b"\x00\x00\x3e\x80" * 2
    tracemalloc.start()
    assert not accept(bytes(bomb))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1_000_000
