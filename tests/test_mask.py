"""A mask is read under one polarity, or refused with what is wrong and what to do."""

import cv2
import numpy as np
import pytest
from PIL import Image

from serve.errors import ImageTooLarge, InvalidImage, MaskRejected
from serve.imaging.limits import ImageLimits
from serve.imaging.mask import check_mask_size, decode_mask
from serve.schemas.tryon import MaskConvention
from tests.image_files import encode_png16, make_region, make_rgb, save

LIMITS = ImageLimits()
REGION = make_region(96, 64, (20, 10, 70, 50))


def read(data: bytes, convention: MaskConvention = "white_edits") -> np.ndarray:
    region_hw = decode_mask(data, convention, LIMITS)
    check_mask_size(region_hw, 96, 64)
    return region_hw


def with_alpha(alpha: np.ndarray) -> bytes:
    return save(np.dstack([make_rgb(), alpha]), "PNG")


def test_white_edits() -> None:
    assert np.array_equal(read(save(REGION, "PNG")), REGION)


def test_black_edits() -> None:
    assert np.array_equal(read(save(255 - REGION, "PNG"), "black_edits"), REGION)


def test_alpha_edits_where_it_is_clear() -> None:
    assert np.array_equal(read(with_alpha(255 - REGION), "alpha_edits"), REGION)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P"])
def test_every_mode_of_black_and_white_is_read(mode: str) -> None:
    assert np.array_equal(read(save(Image.fromarray(REGION).convert(mode), "PNG")), REGION)


def test_16_bit_mask_is_read() -> None:
    assert np.array_equal(read(encode_png16(REGION.astype(np.uint16) * 257)), REGION)


def test_jpeg_mask_with_its_ringing_is_read() -> None:
    found = read(save(REGION, "JPEG", quality=70))
    assert np.count_nonzero(found != REGION) < 0.02 * REGION.size
    assert set(np.unique(found)) == {0, 255}


def test_wide_soft_edge_is_no_photograph() -> None:
    soft = cv2.GaussianBlur(REGION, (0, 0), 4)
    assert ((soft > 32) & (soft < 223)).mean() > 0.15
    assert np.array_equal(read(save(soft, "PNG")), np.where(soft > 127, 255, 0))


def test_dark_grey_photograph_is_refused() -> None:
    grey = np.repeat(make_rgb()[..., :1], 3, axis=2)
    with pytest.raises(MaskRejected, match="photograph"):
        read(save(grey, "PNG"))


def test_red_scribble_on_black_is_a_mask() -> None:
    scribble = np.zeros((64, 96, 3), np.uint8)
    scribble[..., 0] = REGION
    assert np.array_equal(read(save(scribble, "PNG")), REGION)


@pytest.mark.parametrize(
    ("data", "convention", "found"),
    [
        (save(REGION[:-1], "PNG"), "white_edits", "96x63, the picture is 96x64"),
        (save(np.zeros_like(REGION), "PNG"), "white_edits", "empty"),
        (save(np.full_like(REGION, 255), "PNG"), "white_edits", "full"),
        (save(np.full_like(REGION, 255), "PNG"), "black_edits", "empty"),
        (save(make_rgb(), "PNG"), "white_edits", "photograph"),
        (save(make_rgb(), "PNG"), "alpha_edits", "no alpha"),
        (with_alpha(np.full_like(REGION, 255)), "alpha_edits", "empty"),
        (with_alpha(np.zeros_like(REGION)), "alpha_edits", "full"),
    ],
)
def test_unusable_mask_is_refused_by_name(
    data: bytes, convention: MaskConvention, found: str
) -> None:
    with pytest.raises(MaskRejected, match=found) as caught:
        read(data, convention)
    assert caught.value.remedy


def test_a_mask_has_the_same_limits_as_a_picture() -> None:
    with pytest.raises(InvalidImage):
        read(b"no picture")
    with pytest.raises(ImageTooLarge):
        decode_mask(save(REGION, "PNG"), "white_edits", ImageLimits(max_side_px=90))
