"""Body points and regions of a drawn figure, whose every limb is where the drawing put it."""

import cv2
import numpy as np
import pytest

from deployments.cache import ByteCache
from deployments.segmenters.classical.barrier import barrier_distance
from deployments.segmenters.classical.body import read_body
from deployments.segmenters.classical.figure import SOLE, Figure, build_figure
from deployments.segmenters.classical.headmarks import Head
from deployments.segmenters.classical.outline import read_outline
from deployments.segmenters.classical.person import Person
from deployments.segmenters.classical.regions import draw_region
from serve.errors import SubjectNotFound
from serve.messages import EXPERTS, Landmarks, UInt8Array

UNIT = 60.0
EYES = (240.0, 100.0)
HEIGHT, WIDTH = 680, 480


def _head(roll: float = 0.0, turn: float = 0.0) -> Head:
    reach = 0.2 * UNIT * np.array([np.cos(np.radians(roll)), np.sin(np.radians(roll))])
    eye_a, eye_b = np.array(EYES) - reach, np.array(EYES) + reach
    return Head((eye_a[0], eye_a[1]), (eye_b[0], eye_b[1]), UNIT, roll, turn)


def _silhouette(height: int = HEIGHT, raised_px: int = 0) -> UInt8Array:
    """A figure from the front, legs apart, its left foot raised by so many pixels."""
    mask = np.zeros((height, WIDTH), np.uint8)
    figure = Figure(EYES, EYES[0], UNIT)

    def box(left: float, top: float, right: float, bottom: float, lift: int = 0) -> None:
        (x0, y0), (x1, y1) = figure.at(left, top), figure.at(right, bottom)
        cv2.rectangle(mask, (round(x0), round(y0)), (round(x1), round(y1) - lift), 255, -1)

    cv2.ellipse(mask, ((EYES[0], EYES[1] + 5), (UNIT, 1.4 * UNIT), 0), 255, -1)
    box(-0.25, 0.6, 0.25, 1.2)
    box(-1.1, 1.15, 1.1, 1.8)
    box(-0.8, 1.3, 0.8, 4.4)
    box(-1.25, 1.3, -1.0, 3.9)
    box(1.0, 1.3, 1.25, 3.9)
    box(-0.8, 4.3, -0.2, SOLE)
    box(0.2, 4.3, 0.8, SOLE, raised_px)
    box(-1.0, SOLE - 0.3, -0.2, SOLE)
    (x0, y0), (x1, y1) = figure.at(0.2, SOLE - 0.3), figure.at(1.0, SOLE)
    top, bottom = (round(y0) - raised_px, round(y1) - raised_px)
    cv2.rectangle(mask, (round(x0), top), (round(x1), bottom), 255, -1)
    return mask


def _person(silhouette: UInt8Array, head: Head | None) -> Person:
    figure = Figure(EYES, EYES[0], UNIT) if head is None else build_figure(head)
    body = read_body(silhouette, read_outline(silhouette, figure), figure)
    points = body.points if head is None else {**body.points, **head.points()}
    return Person(silhouette, np.zeros_like(silhouette), body, head, Landmarks(points))


@pytest.fixture
def standing() -> Person:
    return _person(_silhouette(), _head())


def _covers(region: UInt8Array, spot: tuple[float, float]) -> bool:
    return bool(region[round(spot[1]), round(spot[0])])


def test_sides_are_the_persons_own(standing: Person) -> None:
    points = standing.landmarks.points
    for joint in ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle", "toe"):
        assert points[f"left_{joint}"][0] > points[f"right_{joint}"][0], joint


def test_joints_come_in_anatomical_order(standing: Person) -> None:
    points = standing.landmarks.points
    order = ["forehead", "left_eye", "nose", "mouth", "chin", "neck", "left_shoulder", "left_hip"]
    order += ["left_knee", "left_ankle", "left_toe"]
    rows = [points[name][1] for name in order]
    assert rows == sorted(rows)


def test_crotch_is_where_the_legs_part(standing: Person) -> None:
    expected = EYES[1] + 4.4 * UNIT
    assert abs(standing.landmarks.points["crotch"][1] - expected) < 0.2 * UNIT


def test_eye_band_follows_the_tilt_of_the_head() -> None:
    person = _person(_silhouette(), _head(roll=25.0))
    region = draw_region(person, "eye", 0.0)
    for name in ("left_eye", "right_eye"):
        assert _covers(region, person.landmarks.points[name])
    (_, _), (width, height), angle = cv2.minAreaRect(cv2.findNonZero(region))
    along = angle if width > height else angle - 90
    assert abs((along - 25.0 + 90.0) % 180.0 - 90.0) < 3.0


def test_face_holds_the_features_and_not_the_hair(standing: Person) -> None:
    region = draw_region(standing, "face", 0.0)
    points = standing.landmarks.points
    for name in ("nose", "mouth", "left_eye", "right_eye"):
        assert _covers(region, points[name])
    assert not _covers(region, (EYES[0], EYES[1] - 0.6 * UNIT))
    assert not _covers(region, points["neck"])


def test_garments_spare_the_face(standing: Person) -> None:
    face = draw_region(standing, "face", 0.0) > 0
    for expert in ("top", "bottom", "dress", "shoes"):
        region = draw_region(standing, expert, 0.0) > 0
        assert float((region & face).sum()) < 0.02 * float(face.sum()), expert


def test_top_covers_shoulders_to_hips_and_no_knee(standing: Person) -> None:
    region = draw_region(standing, "top", 0.0)
    points = standing.landmarks.points
    for name in ("left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_hip"):
        assert _covers(region, points[name]), name
    assert not _covers(region, points["left_knee"])


def test_bottom_spans_the_gap_between_the_legs_and_spares_the_toes(standing: Person) -> None:
    region = draw_region(standing, "bottom", 0.0)
    points = standing.landmarks.points
    assert _covers(region, (EYES[0], points["left_knee"][1]))
    assert _covers(region, points["left_knee"])
    assert not _covers(region, (points["left_toe"][0], points["left_toe"][1] - 2))


def test_dress_ends_between_knee_and_ankle(standing: Person) -> None:
    rows = np.flatnonzero(draw_region(standing, "dress", 0.0).any(axis=1))
    points = standing.landmarks.points
    assert points["left_knee"][1] < rows[-1] < points["left_ankle"][1] + 0.3 * UNIT


def test_shoes_cover_both_feet_and_no_knee(standing: Person) -> None:
    region = draw_region(standing, "shoes", 0.0)
    points = standing.landmarks.points
    for name in ("left_toe", "left_heel", "right_toe", "right_heel"):
        assert _covers(region, points[name]), name
    assert not _covers(region, points["left_knee"])
    assert cv2.connectedComponents(region)[0] - 1 in (1, 2)


def test_raised_foot_is_found_where_it_is() -> None:
    person = _person(_silhouette(raised_px=45), _head())
    points = person.landmarks.points
    assert points["right_toe"][1] - points["left_toe"][1] == pytest.approx(45, abs=4)
    region = draw_region(person, "shoes", 0.0)
    assert _covers(region, (points["left_toe"][0], points["left_toe"][1] - 8))


@pytest.mark.parametrize(("rows", "expert"), [(560, "shoes"), (300, "bottom"), (300, "shoes")])
def test_part_cut_off_by_the_border_is_refused_with_a_remedy(rows: int, expert: str) -> None:
    person = _person(_silhouette(HEIGHT)[:rows].copy(), _head())
    (known,) = (name for name in EXPERTS if name == expert)
    with pytest.raises(SubjectNotFound) as caught:
        draw_region(person, known, 0.0)
    assert "own mask" in caught.value.remedy


@pytest.mark.parametrize("expert", ["eye", "face"])
def test_without_a_head_face_experts_refuse_and_others_work(expert: str) -> None:
    person = _person(_silhouette(), None)
    (known,) = (name for name in EXPERTS if name == expert)
    with pytest.raises(SubjectNotFound, match="covered or turned away"):
        draw_region(person, known, 0.0)
    assert draw_region(person, "top", 0.0).any()


def test_background_is_zero_on_the_person_and_soft_beside(standing: Person) -> None:
    region = draw_region(standing, "bg", 0.0)
    assert not region[standing.silhouette_hw == 255].any()
    assert region[5, 5] == 255
    assert ((region > 0) & (region < 255)).any()


def test_dilation_grows_the_region(standing: Person) -> None:
    plain = draw_region(standing, "eye", 0.0) > 0
    grown = draw_region(standing, "eye", 0.2) > 0
    assert grown[plain].all()
    assert grown.sum() > 1.2 * plain.sum()


def test_barrier_is_zero_until_an_edge_is_crossed() -> None:
    lab = np.full((60, 60, 3), 128, np.uint8)
    cv2.rectangle(lab, (20, 20), (40, 40), (200, 128, 128), -1)
    seeds = np.zeros((60, 60), np.bool_)
    seeds[0] = True
    distance = barrier_distance(lab, seeds)
    assert float(distance[50, 5]) < 2.0
    assert float(distance[30, 30]) > 60.0


class _Entry:
    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes


def test_cache_forgets_the_least_recently_used_first() -> None:
    cache: ByteCache[_Entry] = ByteCache(100)
    cache.put("a", _Entry(40))
    cache.put("b", _Entry(40))
    assert cache.get("a") is not None
    cache.put("c", _Entry(40))
    assert cache.get("b") is None
    assert cache.get("a") is not None
    assert cache.held_bytes == 80


def test_cache_does_not_hold_what_is_larger_than_itself() -> None:
    cache: ByteCache[_Entry] = ByteCache(100)
    cache.put("a", _Entry(40))
    cache.put("a", _Entry(101))
    assert len(cache) == 0
    assert cache.held_bytes == 0
