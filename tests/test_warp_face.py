"""The product's features sit in the person's face; hair, head and scene stay the person's."""

import numpy as np
import pytest

from deployments.backends.warp.face import swap_face
from serve.errors import SubjectNotFound
from serve.messages import ExpertRequest, Landmarks, UInt8Array
from tests.warp_scenes import HAIR, SIDE, draw_face, make_request

FAIR, GREY = (226, 190, 168), (120, 130, 140)


def swap(request: ExpertRequest) -> tuple[UInt8Array, UInt8Array]:
    return swap_face(request, np.random.default_rng(request.seed))


def face_region() -> UInt8Array:
    region = np.zeros((SIDE, SIDE), np.uint8)
    y, x = np.ogrid[:SIDE, :SIDE]
    region[((x - 200) / 112) ** 2 + ((y - 205) / 145) ** 2 < 1] = 255
    return region


def request_for(landmarks: Landmarks | None = None, roll_deg: float = 0.0) -> ExpertRequest:
    crop, own, silhouette = draw_face()
    product, product_landmarks, _ = draw_face(
        roll_deg, FAIR, iris=(30, 60, 220), lips=(120, 20, 150)
    )
    return make_request(
        crop, face_region(), product, landmarks or own, silhouette, product_landmarks
    )


@pytest.mark.parametrize("roll_deg", [0.0, 15.0])
def test_features_of_the_product_land_on_the_persons(roll_deg: float) -> None:
    image, _ = swap(request_for(roll_deg=roll_deg))
    for x in (155, 245):
        red, _, blue = image[185:195, x - 4 : x + 5].astype(int).reshape(-1, 3).mean(0)
        assert blue > red + 25, "the product's eyes are blue"
    red, green, blue = image[283:288, 190:210].reshape(-1, 3).mean(0)
    assert blue > green + 40, "the product's lips are purple"


def test_only_the_inner_face_changes() -> None:
    request = request_for()
    image, alpha = swap(request)
    outside = request.region_hw == 0
    assert (image[outside] == request.crop_hwc[outside]).all()
    assert (alpha[outside] == 0).all()
    assert (image[alpha == 0] == request.crop_hwc[alpha == 0]).all()
    ys, xs = np.nonzero(alpha)
    assert xs.min() > 104
    assert xs.max() < 296
    assert ys.min() > 100
    assert ys.max() < 336
    assert (alpha > 0).sum() > 15000


def test_hair_over_the_forehead_stays() -> None:
    request = request_for()
    request.crop_hwc[90:165, 120:190] = HAIR
    image, _ = swap(request)
    kept = np.abs(image[100:140, 130:180].astype(int) - HAIR).max(-1) < 25
    assert kept.mean() > 0.95


def test_skin_takes_the_persons_tone_and_light() -> None:
    request = request_for()
    image, _ = swap(request)
    cheek = image[230:250, 140:170].reshape(-1, 3).mean(0)
    person = request.crop_hwc[230:250, 140:170].reshape(-1, 3).mean(0)
    product = request.product_hwc[230:250, 140:170, :3].reshape(-1, 3).mean(0)
    assert np.abs(cheek - person).max() < 8 < np.abs(product - person).max()


def test_backdrop_of_the_portrait_stays_out() -> None:
    request = request_for()
    product = request.product_hwc
    product[:, 262:, :3] = GREY
    product[:, :60, :3] = GREY
    product[:60, :, :3] = GREY
    image, alpha = swap(request)
    painted = image[alpha > 0].astype(int)
    assert (np.abs(painted - GREY).max(-1) < 20).mean() < 0.01


def test_product_without_a_face_is_refused_with_a_remedy() -> None:
    crop, landmarks, silhouette = draw_face()
    request = make_request(crop, face_region(), crop, landmarks, silhouette)
    with pytest.raises(SubjectNotFound, match="no face found in the product picture") as caught:
        swap(request)
    assert caught.value.remedy


def test_without_landmarks_the_region_is_taken_for_the_face() -> None:
    crop, _, _ = draw_face()
    product, product_landmarks, _ = draw_face(0.0, FAIR, lips=(120, 20, 150))
    request = make_request(crop, face_region(), product, product_landmarks=product_landmarks)
    image, alpha = swap(request)
    assert (alpha > 0).sum() > 12000
    purple = (image[..., 2].astype(int) > image[..., 1].astype(int) + 40) & (alpha > 0)
    ys, xs = np.nonzero(purple)
    assert np.mean(xs) == pytest.approx(200, abs=6)
    assert np.mean(ys) == pytest.approx(285, abs=25)


def test_misplaced_mouth_does_not_fold_the_face() -> None:
    crop, landmarks, _ = draw_face()
    points = dict(landmarks.points) | {"mouth": (225.0, 262.0)}
    image, _ = swap(request_for(Landmarks(points, landmarks.face)))
    assert np.isfinite(image).all()
    purple = (image[..., 2].astype(int) > image[..., 1].astype(int) + 40)[200:340]
    ys, xs = np.nonzero(purple)
    assert np.ptp(xs) < 110
    assert np.ptp(ys) < 60


def test_same_request_gives_the_same_bytes() -> None:
    first, second = (swap(request_for()) for _ in range(2))
    assert first[0].tobytes() == second[0].tobytes()
    assert first[1].tobytes() == second[1].tobytes()


def test_empty_region_changes_nothing() -> None:
    request = request_for()
    request.region_hw[:] = 0
    image, alpha = swap(request)
    assert (image == request.crop_hwc).all()
    assert not alpha.any()


def test_eyes_too_close_together_to_be_a_face_are_refused() -> None:
    request = request_for()
    tiny = Landmarks({"left_eye": (100.0, 100.0), "right_eye": (97.0, 100.0)})
    small = make_request(
        request.crop_hwc,
        request.region_hw,
        request.product_hwc,
        request.landmarks,
        product_landmarks=tiny,
    )
    with pytest.raises(SubjectNotFound, match="at least 8 pixels"):
        swap(small)


def test_small_face_in_a_large_portrait_is_scaled_without_the_rest_of_it() -> None:
    request = request_for()
    large = np.full((3000, 3000, 3), GREY, np.uint8)
    own = request.product_landmarks.transformed((0.1, 0.1), (1400.0, 1400.0))
    small = request.product_hwc[::10, ::10, :3]
    large[1400:1440, 1400:1440] = small
    image, alpha = swap(
        make_request(
            request.crop_hwc,
            request.region_hw,
            large,
            request.landmarks,
            request.silhouette_hw,
            own,
        )
    )
    assert (alpha > 0).sum() > 10000
