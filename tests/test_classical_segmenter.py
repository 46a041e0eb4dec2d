"""The classical masker on pictures without a person, on caching, and on the sample persons."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from deployments.segmenters.classical.segmenter import ClassicalSegmenter
from serve.errors import SubjectNotFound
from serve.messages import EXPERTS, Expert, SegmentReply, SegmentRequest, UInt8Array

SAMPLES = Path(__file__).parents[2] / "shared" / "samples"
ASSETS = Path(__file__).parents[1] / "serve" / "demo" / "assets"
WITH_FACE = ("top_1", "top_3", "bottom_1", "dress_1", "eye_1", "eye_2") + (
    *("face_1", "face_3", "shoes_1", "shoes_2"),
)
WITHOUT_FACE = ("bottom_4", "dress_2")
WITH_LEGS = ("top_1", "top_3", "bottom_1", "bottom_4", "dress_1", "dress_2", "shoes_1", "shoes_2")
WITH_FEET = ("top_1", "shoes_1", "bottom_1", "shoes_2")
EVERYBODY = WITH_FACE + WITHOUT_FACE

# Middle between the eyes, and how far off it may be, as fractions of the picture's width.
EYES: dict[str, tuple[float, float, float]] = {
    "top_1": (0.472, 0.673, 0.03),
    "top_3": (0.505, 0.409, 0.03),
    "bottom_1": (0.459, 0.111, 0.035),
    "dress_1": (0.452, 0.211, 0.04),
    "eye_1": (0.556, 0.445, 0.06),
    "eye_2": (0.490, 0.421, 0.05),
    "face_1": (0.553, 0.497, 0.05),
    "face_3": (0.433, 0.467, 0.05),
    "shoes_1": (0.472, 0.673, 0.03),
    "shoes_2": (0.49, 0.432, 0.03),
}


def _gradient() -> UInt8Array:
    column = np.linspace(0, 255, 480).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(column[:, None, None], (480, 320, 3)))


def _noise() -> UInt8Array:
    return np.random.default_rng(0).integers(0, 255, (480, 320, 3), np.uint8)


def _plain() -> UInt8Array:
    return np.full((480, 320, 3), (180, 140, 120), np.uint8)


def _bricks() -> UInt8Array:
    wall = np.full((480, 320, 3), (190, 90, 60), np.uint8)
    wall[::24] = wall[1::24] = 120
    for row in range(0, 480, 24):
        wall[row : row + 24, (row // 24 % 2) * 24 :: 48] = 120
    return wall


NOBODY: dict[str, Callable[[], UInt8Array]] = {
    "gradient": _gradient,
    "noise": _noise,
    "plain": _plain,
    "bricks": _bricks,
}


@pytest.fixture(scope="module")
def segmenter() -> ClassicalSegmenter:
    built = ClassicalSegmenter(64 * 2**20)
    built.load()
    return built


def _request(image: UInt8Array, expert: Expert, content_hash: str) -> SegmentRequest:
    return SegmentRequest(image, expert, content_hash)


def _sample(name: str, file: str = "person.jpg") -> UInt8Array:
    path = SAMPLES / name / file
    if not path.is_file():
        pytest.skip(f"no sample {name}")
    return np.asarray(cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB), np.uint8)


def _find(segmenter: ClassicalSegmenter, names: tuple[str, ...], expert: Expert) -> dict[str, bool]:
    found = {}
    for name in names:
        (outcome,) = segmenter.segment([_request(_sample(name), expert, name)])
        found[name] = isinstance(outcome, SegmentReply)
    return found


@pytest.mark.parametrize("kind", NOBODY)
def test_picture_without_a_person_is_refused_for_every_expert(
    segmenter: ClassicalSegmenter, kind: str
) -> None:
    batch = [_request(NOBODY[kind](), expert, kind) for expert in EXPERTS]
    for outcome in segmenter.segment(batch):
        assert isinstance(outcome, SubjectNotFound)
        assert "no person found" in outcome.detail
        assert "mask" in outcome.remedy


def test_failure_is_cached_as_a_fresh_error(segmenter: ClassicalSegmenter) -> None:
    first = segmenter.segment([_request(_plain(), "top", "again")])[0]
    second = segmenter.segment([_request(_plain(), "top", "again")])[0]
    assert isinstance(second, SubjectNotFound)
    assert first is not second


@pytest.mark.parametrize("name", ["bottom_1", "dress_2", "eye_1", "shoes_2", "top_1", "top_3"])
def test_product_on_its_own_is_nobody(segmenter: ClassicalSegmenter, name: str) -> None:
    image = _sample(name, "product.jpg")
    scale = min(1.0, 1024 / max(image.shape))
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    (outcome,) = segmenter.segment([_request(np.asarray(small, np.uint8), "top", f"p-{name}")])
    assert isinstance(outcome, SubjectNotFound)


def test_second_expert_on_the_same_person_comes_from_the_cache() -> None:
    image = _sample("top_1")
    segmenter = ClassicalSegmenter(64 * 2**20)
    segmenter.load()
    first, twin = segmenter.segment([_request(image, "eye", "a"), _request(image, "top", "a")])
    (second,) = segmenter.segment([_request(image, "bottom", "a")])
    assert isinstance(first, SegmentReply)
    assert isinstance(twin, SegmentReply)
    assert isinstance(second, SegmentReply)
    assert (first.cached, twin.cached, second.cached) == (False, False, True)
    assert (first.batch_size, second.batch_size) == (2, 1)
    assert first.silhouette_hw is twin.silhouette_hw is second.silhouette_hw


def test_copies_of_two_sizes_are_two_analyses() -> None:
    fresh = ClassicalSegmenter(2**26)
    fresh.load()
    small = _demo("person_portrait")
    large = np.asarray(cv2.resize(small, None, fx=1.5, fy=1.5), np.uint8)
    first, second = fresh.segment([_request(large, "top", "a"), _request(small, "top", "a")])
    assert isinstance(first, SegmentReply)
    assert isinstance(second, SegmentReply)
    assert first.region_hw.shape == large.shape[:2]
    assert second.region_hw.shape == small.shape[:2]


def test_without_room_nothing_is_cached() -> None:
    image = _sample("top_1")
    segmenter = ClassicalSegmenter(0)
    segmenter.load()
    for _ in range(2):
        (reply,) = segmenter.segment([_request(image, "top", "a")])
        assert isinstance(reply, SegmentReply)
        assert not reply.cached


def test_same_picture_gives_the_same_arrays_in_fresh_segmenters() -> None:
    image = _sample("eye_2")
    replies = []
    for _ in range(2):
        segmenter = ClassicalSegmenter(0)
        segmenter.load()
        cv2.setRNGSeed(len(replies))  # whatever state OpenCV's generator is in must not matter
        (reply,) = segmenter.segment([_request(image, "top", "a")])
        assert isinstance(reply, SegmentReply)
        replies.append(reply)
    one, other = replies
    assert np.array_equal(one.silhouette_hw, other.silhouette_hw)
    assert np.array_equal(one.region_hw, other.region_hw)
    assert one.landmarks == other.landmarks


@pytest.mark.parametrize("expert", ["eye", "face"])
def test_visible_faces_are_found(segmenter: ClassicalSegmenter, expert: Expert) -> None:
    found = _find(segmenter, WITH_FACE, expert)
    assert all(found.values()), found


@pytest.mark.parametrize("expert", ["eye", "face"])
def test_face_under_a_hat_is_refused(segmenter: ClassicalSegmenter, expert: Expert) -> None:
    assert not any(_find(segmenter, WITHOUT_FACE, expert).values())


@pytest.mark.parametrize("name", EYES)
def test_eyes_lie_where_they_are(segmenter: ClassicalSegmenter, name: str) -> None:
    image = _sample(name)
    (reply,) = segmenter.segment([_request(image, "eye", name)])
    assert isinstance(reply, SegmentReply)
    points, width = reply.landmarks.points, image.shape[1]
    middle = (np.array(points["left_eye"]) + np.array(points["right_eye"])) / 2 / width
    x, y, tolerance = EYES[name]
    assert np.abs(middle - (x, y)).max() < tolerance
    assert points["left_eye"][0] > points["right_eye"][0]
    assert reply.region_hw[round(middle[1] * width), round(middle[0] * width)] == 255


@pytest.mark.parametrize("expert", ["top", "dress", "bg"])
def test_everybody_has_a_torso_and_a_background(
    segmenter: ClassicalSegmenter, expert: Expert
) -> None:
    found = _find(segmenter, EVERYBODY, expert)
    assert all(found.values()), found


def test_legs_are_found_where_they_are_visible(segmenter: ClassicalSegmenter) -> None:
    assert all(_find(segmenter, WITH_LEGS, "bottom").values())
    assert not any(_find(segmenter, ("eye_1", "eye_2", "face_1", "face_3"), "bottom").values())


def test_feet_are_found_where_they_are_visible(segmenter: ClassicalSegmenter) -> None:
    assert all(_find(segmenter, WITH_FEET, "shoes").values())
    without = tuple(name for name in EVERYBODY if name not in WITH_FEET)
    assert not any(_find(segmenter, without, "shoes").values())


@pytest.mark.parametrize("name", EVERYBODY)
def test_regions_are_binary_and_background_spares_the_person(
    segmenter: ClassicalSegmenter, name: str
) -> None:
    image = _sample(name)
    for outcome in segmenter.segment([_request(image, expert, name) for expert in EXPERTS[:-1]]):
        if isinstance(outcome, SegmentReply):
            assert outcome.region_hw.shape == image.shape[:2]
            assert set(np.unique(outcome.region_hw)) <= {0, 255}
            assert 0.0005 < float((outcome.region_hw > 0).mean()) < 0.95
    (reply,) = segmenter.segment([_request(image, "bg", name)])
    assert isinstance(reply, SegmentReply)
    assert not reply.region_hw[reply.silhouette_hw == 255].any()
    assert reply.region_hw.max() == 255


def _demo(name: str) -> UInt8Array:
    image = cv2.imread(str(ASSETS / f"{name}.jpg"))
    assert image is not None
    scale = min(1.0, 1024 / max(image.shape[:2]))
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return np.asarray(small[..., ::-1].copy(), np.uint8)


def _reply(segmenter: ClassicalSegmenter, name: str, expert: Expert) -> SegmentReply:
    (reply,) = segmenter.segment([_request(_demo(name), expert, name)])
    assert isinstance(reply, SegmentReply)
    return reply


def test_head_and_neck_are_never_background(segmenter: ClassicalSegmenter) -> None:
    reply = _reply(segmenter, "person_portrait", "bg")
    for name in ("forehead", "left_eye", "right_eye", "nose", "mouth", "chin", "neck"):
        x, y = (round(value) for value in reply.landmarks.points[name])
        assert not reply.region_hw[y - 2 : y + 3, x - 2 : x + 3].any(), name


def test_silhouette_has_no_specks_of_background_inside(segmenter: ClassicalSegmenter) -> None:
    reply = _reply(segmenter, "person_portrait", "bg")
    outside = (reply.silhouette_hw < 128).astype(np.uint8)
    _, _, stats, _ = cv2.connectedComponentsWithStats(outside, connectivity=4)
    assert len(stats) == 2 or stats[1:, cv2.CC_STAT_AREA].min() > 0.002 * outside.size


@pytest.mark.parametrize("spot", [(0.03, 0.3), (0.08, 0.5), (0.84, 0.82), (0.76, 0.3)])
def test_flag_helmet_and_rocket_are_background(
    segmenter: ClassicalSegmenter, spot: tuple[float, float]
) -> None:
    region = _reply(segmenter, "person_portrait", "bg").region_hw
    assert region[round(spot[1] * region.shape[0]), round(spot[0] * region.shape[1])] == 255


def test_bottom_starts_at_the_hem_and_spares_the_hands(segmenter: ClassicalSegmenter) -> None:
    region = _reply(segmenter, "person_full", "bottom").region_hw > 0
    height, width = region.shape
    assert np.flatnonzero(region.any(axis=1))[0] / height == pytest.approx(0.475, abs=0.012)
    for x, y in ((0.27, 0.56), (0.73, 0.56)):
        assert not region[round(y * height), round(x * width)]
    assert region[round(0.6 * height)].sum() < 0.4 * width


def test_shoes_are_enclosed_from_cuff_to_sole(segmenter: ClassicalSegmenter) -> None:
    reply = _reply(segmenter, "person_full", "shoes")
    height, width = reply.region_hw.shape
    for x, y in ((0.33, 0.955), (0.45, 0.92), (0.56, 0.92), (0.66, 0.955)):
        assert reply.region_hw[round(y * height), round(x * width)], (x, y)
    for x, y in ((0.40, 0.945), (0.61, 0.945)):
        assert reply.silhouette_hw[round(y * height), round(x * width)] == 255, (x, y)


@pytest.mark.parametrize("expert", ["top", "dress"])
def test_garments_take_no_flag_and_no_helmet(segmenter: ClassicalSegmenter, expert: Expert) -> None:
    region = _reply(segmenter, "person_portrait", expert).region_hw
    height, width = region.shape
    for x, y in ((0.03, 0.4), (0.08, 0.45), (0.84, 0.82)):
        assert not region[round(y * height), round(x * width)], (x, y)
    assert region[round(0.7 * height), round(0.35 * width)] == 255
