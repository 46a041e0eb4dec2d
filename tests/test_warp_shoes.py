"""Shoes stand where the feet stand, point as they point, and leave the trousers in front."""

import cv2
import numpy as np
import pytest
from PIL import Image

from deployments.backends.warp.cutout import cut_out
from deployments.backends.warp.footwear import read_shoe
from deployments.backends.warp.shoepair import find_step
from deployments.backends.warp.shoes import wear_shoes
from deployments.segmenters.classical.segmenter import ClassicalSegmenter
from serve.demo.cases import demo_cases
from serve.messages import ExpertRequest, Landmarks, SegmentReply, SegmentRequest, UInt8Array
from tests.warp_scenes import add_shoe, draw_legs, draw_shoe, make_request

GREEN = (30, 90, 60)


def wear(request: ExpertRequest) -> tuple[UInt8Array, UInt8Array]:
    return wear_shoes(request, np.random.default_rng(request.seed))


def request_for(toes_right: bool, product: UInt8Array | None = None) -> ExpertRequest:
    crop, landmarks, region = draw_legs(toes_right)
    return make_request(crop, region, draw_shoe() if product is None else product, landmarks)


def draw_pair() -> UInt8Array:
    """Two shoes alike, the nearer one over the other, toes left."""
    image = np.full((270, 560, 3), 250, np.uint8)
    add_shoe(image, (20, 20))
    add_shoe(image, (150, 50))
    return image


def with_alpha(image: UInt8Array) -> UInt8Array:
    return np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])


def is_toe(image: UInt8Array) -> np.ndarray:
    red, green, blue = np.moveaxis(image.astype(int), -1, 0)
    return (red > 120) & (green > 95) & (blue < 0.4 * red)


def is_upper(image: UInt8Array) -> np.ndarray:
    red, _, blue = np.moveaxis(image.astype(int), -1, 0)
    return (blue > 90) & (red < 0.5 * blue)


@pytest.mark.parametrize("toes_right", [False, True], ids=["left", "right"])
def test_toes_point_as_the_feet_do(toes_right: bool) -> None:
    request = request_for(toes_right)
    image, _ = wear(request)
    for foot in (slice(0, 210), slice(210, 400)):
        toe_x = np.nonzero(is_toe(image[:, foot]))[1].mean()
        upper_x = np.nonzero(is_upper(image[:, foot]))[1].mean()
        assert (toe_x > upper_x) == toes_right


def test_new_shoes_cover_the_old_ones() -> None:
    request = request_for(False)
    image, _ = wear(request)
    old = (request.crop_hwc.min(-1) > 220) & (request.region_hw > 0)
    left = (image.min(-1) > 200) & old
    assert left.sum() < 0.06 * old.sum()


def test_soles_stand_on_the_ground_line() -> None:
    image, _ = wear(request_for(False))
    dark = (image.max(-1) < 62) & (image.min(-1) > 20)
    for foot in (slice(30, 210), slice(210, 390)):
        lowest = np.nonzero(dark[:, foot])[0].max()
        assert 316 <= lowest <= 336


def test_trouser_legs_stay_in_front() -> None:
    request = request_for(False)
    image, _ = wear(request)
    trousers = (np.abs(request.crop_hwc.astype(int) - GREEN).max(-1) < 8) & (request.region_hw > 0)
    trousers[270:] = False
    kept = np.abs(image[trousers].astype(int) - GREEN).max(-1) < 30
    assert kept.mean() > 0.9


def test_nothing_outside_the_region_changes() -> None:
    request = request_for(True)
    request.region_hw[310:] = 0
    image, alpha = wear(request)
    outside = request.region_hw == 0
    assert (image[outside] == request.crop_hwc[outside]).all()
    assert (alpha[outside] == 0).all()
    assert (image[alpha == 0] == request.crop_hwc[alpha == 0]).all()
    assert (alpha > 0).sum() > 1500


def test_same_request_gives_the_same_bytes() -> None:
    first, second = (wear(request_for(True)) for _ in range(2))
    assert first[0].tobytes() == second[0].tobytes()
    assert first[1].tobytes() == second[1].tobytes()


def test_without_landmarks_one_shoe_goes_on_each_part_of_the_region() -> None:
    crop, _, region = draw_legs(False)
    image, _ = wear(make_request(crop, region, draw_shoe()))
    for foot in (slice(0, 210), slice(210, 400)):
        assert is_toe(image[:, foot]).sum() > 200
        assert is_upper(image[:, foot]).sum() > 300


def test_one_wide_region_without_landmarks_takes_two_shoes() -> None:
    crop, _, region = draw_legs(False)
    region[250:345, 40:360] = 255
    image, _ = wear(make_request(crop, region, draw_shoe()))
    count, _, stats, _ = cv2.connectedComponentsWithStats(is_toe(image).astype(np.uint8))
    assert (stats[1:count, cv2.CC_STAT_AREA] > 150).sum() == 2


def test_foot_outside_the_region_gets_no_shoe() -> None:
    request = request_for(False)
    request.region_hw[:, 210:] = 0
    image, _ = wear(request)
    assert is_toe(image[:, :210]).any()
    assert not is_toe(image[:, 210:]).any()


def test_empty_region_changes_nothing() -> None:
    request = request_for(False)
    request.region_hw[:] = 0
    image, alpha = wear(request)
    assert (image == request.crop_hwc).all()
    assert not alpha.any()


def test_landmarks_far_from_the_region_fall_back_to_its_shape() -> None:
    crop, _, region = draw_legs(False)
    astray = Landmarks({"left_heel": (900.0, 20.0), "left_toe": (960.0, 20.0)})
    image, _ = wear(make_request(crop, region, draw_shoe(), astray))
    assert is_toe(image).sum() > 400


def test_pair_is_told_from_a_single_shoe() -> None:
    assert find_step(cut_out(with_alpha(draw_shoe()))) is None
    step = find_step(cut_out(with_alpha(draw_pair())))
    assert step is not None
    assert step.offset == pytest.approx([-130, -30], abs=10)


def test_front_shoe_of_a_pair_is_cut_out_whole() -> None:
    shoe = read_shoe(cut_out(with_alpha(draw_pair())))
    alone = read_shoe(cut_out(with_alpha(draw_shoe())))
    assert shoe.image_hwc.shape[0] == pytest.approx(alone.image_hwc.shape[0], rel=0.08)
    assert shoe.length_px == pytest.approx(alone.length_px, rel=0.08)
    areas = [(part.image_hwc[..., 3] > 127).sum() for part in (shoe, alone)]
    assert areas[0] == pytest.approx(areas[1], rel=0.1)


def test_shoe_is_read_with_its_toe_left_whichever_way_it_was_shot() -> None:
    cut = cut_out(with_alpha(draw_shoe()))
    for image in (cut, np.ascontiguousarray(cut[:, ::-1])):
        shoe = read_shoe(image)
        assert np.nonzero(is_toe(shoe.image_hwc[..., :3]))[1].mean() < 0.4 * shoe.length_px


def test_person_seen_from_the_side_has_both_toes_where_the_face_looks() -> None:
    crop, landmarks, region = draw_legs(False)
    points = dict(landmarks.points)
    points["left_heel"], points["left_toe"] = points["left_toe"], points["left_heel"]
    points |= {"neck": (210.0, -300.0), "nose": (150.0, -360.0), "left_ear": (220.0, -365.0)}
    astray = Landmarks(points, (140.0, -420.0, 240.0, -300.0))
    silhouette = np.where(np.abs(crop.astype(int) - (120, 95, 75)).max(-1) > 20, 255, 0)
    image, _ = wear(make_request(crop, region, draw_shoe(), astray, silhouette.astype(np.uint8)))
    for foot in (slice(0, 210), slice(210, 400)):
        toe_x = np.nonzero(is_toe(image[:, foot]))[1].mean()
        assert toe_x < np.nonzero(is_upper(image[:, foot]))[1].mean()


def is_orange(image: UInt8Array) -> np.ndarray:
    red, green, blue = np.moveaxis(image.astype(int), -1, 0)
    return (red > 140) & (red > 1.5 * green) & (green > blue)


@pytest.fixture(scope="module")
def demo() -> ExpertRequest:
    """Both feet of the bundled woman, white shoes to the camera, and the bundled pair."""
    case = next(case for case in demo_cases() if case.expert == "shoes")
    with Image.open(case.person_path) as file:
        file.thumbnail((1024, 1024))
        person = np.asarray(file.convert("RGB"))
    with Image.open(case.product_path) as file:
        product = np.asarray(file.convert("RGBA"))
    segmenter = ClassicalSegmenter(2**26)
    segmenter.load()
    (reply,) = segmenter.segment([SegmentRequest(person, "shoes", "demo")])
    assert isinstance(reply, SegmentReply)
    rows, columns = (np.flatnonzero((reply.region_hw > 0).any(axis)) for axis in (1, 0))
    part = slice(rows[0] - 60, rows[-1] + 40), slice(columns[0] - 60, columns[-1] + 60)
    landmarks = reply.landmarks.transformed((1.0, 1.0), (-part[1].start, -part[0].start))
    return make_request(
        person[part], reply.region_hw[part], product, landmarks, reply.silhouette_hw[part]
    )


def test_demo_pair_gives_each_foot_one_shoe_toes_outward(demo: ExpertRequest) -> None:
    image, _ = wear(demo)
    orange = is_orange(image).astype(np.uint8)
    count, labels, stats, centres = cv2.connectedComponentsWithStats(
        cv2.morphologyEx(orange, cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8))
    )
    large = [k for k in range(1, count) if stats[k, cv2.CC_STAT_AREA] > 200]
    assert len(large) == 2
    left, right = sorted(large, key=lambda k: centres[k][0])
    assert abs(stats[left, cv2.CC_STAT_WIDTH] - stats[right, cv2.CC_STAT_WIDTH]) < 0.3 * max(
        stats[left, cv2.CC_STAT_WIDTH], stats[right, cv2.CC_STAT_WIDTH]
    )
    for k, is_toe_left in ((left, True), (right, False)):
        x, y, width, height, _ = stats[k]
        top_x = np.nonzero(labels[y : y + height // 3] == k)[1].mean()
        low_x = np.nonzero(labels[y + 2 * height // 3 : y + height] == k)[1].mean()
        assert (low_x < top_x) == is_toe_left


def test_demo_shoes_cover_the_old_ones_down_to_the_sole(demo: ExpertRequest) -> None:
    image, _ = wear(demo)
    old = (demo.crop_hwc.min(-1) > 225) & (demo.region_hw > 0)
    assert old.sum() > 400
    assert (old & (image == demo.crop_hwc).all(-1)).sum() < 0.15 * old.sum()
    change = np.abs(image.astype(int) - demo.crop_hwc).max(-1)
    for half in np.array_split(np.arange(old.shape[1]), 2):
        lowest = [np.nonzero(at[:, half])[0].max() for at in (old, change > 40)]
        assert -2 <= lowest[1] - lowest[0] < 14


def test_demo_is_repeatable(demo: ExpertRequest) -> None:
    first = wear(demo)[0]
    second = wear(demo)[0]
    assert first.tobytes() == second.tobytes()
