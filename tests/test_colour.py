"""Models see sRGB; the picture keeps its own colours."""

import io
import time

import numpy as np
import pytest
from PIL import Image, ImageCms

from serve.imaging.colour import crop_to_srgb, from_srgb, reduce_depth, to_srgb, to_srgb_rgba
from serve.imaging.decode import DecodedImage, decode_image
from serve.imaging.limits import ImageLimits
from tests.image_files import build_profile, encode_png16, make_rgb, save

P3 = build_profile()


def decode(data: bytes) -> DecodedImage:
    return decode_image(data, ImageLimits())


def test_wide_gamut_is_converted_as_lcms_does() -> None:
    rgb = make_rgb()
    seen = to_srgb(decode(save(rgb, "PNG", icc_profile=P3)))
    profile = ImageCms.ImageCmsProfile(io.BytesIO(P3))
    wanted = ImageCms.profileToProfile(
        Image.fromarray(rgb), profile, ImageCms.createProfile("sRGB"), renderingIntent=1
    )
    assert np.abs(seen.astype(int) - np.asarray(wanted)).max() <= 2
    assert np.abs(seen.astype(int) - rgb).max() > 10, "the profile makes a difference"


def test_there_and_back_is_within_rounding() -> None:
    rgb = make_rgb() // 4 + 96  # muted: what sRGB cannot hold is clipped, and only in the region
    back = from_srgb(to_srgb(decode(save(rgb, "PNG", icc_profile=P3))), P3, 8)
    assert np.abs(back.astype(int) - rgb).max() <= 3


def test_without_profile_nothing_changes() -> None:
    rgb = make_rgb()
    assert np.array_equal(to_srgb(decode(save(rgb, "PNG"))), rgb)
    assert np.array_equal(from_srgb(rgb, None, 8), rgb)


def test_profile_that_lcms_refuses_counts_as_srgb() -> None:
    broken = P3[:132] + bytes(len(P3) - 132)
    image = decode(save(make_rgb(), "PNG", icc_profile=broken))
    assert np.array_equal(to_srgb(image), image.pixels)
    assert np.array_equal(from_srgb(make_rgb(), broken, 8), make_rgb())


def test_16_bit_is_rounded_not_cut() -> None:
    deep = np.array([[0, 128, 129, 257, 65535, 65407, 65406]], np.uint16)
    assert reduce_depth(deep).tolist() == [[0, 0, 1, 1, 255, 255, 254]]
    assert from_srgb(np.full((1, 1, 3), 200, np.uint8), None, 16)[0, 0, 0] == 200 * 257


def test_transparency_lies_on_white() -> None:
    rgba = np.dstack([make_rgb(), np.zeros((64, 96), np.uint8)])
    rgba[:, 48:, 3] = 255
    seen = to_srgb(decode(save(rgba, "PNG")))
    assert (seen[:, :48] == 255).all()
    assert np.array_equal(seen[:, 48:], rgba[:, 48:, :3])


def test_copy_is_scaled_to_its_longer_side() -> None:
    image = decode(save(make_rgb(300, 200), "PNG"))
    assert to_srgb(image, max_side_px=150).shape == (100, 150, 3)
    assert to_srgb(image, max_side_px=500).shape == (200, 300, 3)


def test_crop_is_part_of_the_whole() -> None:
    image = decode(save(make_rgb(), "PNG", icc_profile=P3))
    assert np.array_equal(crop_to_srgb(image, (10, 20, 50, 60)), to_srgb(image)[20:60, 10:50])


def test_16_bit_copy_agrees_with_8_bit() -> None:
    deep = make_rgb(depth=16)
    assert np.array_equal(to_srgb(decode(encode_png16(deep))), reduce_depth(deep))


def test_cut_out_product_has_no_fringe_of_what_it_hides() -> None:
    """Clear pixels hold green; the shrunk product must be red to its very edge."""
    rgba = np.zeros((400, 400, 4), np.uint8)
    rgba[..., 1] = 255
    rgba[100:301, 100:301] = (255, 0, 0, 255)
    small = to_srgb_rgba(decode(save(rgba, "PNG")), max_side_px=90)
    edge = (small[..., 3] > 20) & (small[..., 3] < 235)
    assert edge.any()
    assert small[edge][:, 0].min() > 240
    assert small[edge][:, 1].max() < 15


def test_opaque_product_gets_a_full_alpha() -> None:
    assert (to_srgb_rgba(decode(save(make_rgb(), "PNG")))[..., 3] == 255).all()


@pytest.mark.parametrize("with_profile", [False, True])
def test_small_copy_of_a_large_photo_is_quick(with_profile: bool) -> None:
    data = save(make_rgb(4000, 3000), "JPEG", icc_profile=P3 if with_profile else None)
    image = decode(data)
    start = time.perf_counter()
    assert to_srgb(image, max_side_px=1024).shape == (768, 1024, 3)
    assert time.perf_counter() - start < 1.0
