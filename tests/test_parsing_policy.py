"""Regions drawn from label maps: generous, generic per category, and never over what is kept."""

from collections.abc import Callable

import cv2
import numpy as np
import pytest

from deployments.segmenters.parsing.figure import Figure, tidy_parts
from deployments.segmenters.parsing.hands import find_hands
from deployments.segmenters.parsing.heads import find_eyes, find_head
from deployments.segmenters.parsing.labels import Part
from deployments.segmenters.parsing.policy import Policy, draw_region, require_labels
from deployments.segmenters.shapes import (
    area,
    box_of,
    closed,
    grown,
    hull,
    shrunk,
    split,
    without_specks,
)
from serve.errors import NotSupported, SubjectNotFound
from serve.messages import EXPERTS, Expert, UInt8Array
from tests.labelled_people import HEIGHT, UNIT, WIDTH, Pose, draw_labels

EYES = (240.0, 90.0)


PLAIN = Policy()


def region_of(parts: UInt8Array, expert: Expert, policy: Policy = PLAIN) -> UInt8Array:
    silhouette = np.asarray((parts > 0) * 255, np.uint8)
    return draw_region(Figure(parts), silhouette, expert, policy)


def on(parts: UInt8Array, *wanted: Part) -> UInt8Array:
    return np.isin(parts, wanted)


def covered(region: UInt8Array, mask: UInt8Array) -> float:
    return float((region[mask] > 0).mean())


@pytest.mark.parametrize("tilt", [-20.0, 0.0, 15.0, 30.0])
@pytest.mark.parametrize("glasses", [False, True])
def test_eye_band_follows_the_head_and_spans_the_temples(tilt: float, glasses: bool) -> None:
    parts = draw_labels(Pose(tilt=tilt, glasses=glasses))
    region = region_of(parts, "eye")
    (x, y), (width, height), angle = cv2.minAreaRect(cv2.findNonZero(region))
    along = angle if width > height else angle - 90
    assert abs((along - tilt + 90.0) % 180.0 - 90.0) < 4.0
    assert np.hypot(x - EYES[0], y - EYES[1]) < 0.1 * UNIT
    assert max(width, height) > 1.1 * 46  # the drawn face is 46 px wide
    if glasses:
        assert covered(region, on(parts, Part.GLASSES)) == 1.0


def test_labelled_eyes_place_the_band() -> None:
    parts = draw_labels()
    for x in (228, 252):
        cv2.ellipse(parts, (x, 100), (5, 3), 0, 0, 360, int(Part.EYES), -1)
    eyes = find_eyes(parts)
    assert eyes is not None
    assert eyes[0] == pytest.approx((228.0, 100.0), abs=0.5)
    assert eyes[1] == pytest.approx((252.0, 100.0), abs=0.5)
    head = find_head(parts)
    assert head is not None
    assert head.eyes == pytest.approx((240.0, 100.0), abs=0.5)


def test_sunglasses_in_the_hair_do_not_pull_the_band_up() -> None:
    parts = draw_labels()
    cv2.rectangle(parts, (218, 46), (262, 58), int(Part.GLASSES), -1)
    head, plain = find_head(parts), find_head(draw_labels())
    assert head is not None
    assert plain is not None
    assert head.eyes[1] == pytest.approx(plain.eyes[1], abs=0.12 * UNIT)


def test_neck_that_the_parser_calls_face_is_no_face() -> None:
    parts = draw_labels()
    neck = np.zeros_like(parts, np.bool_)
    neck[142:168, 232:248] = True
    assert (parts[neck] == Part.FACE).all()
    assert covered(region_of(parts, "face"), neck) == 0.0
    assert covered(region_of(parts, "top"), neck) == 1.0


def test_face_region_holds_the_face_and_spares_the_hair() -> None:
    parts = draw_labels(Pose(glasses=True))
    region = region_of(parts, "face")
    face = np.zeros_like(parts)
    cv2.ellipse(face, (240, 96), (21, 28), 0, 0, 360, 255, -1)
    assert covered(region, face > 0) == 1.0
    assert covered(region, on(parts, Part.HAIR)) == 0.0


@pytest.mark.parametrize("expert", ["top", "bottom", "dress"])
@pytest.mark.parametrize("arms", ["down", "akimbo", "raised", "spread"])
def test_garments_spare_face_hair_shoes_and_hands(expert: Expert, arms: str) -> None:
    parts = draw_labels(Pose(arms=arms))
    figure = Figure(parts)
    region = region_of(parts, expert)
    assert covered(region, on(parts, Part.HAIR, Part.SHOE)) == 0.0
    assert covered(region, figure.face > 0) == 0.0
    assert area(figure.hands) > 0
    assert covered(region, figure.hands > 0) == 0.0


@pytest.mark.parametrize("arms", ["down", "akimbo", "raised", "spread"])
def test_top_covers_garment_and_arms_and_leaves_the_legs(arms: str) -> None:
    parts = draw_labels(Pose(arms=arms))
    region = region_of(parts, "top")
    assert covered(region, on(parts, Part.TOP)) == 1.0
    bare = on(parts, Part.ARM) & (Figure(parts).hands == 0)
    assert covered(region, bare) == 1.0
    below = np.arange(HEIGHT)[:, None] > EYES[1] + 4.6 * UNIT
    assert covered(region, on(parts, Part.PANTS) & below) == 0.0


def test_sleeve_length_does_not_shape_the_top() -> None:
    """A mask that ends where the old sleeve did would only ever make that sleeve again."""
    short, long = (region_of(draw_labels(Pose(sleeve=sleeve)), "top") for sleeve in (0.1, 0.75))
    both = area(short & long) / area(short | long)
    assert both > 0.95


def test_top_may_be_longer_than_the_one_worn() -> None:
    parts = draw_labels()
    hem = np.zeros_like(parts, np.bool_)
    hem[320 : 320 + round(0.25 * UNIT), 210:270] = True
    assert covered(region_of(parts, "top"), hem & on(parts, Part.PANTS)) == 1.0


def test_trousers_shorts_and_skirt_give_about_the_same_region() -> None:
    trousers, skirt = (
        region_of(draw_labels(Pose(wears=wears)), "bottom") for wears in ("trousers", "skirt")
    )
    short = draw_labels()
    short[430:][short[430:] == Part.PANTS] = Part.LEG
    shorts = region_of(short, "bottom")
    assert area(trousers & shorts) / area(trousers | shorts) > 0.98
    assert area(trousers & skirt) / area(trousers) > 0.95


@pytest.mark.parametrize("apart", [0.5, 1.0, 1.8])
@pytest.mark.parametrize("with_hull", [True, False])
def test_bottom_has_no_gap_between_the_legs(apart: float, with_hull: bool) -> None:
    parts = draw_labels(Pose(legs_apart=apart))
    region = region_of(parts, "bottom", Policy(hull=with_hull))
    for row in range(420, 580, 20):
        inside = np.flatnonzero(region[row])
        assert (np.diff(inside) == 1).all()
    assert covered(region, on(parts, Part.PANTS)) > 0.99


def test_dress_covers_everything_between_chin_and_shoes() -> None:
    for wears in ("trousers", "skirt", "dress"):
        parts = draw_labels(Pose(wears=wears))
        region = region_of(parts, "dress")
        worn = on(parts, Part.TOP, Part.DRESS, Part.SKIRT, Part.PANTS, Part.LEG)
        assert covered(region, worn) > 0.99, wears


@pytest.mark.parametrize("arms", ["down", "akimbo", "raised"])
def test_hem_of_the_skirt_worn_does_not_shape_the_dress(arms: str) -> None:
    parts = draw_labels(Pose(arms=arms, wears="skirt", sleeve=0.9))
    region = region_of(parts, "dress")
    above, below = (int((region[row] > 0).sum()) for row in (435, 450))  # the hem is at 438
    assert above - below < 0.1 * above


def test_who_wears_a_dress_can_try_a_top_or_trousers() -> None:
    parts = draw_labels(Pose(wears="dress"))
    dress = on(parts, Part.DRESS)
    rows = np.arange(HEIGHT)[:, None]
    top, bottom = region_of(parts, "top"), region_of(parts, "bottom")
    assert covered(top, dress & (rows < EYES[1] + 3.0 * UNIT)) > 0.99
    assert covered(top, dress & (rows > EYES[1] + 4.5 * UNIT)) == 0.0
    assert covered(bottom, dress & (rows > EYES[1] + 3.5 * UNIT)) > 0.99
    assert covered(bottom, dress & (rows < EYES[1] + 2.0 * UNIT)) == 0.0


def test_shoe_boxes_hold_shoes_and_ankles_and_no_knees() -> None:
    parts = draw_labels(Pose(legs_apart=1.2))
    region = region_of(parts, "shoes")
    shoes = np.asarray(on(parts, Part.SHOE) * 255, np.uint8)
    assert covered(region, shoes > 0) == 1.0
    boxes = split(region)
    assert len(boxes) == 2
    for shoe, box in zip(
        sorted(map(box_of, split(shoes))), sorted(map(box_of, boxes)), strict=True
    ):
        assert box[2] - box[0] == pytest.approx(1.3 * (shoe[2] - shoe[0]), abs=2)
        assert shoe[1] - box[1] >= 0.34 * UNIT
        assert box[3] > shoe[3]


def test_bare_feet_serve_where_shoes_are_tried() -> None:
    parts = draw_labels()
    parts[parts == Part.SHOE] = Part.FEET
    assert (region_of(parts, "shoes") == region_of(draw_labels(), "shoes")).all()


def test_background_is_soft_at_the_edge_and_zero_on_the_person() -> None:
    parts = draw_labels()
    silhouette = cv2.GaussianBlur(np.asarray((parts > 0) * 255, np.uint8), (0, 0), 2)
    region = draw_region(Figure(parts), silhouette, "bg", Policy())
    assert not region[silhouette == 255].any()
    assert region[5, 5] == 255
    assert ((region > 0) & (region < 255)).any()


def test_bag_before_the_garment_stays() -> None:
    parts = draw_labels()
    cv2.rectangle(parts, (180, 250), (230, 300), int(Part.BAG), -1)
    assert covered(region_of(parts, "top"), on(parts, Part.BAG)) == 0.0


def test_only_what_the_policy_protects_is_spared() -> None:
    parts = draw_labels(Pose(arms="akimbo"))
    hands = Figure(parts).hands > 0
    assert covered(region_of(parts, "top", Policy(protect=("face", "hair"))), hands) > 0.9


def test_labelled_hands_are_believed() -> None:
    parts = draw_labels()
    parts[parts == Part.ARM] = Part.HAND
    assert (find_hands(parts, (240.0, 150.0), UNIT) > 0).sum() == (parts == Part.HAND).sum()


@pytest.mark.parametrize("arms", ["down", "akimbo", "raised", "spread"])
def test_hands_are_the_ends_of_bare_arms(arms: str) -> None:
    parts = draw_labels(Pose(arms=arms, sleeve=0.05))
    figure = Figure(parts)
    pieces = split(figure.hands)
    assert len(pieces) == 2
    arm = area(np.asarray(on(parts, Part.ARM) * 255, np.uint8))
    assert 0.15 * arm < area(figure.hands) < 0.5 * arm
    reach = {"down": (1.4, 4.6), "akimbo": (1.15, 3.9), "raised": (1.5, -0.9), "spread": (3.6, 1.8)}
    for side in (-1, 1):
        x, y = EYES[0] + side * reach[arms][0] * UNIT, EYES[1] + reach[arms][1] * UNIT
        column, row = int(np.clip(x, 2, WIDTH - 3)), int(np.clip(y, 2, HEIGHT - 3))
        assert figure.hands[row - 2 : row + 3, column - 2 : column + 3].any()


def test_without_a_hull_the_region_stays_near_the_garment() -> None:
    parts = draw_labels(Pose(arms="akimbo"))
    loose, tight = (region_of(parts, "top", Policy(hull=flag)) for flag in (True, False))
    assert (loose[tight > 0] > 0).all()
    assert area(loose) > 1.1 * area(tight)


@pytest.mark.parametrize("expert", [expert for expert in EXPERTS if expert != "bg"])
def test_dilation_grows_every_region(expert: Expert) -> None:
    parts = draw_labels()
    plain, larger = (region_of(parts, expert, Policy(dilation=d)) for d in (0.0, 0.15))
    assert (larger[plain > 0] > 0).all()
    assert area(larger) > 1.02 * area(plain)


def test_somebody_else_in_the_picture_is_left_alone() -> None:
    parts = np.zeros((HEIGHT, 2 * WIDTH), np.uint8)
    parts[:, :WIDTH] = draw_labels()
    small = cv2.resize(draw_labels(), (240, 360), interpolation=cv2.INTER_NEAREST)
    parts[300:660, WIDTH + 100 : WIDTH + 340] = small
    for expert in EXPERTS[:-1]:
        region = region_of(parts, expert)
        assert region[:, :WIDTH].any(), expert
        assert not region[:, WIDTH + 100 :].any(), expert


def _portrait(parts: UInt8Array) -> UInt8Array:
    return cv2.resize(parts[:150], None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)


def _faceless(parts: UInt8Array) -> UInt8Array:
    return np.where(parts == Part.FACE, Part.HAIR, parts).astype(np.uint8)


def _nobody(parts: UInt8Array) -> UInt8Array:
    return np.zeros_like(parts)


def _everything(parts: UInt8Array) -> UInt8Array:
    return np.full_like(parts, int(Part.TOP))


@pytest.mark.parametrize(
    ("change", "expert", "words"),
    [
        (_portrait, "bottom", "no hips and legs found"),
        (_portrait, "shoes", "no shoes or feet found"),
        (_portrait, "top", "no upper body found"),
        (_faceless, "eye", "no eyes found"),
        (_faceless, "face", "no face found"),
        (_nobody, "dress", "no body found"),
        (_nobody, "bg", "no person found"),
        (_everything, "bg", "no background found"),
    ],
)
def test_what_is_not_visible_is_refused_with_a_remedy(
    change: Callable[[UInt8Array], UInt8Array], expert: Expert, words: str
) -> None:
    with pytest.raises(SubjectNotFound, match=words) as caught:
        region_of(change(draw_labels()), expert)
    assert "own mask" in caught.value.remedy


def test_expert_without_its_labels_is_refused_by_name() -> None:
    faces = frozenset({Part.BACKGROUND, Part.FACE, Part.HAIR, Part.EYES, Part.OTHER})
    for expert in ("eye", "face", "bg"):
        require_labels(faces, expert, "face-parsing")
    for expert, missing in (("top", "top"), ("shoes", "shoe or feet"), ("dress", "dress")):
        with pytest.raises(NotSupported, match=f"face-parsing has no label for {missing}"):
            require_labels(faces, expert, "face-parsing")


@pytest.mark.parametrize("expert", EXPERTS)
def test_misread_specks_change_no_region(expert: Expert) -> None:
    parts = draw_labels(Pose(arms="akimbo", glasses=True))
    rng = np.random.default_rng(0)
    noisy = parts.copy()
    for _ in range(300):
        x, y = (int(rng.integers(0, side)) for side in (WIDTH, HEIGHT))
        noisy[y : y + 3, x : x + 3] = int(rng.integers(0, len(Part)))
    silhouette = np.asarray((parts > 0) * 255, np.uint8)
    clean, tidied = (
        draw_region(Figure(tidy_parts(each)), silhouette, expert, PLAIN) for each in (parts, noisy)
    )
    assert area(clean & tidied) / area(clean | tidied) > 0.95


def _blobs(rng: np.random.Generator) -> UInt8Array:
    height, width = (int(side) for side in rng.integers(1, 120, 2))
    parts = np.zeros((height, width), np.uint8)
    for _ in range(int(rng.integers(0, 25))):
        spot = int(rng.integers(0, width)), int(rng.integers(0, height))
        axes = int(rng.integers(1, 50)), int(rng.integers(1, 50))
        part = int(rng.integers(0, len(Part)))
        cv2.ellipse(parts, spot, axes, float(rng.integers(0, 180)), 0, 360, part, -1)
    return parts


def _try(parts: UInt8Array, expert: Expert, policy: Policy) -> UInt8Array | SubjectNotFound:
    try:
        return region_of(tidy_parts(parts), expert, policy)
    except SubjectNotFound as refusal:
        return refusal


@pytest.mark.parametrize("seed", range(40))
def test_any_label_map_gives_a_region_or_a_named_refusal(seed: int) -> None:
    parts = _blobs(np.random.default_rng(seed))
    for expert in EXPERTS:
        outcome = _try(parts, expert, Policy(hull=seed % 2 == 0, dilation=0.2))
        if isinstance(outcome, SubjectNotFound):
            assert outcome.remedy
        else:
            assert outcome.shape == parts.shape
            assert outcome.any()


def test_shapes_keep_their_promises() -> None:
    square = np.zeros((60, 80), np.uint8)
    square[20:40, 30:50] = 255
    assert box_of(grown(square, 5)) == (25.0, 15.0, 55.0, 45.0)
    assert box_of(shrunk(square, 5)) == (35.0, 25.0, 45.0, 35.0)
    two = square.copy()
    two[20:40, 54:60] = 255
    assert closed(two, 8)[30, 52] == 255
    assert closed(two, 2)[30, 52] == 0
    assert hull(two)[25, 52] == 255
    assert area(without_specks(two, 0.5)) == area(square)
    edge = np.full((20, 20), 255, np.uint8)
    assert (shrunk(edge, 4) == edge).all()
    assert (grown(np.zeros((5, 5), np.uint8), 3) == 0).all()
