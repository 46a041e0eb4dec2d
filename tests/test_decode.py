"""Every supported kind of file becomes upright pixels; everything else a typed refusal."""

import hashlib
import io
import struct
import warnings
import zlib
from typing import Any

import cv2
import numpy as np
import pillow_heif
import pytest
import tifffile
from PIL import Image, ImageOps

from serve.errors import ImageTooLarge, InvalidImage
from serve.imaging.decode import DecodedImage, decode_image
from serve.imaging.limits import ImageLimits
from tests.image_files import (
    add_png_chunk,
    build_cmyk_profile,
    build_exif,
    build_grey_profile,
    build_profile,
    encode_png16,
    make_rgb,
    save,
)

LIMITS = ImageLimits()
RGB = make_rgb()


def decode(data: bytes, limits: ImageLimits = LIMITS) -> DecodedImage:
    return decode_image(data, limits)


def save_tiff(pixels: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, metadata=None, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
def test_lossless_file_gives_its_pixels(format: str, options: dict[str, Any]) -> None:
    data = save(RGB, format, **options)
    image = decode(data)
    assert np.array_equal(image.pixels, RGB)
    assert (image.width, image.height, image.bit_depth, image.alpha) == (96, 64, 8, None)
    assert (image.format, image.source_mode) == (format.lower(), "RGB")
    assert image.sha256 == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_equals_pillow_bit_for_bit(subsampling: int, progressive: bool) -> None:
    data = save(RGB, "JPEG", quality=88, subsampling=subsampling, progressive=progressive)
    assert np.array_equal(decode(data).pixels, np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": "4:1:1"},
        {"restart_marker_blocks": 4},
        {"keep_rgb": True},
        {"progressive": True, "restart_marker_rows": 1},
    ],
    ids=str,
)
def test_every_kind_of_jpeg_equals_opencv_bit_for_bit(options: dict[str, Any]) -> None:
    data = save(make_rgb(101, 67), "JPEG", quality=90, **options)
    theirs = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert np.array_equal(decode_image(data, ImageLimits()).pixels, theirs)


def test_a_jpeg_that_is_damaged_but_readable_is_read_as_opencv_reads_it() -> None:
    whole = save(make_rgb(640, 480), "JPEG", quality=90)
    data = whole[: len(whole) // 2] + b"\xff\xd9"
    theirs = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert np.array_equal(decode_image(data, ImageLimits()).pixels, theirs)


def test_pixels_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="read-only"):
        decode(save(RGB, "PNG")).pixels[0, 0] = 0


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_once(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"lossless": True} if format == "WEBP" else {}
    data = save(RGB, format, exif=exif, **options)
    # Pillow turns a TIFF while loading and the rest on request.
    with Image.open(io.BytesIO(data)) as reference:
        expected = np.asarray(ImageOps.exif_transpose(reference))
    image = decode(data)
    assert np.array_equal(image.pixels, expected)
    assert (image.width > image.height) == (orientation < 5)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_16_bit_tiff_is_turned_like_8_bit(orientation: int) -> None:
    deep = make_rgb(depth=16)
    data = save_tiff(deep, photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
    shallow = save_tiff(
        (deep >> 8).astype(np.uint8),
        photometric="rgb",
        extratags=[(274, 3, 1, orientation, True)],
    )
    assert np.array_equal(decode(data).pixels >> 8, decode(shallow).pixels)


def test_exif_is_kept_with_orientation_one() -> None:
    data = save(RGB, "JPEG", exif=b"Exif\x00\x00" + build_exif(6))
    image = decode(data)
    assert (image.width, image.height) == (64, 96)
    assert image.exif == build_exif(1)


def test_16_bit_png_keeps_16_bit() -> None:
    deep = make_rgb(depth=16)
    image = decode(encode_png16(deep))
    assert image.bit_depth == 16
    assert np.array_equal(image.pixels, deep)


def test_16_bit_png_keeps_alpha() -> None:
    deep = np.dstack([make_rgb(depth=16), make_rgb(depth=16)[..., 0]])
    image = decode(encode_png16(deep))
    assert np.array_equal(image.pixels, deep[..., :3])
    assert np.array_equal(image.alpha, deep[..., 3])


def test_16_bit_grey_png_becomes_rgb_of_16_bit() -> None:
    deep = make_rgb(depth=16)[..., 0]
    image = decode(encode_png16(deep))
    assert (image.bit_depth, image.source_mode) == (16, "L")
    assert all(np.array_equal(image.pixels[..., channel], deep) for channel in range(3))


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("num_channels", [1, 3, 4])
def test_16_bit_tiff_keeps_16_bit(compression: str | None, num_channels: int) -> None:
    deep = np.dstack([make_rgb(depth=16), make_rgb(depth=16, seed=1)])[..., :num_channels]
    options = {"extrasamples": ["unassalpha"]} if num_channels == 4 else {}
    pixels = deep[..., 0] if num_channels == 1 else deep
    photometric = "minisblack" if num_channels == 1 else "rgb"
    data = save_tiff(pixels, photometric=photometric, compression=compression, **options)
    image = decode(data)
    assert image.bit_depth == 16
    assert np.array_equal(image.pixels, deep[..., [0, 0, 0] if num_channels == 1 else [0, 1, 2]])
    assert num_channels < 4 or np.array_equal(image.alpha, deep[..., 3])


def test_premultiplied_16_bit_tiff_becomes_straight() -> None:
    half = np.full((32, 32, 4), 20000, np.uint16)
    half[..., 3] = 32768
    data = save_tiff(half, photometric="rgb", extrasamples=["assocalpha"])
    assert abs(int(decode(data).pixels[0, 0, 0]) - 40000) <= 1


def test_white_is_zero_tiff_is_not_a_negative() -> None:
    grey = make_rgb(depth=16)[..., 0]
    data = save_tiff(65535 - grey, photometric="miniswhite")
    assert np.array_equal(decode(data).pixels[..., 0], grey)


def test_palette_with_transparency_becomes_rgba() -> None:
    palette = Image.fromarray(RGB).quantize(16)
    data = save(palette, "PNG", transparency=bytes([0, 128]))
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))
    image = decode(data)
    assert image.source_mode == "P"
    assert np.array_equal(image.pixels, expected[..., :3])
    assert np.array_equal(image.alpha, expected[..., 3])
    assert set(np.unique(image.alpha)) == {0, 128, 255}


@pytest.mark.parametrize("options", [{}, {"transparency": (0, 255, 0)}])
def test_one_transparent_colour_becomes_alpha(options: dict[str, Any]) -> None:
    keyed = RGB.copy()
    keyed[:10] = (0, 255, 0)
    image = decode(save(keyed, "PNG", **options))
    assert np.array_equal(image.pixels, keyed)
    assert (image.alpha is None) == (not options)
    assert image.alpha is None or (image.alpha[:10].max(), image.alpha[10:].min()) == (0, 255)


def test_interlaced_png_is_read() -> None:
    grey = np.ascontiguousarray(RGB[..., 1])
    assert np.array_equal(decode(build_interlaced_png(grey)).pixels[..., 1], grey)


def build_interlaced_png(grey: Any) -> bytes:
    """Adam7: seven pictures of growing density, one behind the other."""
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)]
    content = b""
    for x, y, step_x, step_y in [*passes, (0, 1, 1, 2)]:
        content += b"".join(b"\x00" + row.tobytes() for row in grey[y::step_y, x::step_x])
    height, width = grey.shape
    start = b"\x89PNG\r\n\x1a\n" + bytes(25)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 1)
    body = b""
    for kind, part in ((b"IHDR", header), (b"IDAT", zlib.compress(content)), (b"IEND", b"")):
        body += add_png_chunk(start, kind, part)[33:]
    return start[:8] + body


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGBA", "P", "I;16"])
def test_every_png_mode_is_read(mode: str) -> None:
    image = decode(save(Image.fromarray(RGB).convert("L" if mode == "I;16" else mode), "PNG"))
    assert image.pixels.shape == (64, 96, 3)
    assert (image.alpha is None) == (mode not in ("LA", "RGBA"))


def test_rgb_profile_is_kept() -> None:
    profile = build_profile()
    for format in ("PNG", "JPEG", "WEBP", "TIFF"):
        assert decode(save(RGB, format, icc_profile=profile)).icc_profile == profile, format


def test_broken_profile_is_dropped_not_an_error() -> None:
    assert decode(save(RGB, "PNG", icc_profile=b"not a profile")).icc_profile is None


def test_grey_with_grey_profile_becomes_srgb() -> None:
    grey = np.full((32, 32), 128, np.uint8)
    dark = decode(save(grey, "PNG", icc_profile=build_grey_profile(3.0)))
    light = decode(save(grey, "PNG", icc_profile=build_grey_profile(1.0)))
    assert dark.icc_profile is None
    assert dark.pixels[0, 0, 0] < 128 < light.pixels[0, 0, 0]


def test_16_bit_grey_profile_agrees_with_8_bit() -> None:
    profile = build_grey_profile(1.5)
    grey = np.tile(np.arange(256, dtype=np.uint8), (16, 1))
    deep = add_png_chunk(
        encode_png16(grey.astype(np.uint16) * 257),
        b"iCCP",
        b"x\x00\x00" + zlib.compress(profile),
    )
    shallow = decode(save(grey, "PNG", icc_profile=profile)).pixels
    assert np.abs(decode(deep).pixels / 257 - shallow).max() <= 0.51


def test_cmyk_jpeg_becomes_srgb() -> None:
    inks = Image.new("CMYK", (32, 32), (0, 255, 255, 0))
    image = decode(save(inks, "JPEG", quality=95))
    red, green, blue = image.pixels[16, 16].tolist()
    assert (image.source_mode, image.icc_profile) == ("CMYK", None)
    assert red > 180
    assert max(green, blue) < 80


def test_cmyk_profile_decides_its_colours() -> None:
    inks = Image.new("CMYK", (32, 32), (0, 255, 255, 0))
    image = decode(save(inks, "JPEG", quality=95, icc_profile=build_cmyk_profile()))
    red, green, blue = image.pixels[16, 16].tolist()
    assert max(abs(red - green), abs(green - blue)) <= 2, "its inks are all grey"


def test_lab_tiff_becomes_srgb() -> None:
    lab = Image.merge("LAB", [Image.new("L", (32, 32), level) for level in (136, 208, 195)])
    image = decode(save(lab, "TIFF"))
    red, green, blue = image.pixels[0, 0].tolist()
    assert red > 200 > 60 > max(green, blue), "L 53, a 80, b 67 is sRGB red"


def test_heic_is_read_upright_with_profile() -> None:
    profile = build_profile()
    exif = b"Exif\x00\x00" + build_exif(6)
    tall = make_rgb(64, 96)
    heif: Any = pillow_heif.from_pillow(Image.fromarray(tall))
    buffer = io.BytesIO()
    heif.save(buffer, quality=95, icc_profile=profile, exif=exif)
    image = decode(buffer.getvalue())
    assert (image.format, image.icc_profile) == ("heic", profile)
    assert (image.width, image.height) == (96, 64)
    assert image.exif == build_exif(1)
    assert np.abs(image.pixels.astype(int) - np.rot90(tall, -1)).mean() < 8


def test_jpeg_with_a_second_picture_gives_the_first() -> None:
    """Phones append a gain map; Pillow alone would call that an MPO with two frames."""
    frames = [Image.fromarray(RGB), Image.fromarray(make_rgb(seed=1))]
    data = save(frames[0], "MPO", save_all=True, append_images=frames[1:], quality=95)
    assert np.abs(decode(data).pixels.astype(int) - RGB).mean() < 6


# Refusals


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "empty"),
        (b"hello, this is a text renamed to photo.jpg", "text"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'></svg>", "SVG"),
        (b"<?xml version='1.0'?>\n<svg></svg>", "SVG"),
        (b"<!DOCTYPE html><html>not found</html>", "web page"),
        (b'{"error": "no such image"}', "JSON"),
        (b"%PDF-1.7 ....", "PDF"),
        (b"8BPS\x00\x01", "PSD"),
        (b"\x00\x00\x00\x1cftypavif\x00\x00\x00\x00mif1avifmiaf", "AVIF"),
        (b"\x00\x00\x00\x1cftypisom\x00\x00\x00\x00isomavc1mp41", "video"),
        (b"\x00\x00\x00\x0cJXL \x0d\x0a\x87\x0a", "JPEG XL"),
        (b"PK\x03\x04 and so on", "ZIP"),
        (bytes(range(256)), "no picture"),
        (save(RGB, "GIF"), "GIF"),
        (save(RGB, "BMP"), "BMP"),
    ],
)
def test_other_kinds_are_named(data: bytes, found: str) -> None:
    with pytest.raises(InvalidImage, match=found) as caught:
        decode(data)
    assert caught.value.remedy


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "PNG16", "TIFF16", "HEIC"])
@pytest.mark.parametrize("share", [0.03, 0.5, 0.9, 0.99])
def test_truncated_file_is_refused(format: str, share: float) -> None:
    data = make_file(format)
    with pytest.raises(InvalidImage):
        decode(data[: int(len(data) * share)])


def make_file(format: str) -> bytes:
    if format == "PNG16":
        return encode_png16(make_rgb(depth=16))
    if format == "TIFF16":
        return save_tiff(make_rgb(depth=16), photometric="rgb", compression="zlib")
    if format == "HEIC":
        buffer = io.BytesIO()
        heif: Any = pillow_heif.from_pillow(Image.fromarray(RGB))
        heif.save(buffer, quality=90)
        return buffer.getvalue()
    return save(RGB, format)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "GIF", "TIFF"])
def test_several_frames_are_refused(format: str) -> None:
    frames = [Image.fromarray(make_rgb(seed=seed)) for seed in range(3)]
    with pytest.raises(InvalidImage):
        decode(save(frames[0], format, save_all=True, append_images=frames[1:]))


def test_too_many_bytes_is_413() -> None:
    data = save(RGB, "PNG")
    with pytest.raises(ImageTooLarge, match="bytes"):
        decode(data, ImageLimits(max_bytes=len(data) - 1))
    assert decode(data, ImageLimits(max_bytes=len(data)))


def test_one_pixel_is_too_small() -> None:
    with pytest.raises(InvalidImage, match="too small"):
        decode(save(np.zeros((1, 1, 3), np.uint8), "PNG"))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "HEIC"])
def test_pixel_and_side_limits_come_before_decoding(format: str) -> None:
    data = make_file(format)
    with pytest.raises(ImageTooLarge, match="96x64"):
        decode(data, ImageLimits(max_pixels=96 * 64 - 1))
    with pytest.raises(ImageTooLarge, match="96x64"):
        decode(data, ImageLimits(max_side_px=95))


def test_declared_gigapixel_png_costs_nothing() -> None:
    data = bytearray(save(RGB, "PNG"))
    struct.pack_into(">II", data, 16, 16_000, 16_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageTooLarge, match="256,000,000"):
            decode(bytes(data))


def test_declared_gigapixel_webp_costs_nothing() -> None:
    exif = Image.Exif()
    exif[0x010F] = "sm4ll"
    data = bytearray(save(RGB, "WEBP", exif=exif))
    at = data.index(b"VP8X") + 12
    data[at : at + 6] = b"\x7f\x3e\x00" * 2
    with pytest.raises(ImageTooLarge, match="16000x16000"):
        decode(bytes(data))


def test_png_text_bomb_is_never_inflated() -> None:
    zeros = zlib.compress(bytes(50_000_000), 9)
    data = add_png_chunk(save(RGB, "PNG"), b"zTXt", b"bomb\x00\x00" + zeros)
    data = add_png_chunk(data, b"iCCP", b"bomb\x00\x00" + zeros)
    image = decode(data)
    assert image.icc_profile is None
    assert np.array_equal(image.pixels, RGB)


def test_jpeg_with_endless_scans_is_refused() -> None:
    data = save(RGB, "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    last_scan = data[start:-2]
    with pytest.raises(InvalidImage, match="scans"):
        decode(data[:-2] + last_scan * 200 + b"\xff\xd9")


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_endless_metadata_is_refused(format: str) -> None:
    data = save(RGB, format)
    if format == "PNG":
        stuffed = data[:33] + add_png_chunk(bytes(33), b"tEXt", b"")[33:] * 100_001 + data[33:]
    else:
        stuffed = data[:2] + b"\xff\xe2\x00\x02" * 100_001 + data[2:]
    with pytest.raises(InvalidImage, match="over 100000"):
        decode(stuffed)


def test_tiff_tags_that_share_bytes_are_refused() -> None:
    data = bytearray(save_tiff(make_rgb(200, 200), photometric="rgb"))
    entries = b"".join(struct.pack("<HHII", 40000 + i, 7, len(data) - 8, 8) for i in range(100))
    directory = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, directory)[0]
    old = bytes(data[directory + 2 : directory + 2 + 12 * count])
    struct.pack_into("<I", data, 4, len(data))
    data += struct.pack("<H", count + 100) + old + entries + bytes(4)
    with pytest.raises(InvalidImage, match="declares more"):
        decode(bytes(data))


def test_camera_raw_is_not_taken_for_its_thumbnail() -> None:
    with pytest.raises(InvalidImage, match="camera raw"):
        decode(save_tiff(RGB, photometric="rgb", extratags=[(50706, 1, 4, b"\1\4\0\0", True)]))
    with pytest.raises(InvalidImage, match="thumbnail"):
        decode(save_tiff(RGB, photometric="rgb", subfiletype=1))


def test_float_tiff_is_refused() -> None:
    with pytest.raises(InvalidImage):
        decode(save_tiff(np.zeros((32, 32, 3), np.float32), photometric="rgb"))


def test_12_bit_jpeg_is_refused_by_name() -> None:
    data = bytearray(save(RGB, "JPEG"))
    data[data.index(b"\xff\xc0") + 4] = 12
    with pytest.raises(InvalidImage, match="12-bit"):
        decode(bytes(data))


def test_crafted_exif_cannot_break_a_picture() -> None:
    for exif in (b"II*\x00\xff\xff\xff\x7f", b"MM\x00*\x00\x00\x00\x08\xff\xff", b"", b"II"):
        data = add_png_chunk(save(RGB, "PNG"), b"eXIf", exif)
        image = decode(data)
        assert image.exif is None
        assert np.array_equal(image.pixels, RGB)


def test_thumbnail_of_the_old_picture_is_dropped() -> None:
    thumbnail = b"\xff\xd8" + b"the unedited picture" + b"\xff\xd9"
    exif = build_exif(3, thumbnail)
    assert thumbnail in exif
    image = decode(save(RGB, "JPEG", exif=b"Exif\x00\x00" + exif))
    assert image.exif is not None
    assert b"unedited" not in image.exif
    assert b"sm4ll" in image.exif


def test_webp_decoder_agrees_with_pillow() -> None:
    data = save(RGB, "WEBP", quality=80)
    assert np.array_equal(decode(data).pixels, np.asarray(Image.open(io.BytesIO(data))))
    assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) is not None
