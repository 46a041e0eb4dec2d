"""Colour and pattern of a painted product: told apart from pose, size and light."""

from dataclasses import replace
from functools import cache

import cv2
import numpy as np
import pytest

from deployments.backends.drill import DrillBackend
from deployments.backends.warp.backend import WarpBackend
from deployments.recipes import Drill
from serve.difference import ciede2000, from_lab, to_lab
from serve.imaging.fidelity import Fidelity, measure_fidelity
from serve.imaging.ground import weigh_product
from serve.imaging.measures import measure_result
from serve.messages import ExpertRequest, UInt8Array
from tests.demo_requests import build_request

SHARMA_WU_DALAL = """
50 2.6772 -79.7751 50 0 -82.7485 2.0425
50 3.1571 -77.2803 50 0 -82.7485 2.8615
50 2.8361 -74.0200 50 0 -82.7485 3.4412
50 -1.3802 -84.2814 50 0 -82.7485 1.0000
50 -1.1848 -84.8006 50 0 -82.7485 1.0000
50 -0.9009 -85.5211 50 0 -82.7485 1.0000
50 0 0 50 -1 2 2.3669
50 -1 2 50 0 0 2.3669
50 2.4900 -0.0010 50 -2.4900 0.0009 7.1792
50 2.4900 -0.0010 50 -2.4900 0.0010 7.1792
50 2.4900 -0.0010 50 -2.4900 0.0011 7.2195
50 2.4900 -0.0010 50 -2.4900 0.0012 7.2195
50 -0.0010 2.4900 50 0.0009 -2.4900 4.8045
50 -0.0010 2.4900 50 0.0010 -2.4900 4.8045
50 -0.0010 2.4900 50 0.0011 -2.4900 4.7461
50 2.5 0 50 0 -2.5 4.3065
50 2.5 0 73 25 -18 27.1492
50 2.5 0 61 -5 29 22.8977
50 2.5 0 56 -27 -3 31.9030
50 2.5 0 58 24 15 19.4535
50 2.5 0 50 3.1736 0.5854 1.0000
50 2.5 0 50 3.2972 0 1.0000
50 2.5 0 50 1.8634 0.5757 1.0000
50 2.5 0 50 3.2592 0.3350 1.0000
60.2574 -34.0099 36.2677 60.4626 -34.1751 39.4387 1.2644
63.0109 -31.0961 -5.8663 62.8187 -29.7946 -4.0864 1.2630
61.2901 3.7196 -5.3901 61.4292 2.2480 -4.9620 1.8731
35.0831 -44.1164 3.7933 35.0232 -40.0716 1.5901 1.8645
22.7233 20.0904 -46.6940 23.0331 14.9730 -42.5619 2.0373
36.4612 47.8580 18.3852 36.2715 50.5065 21.2231 1.4146
90.8027 -2.0831 1.4410 91.1528 -1.6435 0.0447 1.4441
90.9257 -0.5406 -0.9208 88.6381 -0.8985 -0.7239 1.5381
6.7747 -0.2908 -2.4247 5.8714 -0.0985 -2.2286 0.6377
2.0776 0.0795 -1.1350 0.9033 -0.0636 -0.5514 0.9082
"""
"""Table 1 of the paper: two colours and their difference."""

SHIRT, PRINT = (40, 90, 150), (235, 200, 60)


def test_the_34_published_pairs() -> None:
    table = np.array([line.split() for line in SHARMA_WU_DALAL.split("\n") if line], np.float64)
    assert table.shape == (34, 7)
    first, second, published = table[:, :3], table[:, 3:6], table[:, 6]
    assert np.abs(ciede2000(first, second) - published).max() < 5e-5
    assert np.allclose(ciede2000(first, second), ciede2000(second, first))


def test_lab_is_that_of_d65_and_comes_back() -> None:
    known = np.array([[255, 255, 255], [255, 0, 0], [0, 0, 255]], np.uint8)
    wanted = [[100, 0, 0], [53.24, 80.09, 67.2], [32.3, 79.19, -107.86]]
    assert np.abs(to_lab(known) - wanted).max() < 0.1
    every = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    assert np.abs(from_lab(to_lab(every)).astype(int) - every).max() <= 1


def draw_shirt(has_print: bool = True) -> UInt8Array:
    """A shirt with stripes and a print, cut out."""
    shirt = np.zeros((400, 320, 4), np.uint8)
    cv2.rectangle(shirt, (60, 40), (260, 380), (*SHIRT, 255), -1)
    cv2.rectangle(shirt, (20, 40), (300, 140), (*SHIRT, 255), -1)
    if has_print:
        for y in range(220, 380, 24):
            cv2.rectangle(shirt, (60, y), (260, y + 8), (*PRINT, 255), -1)
        cv2.putText(shirt, "sm4ll", (80, 190), cv2.FONT_HERSHEY_DUPLEX, 1.6, (*PRINT, 255), 5)
    grain = np.random.default_rng(1).integers(-4, 5, shirt.shape[:2])[..., None]
    shirt[..., :3] = (shirt[..., :3] + grain).clip(0, 255)
    return shirt


def wear(
    product: UInt8Array, scale: float = 1.2, degrees: float = 0.0, light: float = 1.0
) -> tuple[UInt8Array, UInt8Array]:
    """(crop, weight): the product turned and lit on somebody, shaded from left to right."""
    size = (600, 640)
    turn = cv2.getRotationMatrix2D((160, 200), degrees, scale)
    turn[:, 2] += np.array(size) / 2 - (160, 200)
    worn = cv2.warpAffine(product, turn, size, flags=cv2.INTER_AREA)
    shade = light * np.linspace(0.8, 1.0, size[0], dtype=np.float32)[None, :, None]
    crop = np.full((size[1], size[0], 3), (190, 160, 140), np.uint8)
    weight = worn[..., 3:].astype(np.float32) / 255
    crop = np.rint(crop * (1 - weight) + (worn[..., :3] * shade).clip(0, 255) * weight)
    return crop.astype(np.uint8), np.ascontiguousarray(worn[..., 3])


def measure(product: UInt8Array, worn: tuple[UInt8Array, UInt8Array]) -> Fidelity:
    fidelity = measure_fidelity(product, *worn)
    assert fidelity is not None
    return fidelity


def soften(product: UInt8Array) -> UInt8Array:
    blurred = product.copy()
    blurred[..., :3] = cv2.GaussianBlur(product[..., :3], (0, 0), 6)
    return blurred


def turn_hue(product: UInt8Array, degrees: float) -> UInt8Array:
    lab = to_lab(np.ascontiguousarray(product[..., :3]))
    turn = np.exp(1j * np.radians(degrees)) * (lab[..., 1] + 1j * lab[..., 2])
    turned = product.copy()
    turned[..., :3] = from_lab(np.dstack([lab[..., 0], turn.real, turn.imag]))
    return turned


def test_pose_size_and_light_change_little() -> None:
    shirt = draw_shirt()
    for worn in (wear(shirt), wear(shirt, 0.7), wear(shirt, 1.3, 8), wear(shirt, 1.2, 0, 0.7)):
        fidelity = measure(shirt, worn)
        assert fidelity.colour < 1.5
        assert fidelity.pattern > 0.88


def test_another_hue_is_another_colour_and_the_same_pattern() -> None:
    shirt = draw_shirt()
    true, false = measure(shirt, wear(shirt)), measure(shirt, wear(turn_hue(shirt, 20)))
    away = ciede2000(to_lab(np.uint8([[SHIRT]])), to_lab(turn_hue(shirt, 20)[60:61, 100:101, :3]))
    assert false.colour > true.colour + 0.5 * float(away[0, 0])
    assert false.pattern == pytest.approx(true.pattern, abs=0.02)


@pytest.mark.parametrize("spoilt", [soften(draw_shirt()), draw_shirt(has_print=False)])
def test_a_print_that_is_lost_is_another_pattern(spoilt: UInt8Array) -> None:
    shirt = draw_shirt()
    true, false = measure(shirt, wear(shirt)), measure(shirt, wear(spoilt))
    assert false.pattern < true.pattern - 0.1


def test_a_plain_ground_is_not_the_product_and_neither_is_its_shadow() -> None:
    shirt = draw_shirt()
    ground = np.full((400, 320, 3), 236, np.float32)
    shadow = cv2.GaussianBlur(np.roll(shirt[..., 3], (14, 10), (0, 1)), (0, 0), 9)
    ground *= 1 - 0.15 * shadow[..., None] / 255
    photo = np.where(shirt[..., 3:] > 0, shirt[..., :3], ground).astype(np.uint8)
    opaque = np.dstack([photo, np.full((400, 320), 255, np.uint8)])
    found = weigh_product(opaque) > 0.5
    is_product = shirt[..., 3] > 0
    assert np.mean(found == is_product) > 0.96
    cut, whole = measure(shirt, wear(shirt)), measure(opaque, wear(shirt))
    assert whole.colour == pytest.approx(cut.colour, abs=0.6)
    scene = np.dstack([np.random.default_rng(2).integers(0, 256, (90, 90, 3), dtype=np.uint8)])
    assert weigh_product(np.dstack([scene, np.full((90, 90), 255, np.uint8)])).min() == 1


@pytest.mark.parametrize("side_px", [1, 3, 9])
def test_what_says_nothing_is_left_out(side_px: int) -> None:
    crop = np.full((64, 48, 3), 90, np.uint8)
    region = np.zeros((64, 48), np.uint8)
    clear, speck = np.zeros((30, 30, 4), np.uint8), np.full((side_px, 1, 4), 255, np.uint8)
    assert measure_result(crop, crop, None, region, draw_shirt()) == {}
    region[20 : 20 + side_px, 20 : 20 + side_px] = 255
    for product in (clear, speck, draw_shirt()):
        assert set(measure_result(crop, crop, region, region, product)) <= {"seam"}
    region[...] = 255  # no border inside the picture
    assert set(measure_result(crop, crop, None, region, clear)) == set()


@cache
def demo(expert: str) -> ExpertRequest:
    return build_request(expert)


def rehearse(request: ExpertRequest, drill: Drill) -> dict[str, float]:
    backend = DrillBackend(WarpBackend(request.version), drill)
    (reply,) = backend.generate([request], lambda step, num_steps: None)
    assert reply.alpha_nhw is not None
    measured = measure_result(
        request.crop_hwc,
        reply.images_nhwc[0],
        reply.alpha_nhw[0],
        request.region_hw,
        request.product_hwc,
    )
    return dict(measured)


@pytest.mark.parametrize("expert", ["eye", "top"])
def test_a_drill_shows_in_the_measures_of_the_demo(expert: str) -> None:
    request = demo(expert)
    good, again = rehearse(request, Drill()), rehearse(replace(request, seed=8), Drill())
    assert again == pytest.approx(good, abs=0.05)
    assert good["seam"] < 1.0
    shifted = rehearse(request, Drill(colour_shift=6))
    assert shifted["colour"] > good["colour"] + 1.5
    assert shifted["pattern"] == pytest.approx(good["pattern"], abs=0.02)
    blurred = rehearse(request, Drill(blur_px=8))
    assert blurred["pattern"] < good["pattern"] - 0.04
