"""Glasses land on the eyes, follow the head, and touch nothing outside the region."""

import cv2
import numpy as np
import pytest

from deployments.backends.warp.cutout import cut_out
from deployments.backends.warp.eyewear import wear_eyewear
from deployments.backends.warp.lenses import find_lenses
from deployments.backends.warp.spectacles import read_spectacles
from serve.demo.cases import demo_cases
from serve.messages import ExpertRequest, Landmarks, UInt8Array
from tests.warp_scenes import (
    FRAME,
    SIDE,
    SKIN,
    draw_face,
    draw_glasses,
    draw_turned_glasses,
    eye_band,
    make_request,
)


def wear(request: ExpertRequest) -> tuple[UInt8Array, UInt8Array]:
    return wear_eyewear(request, np.random.default_rng(request.seed))


def request_for(product: UInt8Array, roll_deg: float = 0.0) -> ExpertRequest:
    crop, landmarks, silhouette = draw_face(roll_deg)
    return make_request(crop, eye_band(roll_deg), product, landmarks, silhouette)


def with_alpha(image: UInt8Array) -> UInt8Array:
    return np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])


def is_red(image: UInt8Array) -> np.ndarray:
    red, green, blue = np.moveaxis(image.astype(int), -1, 0)
    return (red > 110) & (green < 62) & (blue < 75)


def lens_centres(image: UInt8Array) -> np.ndarray:
    """Centres of the two largest holes in the red frame, left one first."""
    frame = is_red(image).astype(np.uint8)
    contours, tree = cv2.findContours(frame, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    holes = [c for c, node in zip(contours, tree[0], strict=True) if node[3] >= 0]
    two = sorted(holes, key=cv2.contourArea)[-2:]
    centres = [
        np.divide(cv2.boundingRect(c)[:2], 1) + np.divide(cv2.boundingRect(c)[2:], 2) for c in two
    ]
    return np.array(sorted(centres, key=lambda centre: centre[0]))


@pytest.mark.parametrize(
    "product", [draw_glasses(), draw_turned_glasses()], ids=["front", "turned"]
)
def test_lens_centres_land_on_the_eyes(product: UInt8Array) -> None:
    image, _ = wear(request_for(product))
    eyes = np.array([(155.0, 190.0), (245.0, 190.0)])
    off = np.linalg.norm(lens_centres(image) - eyes, axis=1)
    assert off.max() < 0.05 * 90 + 1, off


@pytest.mark.parametrize("roll_deg", [-20.0, 20.0])
def test_glasses_follow_the_roll_of_the_head(roll_deg: float) -> None:
    request = request_for(draw_glasses(), roll_deg)
    left, right = lens_centres_rolled(wear(request)[0], roll_deg)
    eyes = np.array([request.landmarks.points[name] for name in ("right_eye", "left_eye")])
    assert np.linalg.norm(np.array([left, right]) - eyes, axis=1).max() < 0.05 * 90 + 1.5
    angle = np.degrees(np.arctan2(*(right - left)[::-1]))
    assert angle == pytest.approx(-roll_deg, abs=2.0)


def lens_centres_rolled(image: UInt8Array, roll_deg: float) -> np.ndarray:
    matrix = cv2.getRotationMatrix2D((SIDE / 2, SIDE / 2), -roll_deg, 1.0)
    upright = lens_centres(cv2.warpAffine(image, matrix, (SIDE, SIDE)))
    back = cv2.invertAffineTransform(matrix)
    return upright @ back[:, :2].T + back[:, 2]


def test_nothing_outside_the_region_changes() -> None:
    request = request_for(draw_turned_glasses())
    request.region_hw[:, 260:] = 0
    image, alpha = wear(request)
    outside = request.region_hw == 0
    assert (image[outside] == request.crop_hwc[outside]).all()
    assert (alpha[outside] == 0).all()
    assert (image[alpha == 0] == request.crop_hwc[alpha == 0]).all()
    assert (alpha > 0).sum() > 2000


def test_same_request_gives_the_same_bytes() -> None:
    first, second = (wear(request_for(draw_turned_glasses())) for _ in range(2))
    assert first[0].tobytes() == second[0].tobytes()
    assert first[1].tobytes() == second[1].tobytes()


def test_without_landmarks_glasses_fill_the_band_the_caller_drew() -> None:
    crop, _, _ = draw_face()
    image, _ = wear(make_request(crop, eye_band(), draw_glasses()))
    ys, xs = np.nonzero(is_red(image))
    assert np.mean(xs) == pytest.approx(200, abs=4)
    assert np.mean(ys) == pytest.approx(200, abs=12)
    assert 0.6 * 250 < np.ptp(xs) <= 250


def test_face_box_alone_places_the_eyes() -> None:
    crop, landmarks, silhouette = draw_face()
    box_only = Landmarks({}, landmarks.face)
    image, _ = wear(make_request(crop, eye_band(), draw_glasses(), box_only, silhouette))
    eyes = np.array([(155.0, 190.0), (245.0, 190.0)])
    assert np.linalg.norm(lens_centres(image) - eyes, axis=1).max() < 0.15 * 90


def test_glasses_are_no_rectangle_and_bring_no_white_along() -> None:
    request = request_for(draw_turned_glasses())
    image, alpha = wear(request)
    painted = image[alpha > 0].astype(int)
    new_white = (painted.min(-1) > 225) & (request.crop_hwc[alpha > 0].min(-1) < 200)
    assert new_white.mean() < 0.004
    _, _, width, height = cv2.boundingRect(is_red(image).astype(np.uint8))
    assert is_red(image).sum() < 0.62 * width * height


def test_eyes_shine_through_tinted_lenses_a_little() -> None:
    request = request_for(draw_glasses())
    bright = request_for(draw_glasses())
    cv2.circle(bright.crop_hwc, (155, 190), 14, (255, 255, 255), -1)
    change = wear(bright)[0][190, 155].astype(int) - wear(request)[0][190, 155]
    change_below = bright.crop_hwc[190, 155].astype(int) - request.crop_hwc[190, 155]
    assert 0.1 < change.mean() / change_below.mean() < 0.3


@pytest.mark.parametrize(
    "product", [draw_glasses(), draw_turned_glasses()], ids=["front", "turned"]
)
def test_clear_lenses_show_the_eyes(product: UInt8Array) -> None:
    product[product.max(-1) < 90] = 250
    request = request_for(product)
    image, _ = wear(request)
    assert is_red(image).sum() > 1500
    for x in (155, 245):
        iris = slice(186, 195), slice(x - 4, x + 5)
        change = np.abs(image[iris].astype(int) - request.crop_hwc[iris]).max()
        assert change < 60


def test_dark_scene_darkens_the_frame() -> None:
    day = request_for(draw_glasses())
    crop = (day.crop_hwc * 0.35).astype(np.uint8)
    night = make_request(crop, day.region_hw, draw_glasses(), day.landmarks, day.silhouette_hw)
    by_day, by_night = wear(day)[0], wear(night)[0]
    on_frame = is_red(by_day)
    assert by_night[on_frame].mean() < 0.75 * by_day[on_frame].mean()


def test_lenses_of_a_turned_pair_are_found_and_mirrored_into_a_front() -> None:
    cut = cut_out(with_alpha(draw_turned_glasses()))
    near, far = find_lenses(cut) or pytest.fail("no lenses")
    assert near.area_px > 1.2 * far.area_px
    glasses = read_spectacles(cut)
    assert glasses.temple is not None
    assert glasses.lens_a[1] == pytest.approx(glasses.lens_b[1])
    front = glasses.front_hwc[..., 3].astype(int)
    assert np.abs(front - front[:, ::-1]).mean() < 4


def test_product_shot_from_the_other_side_gives_the_same_front() -> None:
    cut = cut_out(with_alpha(draw_turned_glasses()))
    one, other = read_spectacles(cut), read_spectacles(np.ascontiguousarray(cut[:, ::-1]))
    assert one.lens_distance_px == pytest.approx(other.lens_distance_px, rel=0.03)
    assert other.temple is not None


def test_frame_and_lenses_of_one_black_are_worn_whole() -> None:
    glasses = draw_glasses()
    glasses[(glasses.astype(int) != 250).any(-1)] = (18, 18, 20)
    image, _ = wear(request_for(glasses))
    dark = image.max(-1) < 60
    dark &= draw_face()[0].max(-1) > 90
    ys, xs = np.nonzero(dark)
    assert np.mean(xs) == pytest.approx(200, abs=6)
    assert np.ptp(xs) > 1.6 * 90


def test_temple_shows_only_on_the_side_the_head_turns_away_from() -> None:
    crop, landmarks, silhouette = draw_face()
    cv2.ellipse(crop, (88, 205), (16, 30), 0, 0, 360, SKIN, -1)
    points = dict(landmarks.points) | {"nose": (226.0, 243.0)}
    region = np.full((SIDE, SIDE), 255, np.uint8)
    request = make_request(crop, region, draw_turned_glasses(), Landmarks(points), silhouette)
    xs = np.nonzero(is_red(wear(request)[0]))[1]
    assert 200 - xs.min() > xs.max() - 200 + 10


def test_frame_colour_is_the_products() -> None:
    image, _ = wear(request_for(draw_glasses()))
    median = np.median(image[is_red(image)], axis=0)
    assert np.abs(median - FRAME).max() < 45


def test_landmarks_on_one_spot_fall_back_to_the_region() -> None:
    crop, _, _ = draw_face()
    spot = Landmarks({"left_eye": (10.0, 10.0), "right_eye": (10.0, 10.0)})
    image, _ = wear(make_request(crop, eye_band(), draw_glasses(), spot))
    assert np.nonzero(is_red(image))[1].mean() == pytest.approx(200, abs=4)


def test_highlight_across_one_lens_does_not_turn_a_front_view_away() -> None:
    case = next(case for case in demo_cases() if case.expert == "eye")
    encoded = np.fromfile(case.product_path, np.uint8)
    bgra = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
    glasses = read_spectacles(
        cut_out(np.asarray(cv2.cvtColor(bgra, cv2.COLOR_BGRA2RGBA), np.uint8))
    )
    assert glasses.temple is None
    middle = (glasses.lens_a[0] + glasses.lens_b[0]) / 2
    width_px = glasses.front_hwc.shape[1]
    assert middle == pytest.approx(width_px / 2, abs=0.02 * width_px)
    assert 0.35 * width_px < glasses.lens_distance_px < 0.6 * width_px
