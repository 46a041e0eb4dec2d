"""PSNR and SSIM agree with their definitions."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from deployments.backends.diffusion.quality import measure_quality
from serve.messages import UInt8Array


def noise(seed: int, shape: tuple[int, ...] = (2, 20, 24, 3)) -> UInt8Array:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def grey(level: int) -> UInt8Array:
    return np.full((1, 16, 16, 3), level, np.uint8)


def test_equal_pictures_are_as_good_as_it_gets() -> None:
    assert measure_quality(noise(0), noise(0)) == (99.0, pytest.approx(1.0))


@pytest.mark.parametrize(("levels", "psnr_db"), [(1, 48.1308), (5, 34.1514), (255, 0.0)])
def test_psnr_of_a_constant_error(levels: int, psnr_db: float) -> None:
    measured_db, _ = measure_quality(grey(0), grey(levels))
    assert measured_db == pytest.approx(psnr_db, abs=1e-3)


def test_one_level_less_than_the_range_does_not_wrap_around() -> None:
    measured_db, _ = measure_quality(grey(255), grey(0))
    assert measured_db == 0.0


@pytest.mark.parametrize(("a", "b"), [(100, 120), (0, 255), (7, 7)])
def test_ssim_of_plain_grounds_is_their_luminance_term(a: int, b: int) -> None:
    c1 = 2.55**2
    _, ssim = measure_quality(grey(a), grey(b))
    assert ssim == pytest.approx((2 * a * b + c1) / (a**2 + b**2 + c1), abs=1e-9)


def ssim_by_definition(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Of one channel, window by window."""
    steps = np.arange(11) - 5
    bell = np.exp(-(steps**2) / (2 * 1.5**2))
    weights = np.outer(bell, bell) / bell.sum() ** 2
    c1, c2 = 2.55**2, 7.65**2
    found = []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            a, b = (plane[top : top + 11, left : left + 11] for plane in (x, y))
            mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
            var_a = (weights * (a - mean_a) ** 2).sum()
            var_b = (weights * (b - mean_b) ** 2).sum()
            cov = (weights * (a - mean_a) * (b - mean_b)).sum()
            top_term = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
            found.append(top_term / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)))
    return float(np.mean(found))


@pytest.mark.parametrize("strength", [0.02, 0.3, 1.0])
def test_ssim_is_what_its_definition_says(strength: float) -> None:
    plain, other = noise(0), noise(1)
    mixed = np.round(plain * (1 - strength) + other * strength).astype(np.uint8)
    expected = np.mean(
        [
            ssim_by_definition(x[..., c].astype(float), y[..., c].astype(float))
            for x, y in zip(plain, mixed, strict=True)
            for c in range(3)
        ]
    )
    psnr_db, ssim = measure_quality(plain, mixed)
    assert ssim == pytest.approx(expected, abs=1e-9)
    mean = np.mean((plain.astype(float) - mixed) ** 2)
    assert psnr_db == pytest.approx(10 * math.log10(255**2 / mean))


def test_more_damage_scores_lower() -> None:
    plain, other = noise(0), noise(1)
    scores = [
        measure_quality(plain, np.round(plain * (1 - part) + other * part).astype(np.uint8))
        for part in (0.1, 0.2, 0.4, 0.8)
    ]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("shape", [(2, 20, 24, 4), (1, 20, 24, 3), (2, 24, 20, 3)])
def test_pictures_of_different_shapes_are_not_compared(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        measure_quality(noise(0), noise(0, shape))


def test_a_picture_smaller_than_the_window_is_not_compared() -> None:
    with pytest.raises(ValueError, match="smaller than the window"):
        measure_quality(noise(0, (1, 10, 24, 3)), noise(1, (1, 10, 24, 3)))
