"""The new scene stands behind the person, who does not change, and no old background remains."""

import numpy as np
import pytest

from deployments.backends.warp.background import replace_background
from serve.messages import ExpertRequest, Landmarks, UInt8Array

RED, GREEN, BLUE = (200, 40, 30), (20, 180, 40), (30, 60, 210)
SIZE = (120, 90)


def make_request(product: UInt8Array, landmarks: Landmarks | None = None) -> ExpertRequest:
    """A red person (columns 30 to 60) before green, with a soft edge of four pixels."""
    height, width = SIZE
    x = np.arange(width)
    weight = np.clip(np.maximum(30 - x, x - 59) / 4.0, 0.0, 1.0)
    weight = np.tile(weight, (height, 1))
    mixed = weight[..., None] * GREEN + (1.0 - weight[..., None]) * RED
    return ExpertRequest(
        request_id="r",
        version="bg@1",
        crop_hwc=np.rint(mixed).astype(np.uint8),
        region_hw=np.rint(weight * 255).astype(np.uint8),
        silhouette_hw=None,
        landmarks=landmarks or Landmarks(),
        product_hwc=product,
        product_landmarks=Landmarks(),
        seed=1,
    )


def flat(colour: tuple[int, int, int], shape: tuple[int, int] = (60, 60)) -> UInt8Array:
    return np.full((*shape, 4), (*colour, 255), np.uint8)


def composite(request: ExpertRequest) -> tuple[UInt8Array, UInt8Array]:
    image, alpha = replace_background(request, np.random.default_rng(request.seed))
    weight = request.region_hw[..., None] / 255.0
    mixed = request.crop_hwc * (1.0 - weight) + image * weight
    return np.rint(mixed).astype(np.uint8), alpha


def test_person_pixels_are_exactly_the_same() -> None:
    request = make_request(flat(BLUE))
    image, alpha = replace_background(request, np.random.default_rng(1))
    person = request.region_hw == 0
    assert person.any()
    assert (image[person] == request.crop_hwc[person]).all()
    assert (alpha[person] == 0).all()


def test_far_from_the_person_there_is_only_the_new_scene() -> None:
    out, alpha = composite(make_request(flat(BLUE)))
    assert np.abs(out[:, :20].astype(int) - BLUE).max() <= 1
    assert (alpha[:, :20] == 255).all()


def test_soft_edge_keeps_no_halo_of_the_old_background() -> None:
    request = make_request(flat(BLUE))
    out, _ = composite(request)
    edge = (request.region_hw > 20) & (request.region_hw < 235)
    assert request.crop_hwc[edge][:, 1].max() > 90, "the old edge is green"
    assert out[edge][:, 1].max() < 75, "neither the person nor the scene is"


def test_scene_keeps_its_aspect_and_covers_the_crop() -> None:
    product = flat(BLUE, (40, 200))
    product[10:30, 90:110, :3] = (255, 255, 0)
    request = make_request(product)
    everywhere = ExpertRequest(**{**_fields(request), "region_hw": np.full(SIZE, 255, np.uint8)})
    out, alpha = composite(everywhere)
    yellow = (out[..., 0] > 200) & (out[..., 2] < 80)
    ys, xs = np.nonzero(yellow)
    assert np.ptp(xs) == pytest.approx(np.ptp(ys), abs=2)
    assert np.ptp(ys) == pytest.approx(0.5 * SIZE[0], abs=2)
    assert (alpha == 255).all()


def test_transparent_scene_lies_on_white() -> None:
    product = flat(BLUE)
    product[..., 3] = 0
    out, _ = composite(make_request(product))
    assert (out[:, :20] == 255).all()


def test_ground_is_darker_under_the_feet_only_where_feet_are_seen() -> None:
    feet = Landmarks({"left_heel": (66.0, 100.0), "left_toe": (84.0, 100.0)})
    with_feet, _ = composite(make_request(flat(BLUE), feet))
    without, _ = composite(make_request(flat(BLUE)))
    assert with_feet[100, 75].sum() < without[100, 75].sum() - 30
    assert (with_feet[10] == without[10]).all()


def test_raised_foot_throws_no_shadow_on_the_air() -> None:
    points = {"left_heel": (5.0, 40.0), "left_toe": (25.0, 40.0)}
    points |= {"right_heel": (66.0, 110.0), "right_toe": (84.0, 110.0)}
    with_feet, _ = composite(make_request(flat(BLUE), Landmarks(points)))
    without, _ = composite(make_request(flat(BLUE)))
    assert (with_feet[30:60, :30] == without[30:60, :30]).all()


def test_same_request_gives_the_same_bytes() -> None:
    request = make_request(flat(BLUE))
    first, second = (replace_background(request, np.random.default_rng(1)) for _ in range(2))
    assert first[0].tobytes() == second[0].tobytes()
    assert first[1].tobytes() == second[1].tobytes()


def _fields(request: ExpertRequest) -> dict[str, object]:
    return {name: getattr(request, name) for name in ExpertRequest.__slots__}
