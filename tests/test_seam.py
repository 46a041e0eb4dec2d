"""A seam is what shows at a region's border and neither was there before nor goes on beside it."""

import cv2
import numpy as np
import pytest

from serve.imaging.measures import measure_result
from serve.imaging.seam import measure_seam
from serve.messages import UInt8Array


def draw_wall() -> UInt8Array:
    """Soft light with grain."""
    x = np.linspace(120, 180, 300, dtype=np.float32)
    grain = np.random.default_rng(0).normal(0, 2, (240, 300, 3))
    return (np.broadcast_to(x[None, :, None], (240, 300, 3)) + grain).clip(0, 255).astype(np.uint8)


def draw_region() -> UInt8Array:
    region = np.zeros((240, 300), np.uint8)
    cv2.circle(region, (150, 120), 70, 255, -1)
    return region


def lift(levels: float, weight_hw: UInt8Array) -> UInt8Array:
    wall = draw_wall().astype(np.float32)
    return (wall + levels * (weight_hw[..., None] / 255)).clip(0, 255).astype(np.uint8)


def measure(painted: UInt8Array, before: UInt8Array | None = None) -> float:
    seam = measure_seam(draw_wall() if before is None else before, painted, draw_region())
    assert seam is not None
    return seam


def test_an_unchanged_picture_has_none() -> None:
    assert measure(draw_wall()) == pytest.approx(0, abs=0.3)
    flat = np.full((240, 300, 3), 128, np.uint8)
    assert measure(flat, flat) == 0


@pytest.mark.parametrize("levels", [10, 20, 30])
def test_a_hard_edge_counts_by_its_height(levels: int) -> None:
    assert measure(lift(levels, draw_region())) == pytest.approx(levels, abs=4.5)


def test_a_soft_edge_counts_far_less() -> None:
    soft = cv2.GaussianBlur(draw_region(), (0, 0), 8)
    assert measure(lift(20, soft)) < 0.2 * measure(lift(20, draw_region()))


def test_an_edge_that_was_there_is_none_of_ours() -> None:
    before = lift(60, draw_region())
    assert measure(before, before) == 0
    assert measure(lift(90, draw_region()), before) == pytest.approx(30, abs=4.5)


def test_a_pattern_that_goes_on_across_is_no_seam() -> None:
    stripes = draw_wall()
    stripes[:, np.arange(300) % 4 < 2] = 60
    shifted = draw_wall()
    shifted[draw_region() > 0] = stripes[draw_region() > 0]
    inside_only = measure(shifted, draw_wall())
    assert measure(stripes, draw_wall()) < 0.3 * inside_only


def test_a_region_without_a_border_says_nothing() -> None:
    wall = draw_wall()
    for value in (0, 255):
        assert measure_seam(wall, wall, np.full((240, 300), value, np.uint8)) is None
    region = np.full((240, 300), 255, np.uint8)
    region[:, 150:] = 0
    assert measure_seam(wall, wall, region) == pytest.approx(0, abs=0.3)


def test_an_outline_at_the_border_is_bounded() -> None:
    assert measure(lift(75, draw_region())) <= 32


def test_it_is_measured_as_pasted() -> None:
    """Paste-back softens the border inwards: the step shows from further away, and less."""
    region, product = draw_region(), np.full((64, 64, 4), 255, np.uint8)
    painted = lift(20, np.full((240, 300), 255, np.uint8))
    pasted = measure_result(draw_wall(), painted, None, region, product)["seam"]
    assert 5 < pasted < 0.8 * measure(lift(20, region))
