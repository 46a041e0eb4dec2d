"""The product lies whole, centred, undistorted and without a fringe on its ground."""

from io import BytesIO

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deployments.bundle import Canvas, Product
from serve.errors import InvalidImage
from serve.imaging.canvas import build_canvas
from serve.imaging.limits import ImageLimits
from serve.inputs import decode_product
from serve.messages import UInt8Array

WHITE = (255, 255, 255)
RED = (200, 30, 20)


def cutout(width_px: int, height_px: int, box: tuple[int, int, int, int], rgb=RED) -> UInt8Array:
    """An ellipse-free block of one colour; what its clear surroundings hide is bright green."""
    product = np.zeros((height_px, width_px, 4), np.uint8)
    product[..., 1] = 255
    x0, y0, x1, y1 = box
    product[y0:y1, x0:x1] = (*rgb, 255)
    return product


def find_box(canvas: UInt8Array, ground: tuple[int, int, int]) -> tuple[int, int, int, int]:
    changed = (np.abs(canvas[..., :3].astype(int) - ground).max(axis=2) > 40).astype(np.uint8)
    x, y, width, height = cv2.boundingRect(changed)
    return x, y, x + width, y + height


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.tuples(st.integers(20, 300), st.integers(20, 300)),
    st.tuples(st.integers(64, 256), st.integers(64, 256)),
    st.sampled_from([0.0, 0.05, 0.2]),
)
def test_cutout_is_whole_centred_and_keeps_its_aspect(
    shape: tuple[int, int], size: tuple[int, int], margin: float
) -> None:
    width, height = shape
    product = cutout(width + 37, height + 90, (7, 61, 7 + width, 61 + height))
    canvas = build_canvas(product, size, WHITE, margin)
    assert canvas.shape == (size[1], size[0], 4)
    assert (canvas[..., 3] == 255).all()
    x0, y0, x1, y1 = find_box(canvas, WHITE)
    free = x0, y0, size[0] - x1, size[1] - y1
    border = round(margin * min(size))
    assert min(free) >= border - 1
    assert min(free) <= border + 1, "as large as fits"
    assert abs(free[0] - free[2]) <= 2
    assert abs(free[1] - free[3]) <= 2
    # One scale for both axes, up to whole pixels at either end.
    assert abs((x1 - x0) * height - (y1 - y0) * width) <= 2 * max(width, height)


@pytest.mark.parametrize("side", [40, 900], ids=["enlarged", "shrunk"])
@pytest.mark.parametrize("ground", [WHITE, (0, 0, 0), (90, 120, 180)])
def test_no_hidden_colour_shows_at_the_edge(side: int, ground: tuple[int, int, int]) -> None:
    """Every pixel is a mix of ground and product; green, which lies under alpha 0, is neither."""
    product = cutout(side * 2, side * 2, (side // 2, side // 2, side * 3 // 2, side * 3 // 2))
    soft = cv2.GaussianBlur(product[..., 3], (0, 0), side / 60)
    product = np.dstack([product[..., :3], soft])
    inside = product[..., 3] > 0
    product[inside, :3] = RED
    canvas = build_canvas(product, (300, 300), ground, 0.05)[..., :3].astype(float)
    across = np.subtract(RED, ground).astype(float)
    share = ((canvas - ground) @ across) / (across @ across)
    mixed = ground + share[..., None] * across
    assert np.abs(canvas - mixed).max() <= 2
    assert share.max() > 0.99
    assert share.min() > -0.01


def test_soft_edges_are_laid_on_the_ground() -> None:
    half = cutout(100, 100, (0, 0, 100, 100))
    half[:, 50:, 3] = 128
    canvas = build_canvas(half, (100, 100), (0, 0, 0), 0.0)
    assert (canvas[10, 10, :3] == RED).all()
    assert np.abs(canvas[10, 90, :3].astype(float) - np.multiply(RED, 128 / 255)).max() <= 1


def test_opaque_photo_is_letterboxed_without_a_margin() -> None:
    """It has surroundings of its own; a margin would only make the product smaller."""
    photo = np.full((100, 50, 4), 255, np.uint8)
    photo[..., :3] = RED
    canvas = build_canvas(photo, (200, 200), WHITE, 0.2)
    assert find_box(canvas, WHITE) == (50, 0, 150, 200)


def test_canvas_of_the_same_size_keeps_every_pixel() -> None:
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (64, 48, 4)).astype(np.uint8)
    photo[..., 3] = 255
    assert np.array_equal(build_canvas(photo, (48, 64), WHITE, 0.1), photo)


def test_invisible_product_is_refused() -> None:
    with pytest.raises(InvalidImage, match="transparent everywhere"):
        build_canvas(cutout(30, 30, (0, 0, 0, 0)), (64, 64), WHITE, 0.05)


def encode_png(pixels: UInt8Array) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_small_cutout_in_a_large_clear_picture_keeps_its_detail() -> None:
    """Shrunk with its border first, 200 px of detail would become 34 and then be enlarged."""
    rng = np.random.default_rng(1)
    detail = cv2.resize(
        rng.integers(0, 256, (50, 50, 3)).astype(np.uint8),
        (200, 200),
        interpolation=cv2.INTER_CUBIC,
    )
    product = np.zeros((3000, 3000, 4), np.uint8)
    product[1500:1700, 400:600] = np.dstack([detail, np.full((200, 200), 255, np.uint8)])
    pinned = Product(canvas=Canvas(size=(256, 256), margin=0.0))
    _, canvas = decode_product(encode_png(product), ImageLimits(), pinned)
    wanted = cv2.resize(detail, (256, 256), interpolation=cv2.INTER_LANCZOS4)
    assert canvas.shape == (256, 256, 4)
    assert cv2.PSNR(np.ascontiguousarray(canvas[8:-8, 8:-8, :3]), wanted[8:-8, 8:-8]) > 40


def test_without_a_canvas_the_expert_gets_the_cutout_as_it_is() -> None:
    product = cutout(60, 40, (10, 10, 50, 30))
    _, given_rgba = decode_product(encode_png(product), ImageLimits(), Product())
    assert np.array_equal(given_rgba, product)
