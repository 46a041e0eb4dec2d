"""A delivered file keeps depth, alpha, profile and EXIF, as other software reads it."""

import io
import struct
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from serve.errors import InvalidRequest
from serve.imaging.decode import decode_image
from serve.imaging.encode import LOSSLESS, MEDIA_TYPES, encode_image
from serve.imaging.limits import ImageLimits
from serve.schemas.receipt import Format
from tests.image_files import build_exif, build_profile, make_rgb, save

P3 = build_profile()
EXIF = build_exif(1)


@pytest.mark.parametrize("format", LOSSLESS)
@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("with_alpha", [False, True])
def test_lossless_round_trip(format: Format, depth: int, with_alpha: bool) -> None:
    pixels = make_rgb(depth=depth)
    alpha = make_rgb(seed=3, depth=depth)[..., 1].copy() if with_alpha else None
    if alpha is not None:
        alpha[:20] = 0  # colours under clear pixels count too
    data = encode_image(pixels, alpha, format=format, icc_profile=P3, bit_depth=depth, exif=EXIF)
    image = decode_image(data, ImageLimits())
    assert image.icc_profile == P3
    if depth == 16 and format == "webp":
        assert image.bit_depth == 8
        return
    assert image.bit_depth == depth
    assert np.array_equal(image.pixels, pixels)
    if alpha is None:
        assert image.alpha is None
    else:
        assert np.array_equal(image.alpha, alpha)


@pytest.mark.parametrize("format", ["png", "webp", "jpeg"])
def test_pillow_reads_profile_and_exif_back(format: Format) -> None:
    data = encode_image(make_rgb(), None, format=format, icc_profile=P3, exif=EXIF)
    image = Image.open(io.BytesIO(data))
    image.load()
    assert image.info["icc_profile"] == P3
    assert image.getexif()[0x010F] == "sm4ll"
    assert Image.MIME[str(image.format)] == MEDIA_TYPES[format]


def test_16_bit_png_with_profile_is_read_by_pillow() -> None:
    pixels = make_rgb(depth=16)
    data = encode_image(pixels, None, format="png", icc_profile=P3, bit_depth=16)
    image = Image.open(io.BytesIO(data))
    assert image.info["icc_profile"] == P3
    assert np.abs(np.asarray(image.convert("RGB")).astype(int) - (pixels >> 8)).max() <= 1


def test_tiff_is_read_by_tifffile_with_its_profile() -> None:
    pixels = make_rgb(depth=16)
    data = encode_image(pixels, None, format="tiff", icc_profile=P3, bit_depth=16)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        assert file.pages.first.tags[34675].value == P3
        assert np.array_equal(file.asarray(), pixels)


def test_jpeg_keeps_full_chroma() -> None:
    data = encode_image(make_rgb(), None, format="jpeg")
    at = data.index(b"\xff\xc0")
    factors = [data[at + 11 + 3 * component] for component in range(3)]
    assert factors == [0x11, 0x11, 0x11]


def test_jpeg_is_what_pillow_writes_byte_for_byte() -> None:
    pixels, profile = make_rgb(), P3 + bytes(150_000)  # of three segments
    options: dict[str, Any] = {"exif": b"Exif\0\0" + EXIF, "icc_profile": profile}
    theirs = save(pixels, "JPEG", quality=95, subsampling=0, **options)
    before = pixels.copy()
    assert encode_image(pixels, None, format="jpeg", icc_profile=profile, exif=EXIF) == theirs
    assert np.array_equal(pixels, before)
    kept = {"icc_profile": profile, "exif": EXIF, "may_overwrite": True}
    assert encode_image(pixels, None, format="jpeg", **kept) == theirs


def test_jpeg_lies_on_white() -> None:
    clear = np.zeros((32, 32), np.uint8)
    data = encode_image(make_rgb(32, 32), clear, format="jpeg")
    assert np.asarray(Image.open(io.BytesIO(data))).min() >= 254


def test_quality_changes_the_size() -> None:
    small = encode_image(make_rgb(), None, format="jpeg", quality=50)
    assert len(small) < len(encode_image(make_rgb(), None, format="jpeg"))


def test_same_pixels_give_the_same_bytes() -> None:
    for format in MEDIA_TYPES:
        if format != "heic":
            chosen: Any = format
            first, second = (encode_image(make_rgb(), None, format=chosen) for _ in range(2))
            assert first == second


def test_a_side_webp_cannot_hold_is_refused_by_name() -> None:
    wide = np.zeros((4, 16_384, 3), np.uint8)
    with pytest.raises(InvalidRequest, match="16383"):
        encode_image(wide, None, format="webp")


def test_exif_too_large_for_jpeg_is_left_out() -> None:
    data = encode_image(make_rgb(), None, format="jpeg", exif=EXIF + bytes(70_000))
    assert b"Exif" not in data


def test_png_chunks_are_in_order() -> None:
    data = encode_image(make_rgb(), None, format="png", icc_profile=P3, exif=EXIF)
    kinds, at = [], 8
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        kinds.append(kind)
        at += 12 + length
    assert kinds[:3] == [b"IHDR", b"iCCP", b"eXIf"]
    assert kinds[-1] == b"IEND"
