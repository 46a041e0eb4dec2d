"""A product cut from its photo is the product: no background, no shadow, no fringe, no loss."""

import contextlib

import cv2
import numpy as np
import pytest

from deployments.backends.warp.cutout import cut_out
from serve.errors import GenerationFailed
from serve.messages import UInt8Array

HEIGHT, WIDTH = 500, 400
SHIRT = np.array(
    [(150, 80), (250, 80), (340, 140), (310, 220), (270, 195), (275, 420), (125, 420), (130, 195),
     (90, 220), (60, 140)]
)  # fmt: skip


def draw_mask(polygon: np.ndarray = SHIRT) -> np.ndarray:
    large = np.zeros((HEIGHT * 4, WIDTH * 4), np.uint8)
    cv2.fillPoly(large, [polygon * 4], 255)
    small = cv2.resize(large, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32) / 255.0


def gradient() -> np.ndarray:
    y, x = np.mgrid[0 : 1 : HEIGHT * 1j, 0 : 1 : WIDTH * 1j]
    vignette = 232 - 14 * y + 8 * x - 12 * ((x - 0.5) ** 2 + (y - 0.5) ** 2)
    return np.dstack([vignette, vignette, vignette + 4])


def photograph(mask_hw: np.ndarray, colour: object, background: np.ndarray) -> UInt8Array:
    mixed = mask_hw[..., None] * np.asarray(colour, float) + (1 - mask_hw[..., None]) * background
    noisy = mixed + np.random.default_rng(0).normal(0, 1.0, mixed.shape)
    opaque = np.full((HEIGHT, WIDTH), 255.0)
    return np.dstack([noisy, opaque]).round().clip(0, 255).astype(np.uint8)


def iou(cut: UInt8Array, mask_hw: np.ndarray) -> float:
    x, y, width, height = cv2.boundingRect((mask_hw > 0.03).astype(np.uint8))
    truth = cv2.resize(mask_hw[y : y + height, x : x + width], cut.shape[1::-1])
    alpha = cut[..., 3] / 255.0
    return float(np.minimum(alpha, truth).sum() / np.maximum(alpha, truth).sum())


@pytest.mark.parametrize("colour", [(170, 30, 40), (20, 20, 24), (250, 250, 250), (120, 121, 122)])
def test_shirt_on_gradient_is_cut_exactly(colour: tuple[int, int, int]) -> None:
    mask = draw_mask()
    cut = cut_out(photograph(mask, colour, gradient()))
    assert iou(cut, mask) > 0.97


def test_edge_carries_product_colour_not_background() -> None:
    cut = cut_out(photograph(draw_mask(), (170, 30, 40), gradient()))
    rim = (cut[..., 3] > 40) & (cut[..., 3] < 215)
    assert rim.sum() > 100
    assert np.abs(cut[rim][:, :3].astype(float) - (170, 30, 40)).mean() < 6


def test_soft_shadow_on_the_floor_is_background() -> None:
    mask = draw_mask()
    floor = np.zeros((HEIGHT, WIDTH), np.float32)
    cv2.ellipse(floor, (220, 425), (130, 18), 0, 0, 360, 45.0, -1)
    shaded = gradient() - cv2.GaussianBlur(floor, (0, 0), 9)[..., None]
    assert iou(cut_out(photograph(mask, (40, 70, 150), shaded)), mask) > 0.97


def test_gap_between_trouser_legs_stays_open_and_print_stays_closed() -> None:
    trousers = np.array([(120, 60), (280, 60), (300, 460), (100, 460)])
    mask = draw_mask(trousers)
    mask[200:450, 195:206] = 0
    picture = photograph(mask, (30, 60, 50), gradient())
    picture[100:125, 180:220, :3] = gradient()[100:125, 180:220].round()
    alpha = cut_out(picture)[..., 3]
    assert alpha[300, alpha.shape[1] // 2] < 30
    assert alpha[52, alpha.shape[1] // 2] > 250


def test_both_shoes_of_a_pair_survive_and_specks_do_not() -> None:
    mask = draw_mask(np.array([(60, 200), (180, 220), (180, 270), (60, 270)]))
    mask += draw_mask(np.array([(220, 200), (340, 220), (340, 270), (220, 270)]))
    mask[20:24, 20:24] = 1.0
    cut = cut_out(photograph(mask, (60, 40, 30), gradient()))
    assert abs(cut.shape[1] - 280) <= 4
    assert cut.shape[0] < 80
    assert cv2.connectedComponents((cut[..., 3] > 128).astype(np.uint8))[0] == 3


def test_given_alpha_is_kept_and_cropped() -> None:
    product = np.full((HEIGHT, WIDTH, 4), (10, 200, 10, 0), np.uint8)
    product[100:200, 50:150, 3] = 255
    cut = cut_out(product)
    assert cut.shape == (100, 100, 4)
    assert (cut == (10, 200, 10, 255)).all()


def test_picture_without_plain_background_is_used_whole() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (60, 80, 3), np.uint8)
    busy = cv2.resize(noise, (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST)
    cut = cut_out(np.dstack([busy, np.full((HEIGHT, WIDTH), 255, np.uint8)]))
    assert (cut[..., 3] == 255).mean() > 0.95
    assert cut.shape[:2] == (HEIGHT, WIDTH)


def test_large_picture_is_limited_to_1024() -> None:
    large = cv2.resize(photograph(draw_mask(), (170, 30, 40), gradient()), (1600, 2000))
    assert max(cut_out(large).shape[:2]) <= 1024


@pytest.mark.parametrize("alpha", [0, 255])
def test_nothing_but_background_is_refused(alpha: int) -> None:
    blank = np.full((80, 60, 4), (240, 240, 240, alpha), np.uint8)
    with pytest.raises(GenerationFailed):
        cut_out(blank)


def test_same_picture_gives_same_bytes() -> None:
    picture = photograph(draw_mask(), (170, 30, 40), gradient())
    assert cut_out(picture).tobytes() == cut_out(picture).tobytes()


@pytest.mark.parametrize("size", [(1, 1), (2, 7), (9, 3), (16, 16)])
def test_tiny_picture_does_not_crash(size: tuple[int, int]) -> None:
    picture = np.full((*size, 4), 255, np.uint8)
    picture[0, 0, :3] = 0
    with contextlib.suppress(GenerationFailed):
        assert cut_out(picture).shape[2] == 4
