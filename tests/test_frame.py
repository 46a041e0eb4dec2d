import numpy as np
import pytest

from deployments.backends.diffusion.frame import Frame, resample
from serve.messages import UInt8Array
from tests.pictures import photo

SIZES = [(128, 192), (192, 128), (100, 100), (640, 200), (1000, 1400)]


def circle(width_px: int, height_px: int) -> UInt8Array:
    """A black disc, a fifth of the shorter side in radius, in the middle of white."""
    rows, columns = np.mgrid[:height_px, :width_px]
    radius_px = min(width_px, height_px) / 5
    inside = np.hypot(columns - width_px / 2, rows - height_px / 2) <= radius_px
    return np.where(inside, 0, 255).astype(np.uint8)[:, :, None].repeat(3, axis=2)


@pytest.mark.parametrize("size", SIZES)
def test_circle_stays_a_circle(size: tuple[int, int]) -> None:
    width_px, height_px = size
    placed = Frame.around((height_px, width_px), 640, 832).place(circle(width_px, height_px))
    assert placed.shape == (832, 640, 3)
    rows, columns = np.nonzero(placed[:, :, 0] < 128)
    assert abs(int(np.ptp(columns)) - int(np.ptp(rows))) <= 2


@pytest.mark.parametrize("size", SIZES)
def test_picture_comes_back_out_of_its_frame_where_it_was(size: tuple[int, int]) -> None:
    width_px, height_px = size
    smooth_hwc = resample(photo(16, 16), width_px, height_px)
    frame = Frame.around((height_px, width_px), 640, 832)
    (back_hwc,) = frame.cut(frame.place(smooth_hwc)[None], width_px, height_px)
    assert back_hwc.shape == smooth_hwc.shape
    assert np.abs(back_hwc.astype(int) - smooth_hwc).mean() < 2


def test_picture_of_the_frames_own_size_is_not_touched() -> None:
    picture_hwc = photo(64, 96)
    frame = Frame.around((96, 64), 64, 96)
    assert (frame.place(picture_hwc) == picture_hwc).all()
    assert (frame.cut(picture_hwc[None], 64, 96)[0] == picture_hwc).all()


def test_border_repeats_the_pictures_edge_and_is_no_part_of_the_region() -> None:
    picture_hwc = photo(64, 64)
    frame = Frame.around((64, 64), 96, 64)
    assert frame.inner == (16, 0, 64, 64)
    assert (frame.place(picture_hwc)[:, :16] == picture_hwc[:, :1]).all()
    region_hw = frame.place_region(np.full((64, 64), 255, np.uint8))
    assert (region_hw[:, 16:80] == 255).all()
    assert not region_hw[:, :16].any()
    assert not region_hw[:, 80:].any()


def test_line_of_one_pixel_stays_in_the_region_when_it_shrinks() -> None:
    region_hw = np.zeros((900, 600), np.uint8)
    region_hw[450] = 255
    placed_hw = Frame.around((900, 600), 100, 150).place_region(region_hw)
    assert placed_hw[74:77].any(axis=0).all()
    assert set(np.unique(placed_hw)) == {0, 255}
