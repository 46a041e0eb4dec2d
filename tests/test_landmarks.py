"""Real keypoint classes from heatmap to region; which point is which is what the layout says."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient
from transformers.models.vitpose.image_processing_pil_vitpose import VitPoseImageProcessorPil

from deployments.maskers import LandmarksMasker
from deployments.segmenters import network
from deployments.segmenters.base import SegmenterPlan
from deployments.segmenters.landmarks.detector import choose_person, load_detector
from deployments.segmenters.landmarks.eyewear import POLYGON, eyewear_polygon
from deployments.segmenters.landmarks.heatmaps import cut_around, decode_heatmaps
from deployments.segmenters.landmarks.layouts import LAYOUTS, Points
from deployments.segmenters.landmarks.pose import Pose
from deployments.segmenters.landmarks.regions import draw_region, draw_silhouette
from deployments.segmenters.landmarks.segmenter import LandmarksSegmenter
from deployments.segmenters.network import Device
from deployments.segmenters.preprocessing import read_preprocessing
from deployments.segmenters.shapes import box_of, split
from deployments.sources import ModelSource
from serve.errors import BundleInvalid, NotSupported, SubjectNotFound
from serve.messages import LANDMARK_NAMES, Expert, SegmentReply, SegmentRequest, UInt8Array
from serve.schemas.tryon import TryOnAnswer
from tests.fakes import build_local_api
from tests.pictures import encoded, photo
from tests.tiny.landmarks import (
    POSE_SIZE,
    build_detector,
    build_rt_detr,
    build_sapiens_pose,
    build_vitpose,
)
from tests.tiny.segformer import build_segformer

GREY = 128
# The right ear is hidden: what covers its temple is geometry.
MARKS = {
    "nose": (255, 0, 0),
    "left_eye": (0, 255, 0),
    "right_eye": (0, 0, 255),
    "left_ear": (255, 255, 0),
    "left_ankle": (255, 0, 255),
    "right_ankle": (255, 255, 255),
    "left_knee": (0, 255, 255),
}
SPOTS = {
    "nose": (150.0, 140.0),
    "left_eye": (190.0, 80.0),
    "right_eye": (110.0, 80.0),
    "left_ear": (250.0, 90.0),
    "left_ankle": (205.0, 355.0),
    "right_ankle": (95.0, 355.0),
    "left_knee": (205.0, 255.0),
}
SPREAD_PX = 30


def marked(names: tuple[str, ...] = tuple(MARKS), shift: float = 0.0) -> UInt8Array:
    """A grey picture with a spot of its colour, fading outwards, on every named point."""
    image = np.full((400, 300, 3), float(GREY))
    rows, columns = np.indices(image.shape[:2])
    for name in names:
        x, y = SPOTS[name]
        away = np.hypot(columns - x - shift, rows - y)[..., None]
        share = np.clip(1.0 - away / SPREAD_PX, 0.0, 1.0)
        image += share * (np.array(MARKS[name]) - GREY)
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("landmarks") / "experts"
    colours = {LANDMARK_NAMES.index(name): colour for name, colour in MARKS.items()}
    build_vitpose(folder / "coco", 17, colours)
    build_detector(folder / "left", (0.25, 0.5, 0.5, 0.98))
    build_detector(folder / "blind", (0.25, 0.5, 0.5, 0.98), is_sure=False)
    return folder


@pytest.fixture(scope="module")
def segmenter(home: Path) -> LandmarksSegmenter:
    return loaded(home, "coco")


def loaded(
    home: Path, model: str, detector: str | None = None, points: Points = "coco17"
) -> LandmarksSegmenter:
    masker = LandmarksMasker(
        model=ModelSource(path=Path(model)),
        detector=None if detector is None else ModelSource(path=Path(detector)),
        points=points,
    )
    built = LandmarksSegmenter(masker, SegmenterPlan(2**24, home))
    built.load()
    return built


def request(image: UInt8Array, expert: Expert = "eye", dilation: float = 0.0) -> SegmentRequest:
    content = hashlib.sha256(image).hexdigest()
    return SegmentRequest(image, expert, content, dilation=dilation)


def replied(outcome: object) -> SegmentReply:
    assert isinstance(outcome, SegmentReply), outcome
    return outcome


def test_points_are_found_where_they_are_and_named_as_the_layout_says(
    segmenter: LandmarksSegmenter,
) -> None:
    found = replied(segmenter.segment([request(marked())])[0]).landmarks.points
    assert set(found) == set(MARKS)
    for name, spot in SPOTS.items():
        assert found[name] == pytest.approx(spot, abs=5.0), name


def test_point_that_is_not_there_is_absent(segmenter: LandmarksSegmenter) -> None:
    names = ("nose", "left_eye", "right_eye")
    found = replied(segmenter.segment([request(marked(names))])[0]).landmarks
    assert set(found.points) == set(names)
    assert found.face is not None


def test_batch_is_one_pass_and_equals_singles(home: Path) -> None:
    segmenter = loaded(home, "coco")
    passes: list[int] = []
    assert segmenter._estimator is not None
    segmenter._estimator._network.model.register_forward_hook(
        lambda module, args, kwargs, output: passes.append(len(kwargs["pixel_values"])),
        with_kwargs=True,
    )
    images = [marked(), marked(shift=20), np.ascontiguousarray(marked()[:380, :280])]
    together = segmenter.segment([*map(request, images), request(images[0], "shoes")])
    assert passes == [3]
    alone = loaded(home, "coco")
    for image, outcome in zip(images, together, strict=False):
        single = replied(alone.segment([request(image)])[0])
        assert (single.region_hw == replied(outcome).region_hw).all()
    assert replied(segmenter.segment([request(images[1], "face")])[0]).cached


def test_detector_says_whose_points_are_read(home: Path) -> None:
    image = np.hstack([marked(), marked()])
    found = replied(loaded(home, "coco", "left").segment([request(image)])[0]).landmarks.points
    assert found["nose"] == pytest.approx(SPOTS["nose"], abs=6.0)


def test_half_precision_finds_the_same_points(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU runs, as far as a CPU can tell; the detector's coordinates stay in 32 bits."""
    monkeypatch.setattr(
        network,
        "choose_device",
        lambda full_precision: Device("cpu", torch.float32 if full_precision else torch.float16),
    )
    image = np.hstack([marked(), marked()])
    found = replied(loaded(home, "coco", "left").segment([request(image)])[0]).landmarks.points
    for name, spot in SPOTS.items():
        assert found[name] == pytest.approx(spot, abs=6.0), name


def test_nobody_detected_is_refused_with_a_remedy(home: Path) -> None:
    (outcome,) = loaded(home, "coco", "blind").segment([request(marked())])
    assert isinstance(outcome, SubjectNotFound)
    assert "own mask" in outcome.remedy


def test_detector_whose_classes_do_not_exclude_each_other_is_read_too(tmp_path: Path) -> None:
    detector = load_detector(ModelSource(path=build_rt_detr(tmp_path)), SegmenterPlan(0))
    for box, (height, width) in zip(
        detector.find([marked(), marked()[:200]]), ((400, 300), (200, 300)), strict=True
    ):
        assert box is not None
        assert 0 <= box[0] < box[2] <= width
        assert 0 <= box[1] < box[3] <= height


def test_detector_without_a_person_label_is_refused(home: Path, tmp_path: Path) -> None:
    build_segformer(tmp_path / "parser", {"background": (0, 0, 0), "hair": (9, 9, 9)})
    masker = {"model": {"path": home / "coco"}, "detector": {"path": tmp_path / "parser"}}
    segmenter = LandmarksSegmenter(
        LandmarksMasker.model_validate(masker), SegmenterPlan(0, tmp_path)
    )
    with pytest.raises(BundleInvalid, match="segformer is not an object detector"):
        segmenter.load()


def test_largest_sure_person_is_the_main_one() -> None:
    boxes = np.array([(0.5, 0.5, 0.2, 0.9), (0.3, 0.5, 0.4, 1.2), (0.5, 0.5, 1.0, 1.0)])
    found = choose_person(np.array([0.9, 0.8, 0.4]), boxes, (100, 200))
    assert found == pytest.approx((20.0, 0.0, 100.0, 100.0))
    assert choose_person(np.array([0.1, 0.2, 0.4]), boxes, (100, 200)) is None


def test_regions_hold_what_they_are_about(segmenter: LandmarksSegmenter) -> None:
    image = marked()
    eye, face, shoes = (
        replied(outcome).region_hw
        for outcome in segmenter.segment([request(image, e) for e in ("eye", "face", "shoes")])
    )
    for name in ("left_eye", "right_eye", "left_ear", "nose"):
        x, y = map(round, SPOTS[name])
        assert eye[y, x], name
    assert eye[80, 55]
    assert not eye[200, 150]
    for y in (60, 140, 200):
        assert face[y, 150]
    assert not face[270, 150]
    for name in ("left_ankle", "right_ankle"):
        x, y = map(round, SPOTS[name])
        assert shoes[y, x]
        assert shoes[y + 20, x]
    assert not shoes[300, 205]


def test_dilation_grows_the_region(segmenter: LandmarksSegmenter) -> None:
    image = marked()
    plain, larger = (
        replied(segmenter.segment([request(image, "eye", dilation)])[0]).region_hw
        for dilation in (0.0, 0.2)
    )
    assert (larger[plain > 0] > 0).all()
    assert (larger > 0).sum() > 1.2 * (plain > 0).sum()


@pytest.mark.parametrize("expert", ["top", "bottom", "dress", "bg"])
def test_experts_that_points_cannot_serve_are_told_who_can(
    segmenter: LandmarksSegmenter, expert: Expert
) -> None:
    (outcome,) = segmenter.segment([request(marked(), expert)])
    assert isinstance(outcome, NotSupported)
    assert "parsing" in outcome.remedy
    assert ("matting" in outcome.remedy) == (expert == "bg")


@pytest.mark.parametrize(
    ("names", "expert"),
    [
        (("nose", "left_ankle"), "eye"),
        (("left_eye",), "face"),
        (("nose", "left_eye", "right_eye"), "shoes"),
    ],
)
def test_missing_points_are_refused_for_their_expert(
    segmenter: LandmarksSegmenter, names: tuple[str, ...], expert: Expert
) -> None:
    (outcome,) = segmenter.segment([request(marked(names), expert)])
    assert isinstance(outcome, SubjectNotFound)
    assert "own mask" in outcome.remedy


def test_number_of_points_must_be_that_of_the_layout(home: Path) -> None:
    with pytest.raises(BundleInvalid, match="17 points, coco133 has 133") as caught:
        loaded(home, "coco", points="coco133")
    assert "coco17 17" in caught.value.remedy


def test_sapiens_network_of_308_points_loads_and_is_read(tmp_path: Path) -> None:
    build_sapiens_pose(tmp_path / "sapiens")
    segmenter = loaded(tmp_path, "sapiens", points="sapiens308")
    assert segmenter._estimator is not None
    (seen,) = segmenter._estimator.estimate([marked()])
    assert seen.pose is not None
    assert seen.pose.points_k2.shape == (308, 2)
    assert np.isfinite(seen.pose.points_k2).all()


def gaussian(x: float, y: float, size: tuple[int, int] = (48, 64)) -> UInt8Array:
    columns, rows = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    return np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 2.0**2)).astype(np.float32)


def test_peaks_are_found_between_pixels() -> None:
    spots = np.random.default_rng(0).uniform((8, 8), (40, 56), (50, 2))
    points, scores = decode_heatmaps(np.stack([gaussian(x, y) for x, y in spots]))
    assert np.abs(points - spots).max() < 0.05
    assert scores.min() > 0.9


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_flat_map_moves_nothing(value: float) -> None:
    points, scores = decode_heatmaps(np.full((2, 20, 16), value, np.float32))
    assert np.isfinite(points).all()
    assert (scores == value).all()


def test_cut_is_that_of_transformers(home: Path) -> None:
    image = photo(210, 330)
    box = (60.0, 60.0, 140.0, 260.0)
    preprocessing = read_preprocessing(home / "coco")
    ours = preprocessing.normalise([cut_around(box, POSE_SIZE).extract(image, POSE_SIZE)])
    processor = VitPoseImageProcessorPil(
        size={"width": POSE_SIZE[0], "height": POSE_SIZE[1]},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    theirs = processor(image, boxes=[[[60.0, 60.0, 80.0, 200.0]]], return_tensors="np")
    one_level = 2 / 255
    assert np.abs(ours - theirs["pixel_values"]).max() < 1.01 * one_level


def test_points_go_back_where_the_cut_took_them_from() -> None:
    cut = cut_around((40.0, 30.0, 150.0, 290.0), (48, 64))
    corners = np.array([(0.0, 0.0), (47.0, 63.0), (23.5, 31.5)])
    back = cut.to_picture(corners, (48, 64))
    assert back[2] == pytest.approx((95.0, 160.0))
    assert back[1] - back[0] == pytest.approx((cut.width, cut.height))
    assert cut.width / cut.height == pytest.approx(0.75)


def make_pose(layout: Points, spots: dict[int, tuple[float, float]]) -> Pose:
    count = LAYOUTS[layout].num_points
    points, scores = np.zeros((count, 2)), np.zeros(count)
    for index, spot in spots.items():
        points[index], scores[index] = spot, 1.0
    return Pose(points, scores, layout)


def whole_body() -> Pose:
    """A face of 68 points about (100, 100), feet at y 400."""
    spots: dict[int, tuple[float, float]] = {0: (100.0, 110.0), 1: (120.0, 95.0), 2: (80.0, 95.0)}
    for index in range(17):  # the jaw, from the picture's left ear over the chin to the right
        angle = np.pi - index * np.pi / 16
        spots[23 + index] = (100 + 45 * np.cos(angle), 100 + 55 * np.sin(angle))
    for index in range(17, 27):
        spots[23 + index] = (65 + 7.5 * (index - 17), 80.0)
    for index in range(27, 36):
        spots[23 + index] = (100.0, 85 + 3.0 * (index - 27))
    for index in range(36, 48):
        spots[23 + index] = (80.0 if index < 42 else 120.0, 95.0)
    for index in range(48, 68):
        spots[23 + index] = (90 + (index - 48), 130.0)
    for index, spot in {15: (130, 390), 16: (70, 390), 13: (130, 300), 14: (70, 300)}.items():
        spots[index] = (float(spot[0]), float(spot[1]))
    feet = {17: (165, 410), 18: (155, 412), 19: (120, 408), 20: (35, 410), 21: (45, 412)}
    for index, spot in {**feet, 22: (80, 408)}.items():
        spots[index] = (float(spot[0]), float(spot[1]))
    return make_pose("coco133", spots)


def test_whole_body_points_mean_chin_mouth_and_feet() -> None:
    points = whole_body().landmarks().points
    assert points["chin"] == pytest.approx((100.0, 155.0))
    assert points["mouth"] == pytest.approx((99.5, 130.0))
    assert points["left_toe"] == pytest.approx((160.0, 411.0))
    assert points["right_heel"] == pytest.approx((80.0, 408.0))
    assert points["forehead"][1] < 80.0
    face = whole_body().face_box()
    assert face is not None
    assert face[1] == pytest.approx(points["forehead"][1])
    assert face[3] == pytest.approx(155.0)


def test_face_of_68_points_is_their_hull() -> None:
    region = draw_region(whole_body(), (500, 200), "face", 0.0)
    assert region[100, 100]
    assert region[150, 100]
    assert not region[170, 100]
    assert not region[100, 40]


def test_shoe_boxes_are_wider_than_the_foot_and_hold_the_ankle() -> None:
    region = draw_region(whole_body(), (500, 220), "shoes", 0.0)
    boxes = sorted(map(box_of, split(region)))
    assert len(boxes) == 2
    right, left = boxes
    assert left[0] < 120 - 0.1 * 45
    assert left[2] > 160 + 0.1 * 45
    assert left[1] < 390 < left[3]
    assert right[2] < left[0]
    assert left[3] > 411


def test_names_of_308_points_are_goliaths() -> None:
    spots = {41: (1.0, 2.0), 62: (3.0, 4.0), 15: (5.0, 6.0), 16: (7.0, 8.0), 77: (9.0, 9.0)}
    points = make_pose("sapiens308", spots).named()
    assert points == {
        "right_wrist": (1.0, 2.0),
        "left_wrist": (3.0, 4.0),
        "left_toe": (6.0, 7.0),
        "chin": (9.0, 9.0),
    }


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_name_known_points_inside_their_range(name: Points) -> None:
    layout = LAYOUTS[name]
    assert set(layout.named) <= set(LANDMARK_NAMES)
    used = [index for indices in layout.named.values() for index in indices]
    assert max([*used, *layout.outline, *layout.brows]) < layout.num_points


def face_mesh() -> np.ndarray:
    """478 points: those of the polygon on a circle, in its order, all others at its middle."""
    points = np.full((478, 2), 100.0)
    for place, index in enumerate(POLYGON[:-1]):
        angle = 2 * np.pi * place / (len(POLYGON) - 1)
        points[index] = (100 + 40 * np.cos(angle), 100 + 40 * np.sin(angle))
    return points


def test_eyewear_polygon_is_filled_and_four_pixels_larger() -> None:
    region = eyewear_polygon(face_mesh(), (200, 200))
    rows, columns = np.nonzero(region)
    assert (columns.min(), columns.max()) == pytest.approx((56, 144), abs=1)
    assert (rows.min(), rows.max()) == pytest.approx((56, 144), abs=1)
    assert region[100, 100] == 255
    assert region[58, 58] == 0
    assert POLYGON[0] == POLYGON[-1]
    assert len(POLYGON) == 34


def test_eyewear_of_a_mesh_is_the_authors_polygon_exactly() -> None:
    mesh = face_mesh()
    pose = make_pose("facemesh478", {index: tuple(spot) for index, spot in enumerate(mesh)})
    region = draw_region(pose, (200, 200), "eye", 0.0)
    assert (region == eyewear_polygon(mesh, (200, 200))).all()
    with pytest.raises(NotSupported):
        draw_region(pose, (200, 200), "shoes", 0.0)
    with pytest.raises(SubjectNotFound, match="no face"):
        draw_region(make_pose("facemesh478", {}), (200, 200), "eye", 0.0)


def test_silhouette_follows_limbs_and_face() -> None:
    silhouette = draw_silhouette(whole_body(), (500, 220))
    assert silhouette[110, 100] == 255
    assert silhouette[10, 10] == 0


BUNDLE = """
expert: eye
name: pointed
title: eyewear by points
status: benchmark
licence: {name: none, commercial_use: true}
backend: {kind: noop}
masker: {kind: landmarks, model: {path: coco}, detector: {path: left}}
"""


def test_eyewear_by_points_over_http(home: Path) -> None:
    (home / "eye.pointed.yaml").write_text(BUNDLE)
    (home.parent / "family.yaml").write_text("experts:\n  - version: eye@pointed\n")
    files = {"person": encoded(np.hstack([marked(), marked()])), "product": encoded(photo(64, 64))}
    headers = {"Accept": "application/json"}
    with TestClient(build_local_api(home.parent / "family.yaml")) as client:
        response = client.post("/v1/tryon", data={"expert": "eye"}, files=files, headers=headers)
    assert response.status_code == 200, response.text
    receipt = TryOnAnswer.model_validate_json(response.content).receipt
    assert receipt.outside.max_abs_diff == 0
    assert receipt.masker.startswith("landmarks/coco+")
    assert receipt.region_box is not None
    assert receipt.region_box[2] < 300
