"""The garment lands on the person it is meant for, bends with them, and touches nothing else."""

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest

from deployments.backends.warp.garment import dress_garment
from deployments.backends.warp.light import scene_gain
from deployments.backends.warp.mesh import warp
from deployments.backends.warp.outline import read_lower, read_upper
from deployments.backends.warp.placement import Part
from deployments.backends.warp.seams import close_seams
from serve.messages import Expert, ExpertRequest, Landmarks, UInt8Array

HEIGHT, WIDTH = 640, 480
SKIN, OLD, BACKDROP = (205, 150, 120), (60, 110, 190), (200, 205, 200)
RED, GREEN, GREY = (190, 30, 40), (20, 120, 60), (60, 60, 60)
POINTS = {
    "right_shoulder": (190.0, 150.0),
    "left_shoulder": (290.0, 150.0),
    "right_elbow": (170.0, 240.0),
    "left_elbow": (310.0, 240.0),
    "right_wrist": (160.0, 320.0),
    "left_wrist": (320.0, 320.0),
    "right_hip": (210.0, 300.0),
    "left_hip": (270.0, 300.0),
    "right_knee": (208.0, 430.0),
    "left_knee": (272.0, 430.0),
    "right_ankle": (206.0, 550.0),
    "left_ankle": (274.0, 550.0),
    "neck": (240.0, 132.0),
    "chin": (240.0, 112.0),
    "crotch": (240.0, 325.0),
}
LANDMARKS = Landmarks(POINTS, (212.0, 50.0, 268.0, 112.0))


def limb(image: np.ndarray, names: tuple[str, ...], colour: Any, width: int) -> None:
    joints = np.array([POINTS[name] for name in names], np.int32)
    cv2.polylines(image, [joints], False, colour, width, cv2.LINE_AA)


def draw_person() -> tuple[UInt8Array, UInt8Array]:
    """A figure in a blue suit with bare hands and face: (picture, silhouette)."""
    pictures = []
    for colours in ((BACKDROP, SKIN, OLD), (0, 255, 255)):
        shape = (HEIGHT, WIDTH, 3) if isinstance(colours[0], tuple) else (HEIGHT, WIDTH)
        image = np.full(shape, colours[0], np.uint8)
        for side in ("left", "right"):
            limb(image, (f"{side}_shoulder", f"{side}_elbow"), colours[2], 30)
            limb(image, (f"{side}_elbow", f"{side}_wrist"), colours[1], 24)
            limb(image, (f"{side}_hip", f"{side}_knee", f"{side}_ankle"), colours[2], 46)
        torso = np.array([(180, 140), (300, 140), (290, 310), (190, 310)])
        cv2.fillPoly(image, [torso], colours[2], cv2.LINE_AA)
        cv2.line(image, (240, 100), (240, 138), colours[1], 36)
        cv2.ellipse(image, (240, 80), (28, 36), 0, 0, 360, colours[1], -1, cv2.LINE_AA)
        pictures.append(image)
    return pictures[0], pictures[1]


def product_on(colour: Any, *polygons: list[tuple[int, int]]) -> UInt8Array:
    product = np.zeros((400, 400, 4), np.uint8)
    product[..., :3] = colour
    for polygon in polygons:
        cv2.fillPoly(product, [np.array(polygon)], (*colour, 255))
    return product


SHIRT = product_on(
    RED,
    [(160, 40), (240, 40), (350, 100), (320, 160), (275, 130), (280, 340), (120, 340), (125, 130),
     (80, 160), (50, 100)],
)  # fmt: skip
VEST = product_on(RED, [(140, 40), (260, 40), (270, 60), (265, 150), (275, 340), (125, 340),
                        (135, 150), (130, 60)])  # fmt: skip
COAT = product_on(
    RED,
    [(160, 40), (240, 40), (290, 70), (345, 350), (305, 355), (275, 150), (280, 330), (120, 330),
     (125, 150), (95, 355), (55, 350), (110, 70)],
)  # fmt: skip
TROUSERS = product_on(GREEN, [(140, 20), (260, 20), (280, 390), (215, 390), (200, 130), (185, 390),
                              (120, 390)])  # fmt: skip
SKIRT = product_on(GREEN, [(140, 20), (260, 20), (300, 220), (100, 220)])
DRESS = product_on(RED, [(165, 20), (235, 20), (240, 130), (300, 380), (100, 380), (160, 130)])


def ask(product: UInt8Array, **changes: Any) -> ExpertRequest:
    picture, silhouette = draw_person()
    region = cv2.dilate(silhouette, np.ones((31, 31), np.uint8))
    region[:118] = 0
    request = ExpertRequest(
        "tr_1", "top@1", picture, region, silhouette, LANDMARKS, product, Landmarks(), seed=7
    )
    return replace(request, **changes)


def dress(request: ExpertRequest, expert: Expert) -> tuple[UInt8Array, UInt8Array]:
    return dress_garment(request, expert, np.random.default_rng(request.seed))


def share_map(image: UInt8Array, colour: Any, lightness: float = 60.0) -> np.ndarray:
    lab = [
        cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
        for pixels in (image, np.full((1, 1, 3), colour, np.uint8))
    ]
    apart = lab[0] - lab[1]
    fits = np.linalg.norm(apart[..., 1:], axis=2) < 25.0
    return np.asarray(fits & (np.abs(apart[..., 0]) < lightness))


def share_of(image: UInt8Array, mask: np.ndarray, colour: Any) -> float:
    return float(share_map(image, colour)[mask].mean())


def box(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y0:y1, x0:x1] = True
    return mask


@pytest.mark.parametrize("product", [SHIRT, VEST, COAT])
def test_top_covers_the_torso(product: UInt8Array) -> None:
    image, alpha = dress(ask(product), "top")
    torso = box(200, 170, 280, 270)
    assert share_of(image, torso, RED) > 0.95
    assert alpha[torso].min() > 200


def test_short_sleeve_follows_a_raised_arm() -> None:
    raised = {**POINTS, "left_elbow": (380.0, 130.0), "left_wrist": (440.0, 60.0)}
    picture = np.full((HEIGHT, WIDTH, 3), BACKDROP, np.uint8)
    silhouette = np.zeros((HEIGHT, WIDTH), np.uint8)
    for image, old, skin in ((picture, OLD, SKIN), (silhouette, 255, 255)):
        cv2.fillPoly(image, [np.array([(180, 140), (300, 140), (290, 560), (190, 560)])], old)
        cv2.line(image, (290, 152), (380, 132), old, 34)
        cv2.line(image, (380, 130), (440, 60), skin, 24)
        cv2.line(image, (190, 150), (160, 320), old, 30)
    region = cv2.dilate(silhouette, np.ones((31, 31), np.uint8))
    request = ask(
        SHIRT,
        crop_hwc=picture,
        silhouette_hw=silhouette,
        region_hw=region,
        landmarks=Landmarks(raised, LANDMARKS.face),
    )
    image, _ = dress(request, "top")
    assert share_of(image, box(310, 138, 340, 150), RED) > 0.9


def test_hand_in_front_of_the_garment_stays() -> None:
    points = {**POINTS, "left_wrist": (245.0, 250.0)}
    picture, silhouette = draw_person()
    cv2.line(picture, (310, 240), (225, 250), SKIN, 24)
    request = ask(
        VEST,
        crop_hwc=picture,
        landmarks=Landmarks(points, LANDMARKS.face),
        silhouette_hw=silhouette,
    )
    image, _ = dress(request, "top")
    assert share_of(image, box(235, 245, 260, 255), SKIN) > 0.9


def test_old_sleeve_under_a_vest_becomes_skin() -> None:
    image, _ = dress(ask(VEST), "top")
    sleeve = box(172, 205, 180, 225)
    assert share_of(image, sleeve, OLD) < 0.05
    assert share_of(image, sleeve, SKIN) > 0.8


def test_trousers_cover_both_legs_down_to_the_ankles() -> None:
    image, _ = dress(ask(TROUSERS), "bottom")
    for x in (206, 274):
        assert share_of(image, box(x - 12, 340, x + 12, 535), GREEN) > 0.95


def test_skirt_ends_above_the_knees_and_legs_get_bare() -> None:
    image, _ = dress(ask(SKIRT), "bottom")
    assert share_of(image, box(200, 310, 280, 360), GREEN) > 0.9
    below = box(198, 500, 214, 530)
    assert share_of(image, below, GREEN) < 0.05
    assert share_of(image, below, OLD) < 0.1


def test_dress_reaches_from_the_shoulders_below_the_hips() -> None:
    image, _ = dress(ask(DRESS), "dress")
    assert share_of(image, box(220, 180, 260, 380), RED) > 0.95


def test_face_is_never_covered() -> None:
    region = np.full((HEIGHT, WIDTH), 255, np.uint8)
    high_collar = product_on(
        RED,
        [
            (160, 0),
            (240, 0),
            (242, 120),
            (290, 140),
            (280, 390),
            (120, 390),
            (110, 140),
            (158, 120),
        ],
    )
    request = ask(high_collar, region_hw=region)
    image, _ = dress(request, "top")
    assert np.abs(image[60:100, 225:255].astype(int) - request.crop_hwc[60:100, 225:255]).max() <= 2


@pytest.mark.parametrize("expert", ["top", "bottom", "dress"])
@pytest.mark.parametrize("known", ["everything", "no landmarks", "no silhouette", "nothing"])
def test_nothing_changes_outside_the_region(expert: Expert, known: str) -> None:
    request = ask(DRESS if expert == "dress" else TROUSERS if expert == "bottom" else SHIRT)
    if known in ("no landmarks", "nothing"):
        request = replace(request, landmarks=Landmarks())
    if known in ("no silhouette", "nothing"):
        request = replace(request, silhouette_hw=None)
    image, alpha = dress(request, expert)
    outside = request.region_hw == 0
    assert np.array_equal(image[outside], request.crop_hwc[outside])
    assert not alpha[outside].any()
    assert np.array_equal(image[alpha == 0], request.crop_hwc[alpha == 0])
    assert alpha.any()


def test_without_landmarks_the_product_fills_the_callers_mask() -> None:
    region = np.zeros((HEIGHT, WIDTH), np.uint8)
    region[150:330, 180:300] = 255
    request = ask(VEST, landmarks=Landmarks(), silhouette_hw=None, region_hw=region)
    image, _ = dress(request, "top")
    assert share_of(image, box(205, 170, 275, 300), RED) > 0.95


@pytest.mark.parametrize(
    "kept",
    [
        {"left_shoulder", "right_shoulder"},
        {"left_hip", "right_hip"},
        {"nose"},
        {"left_shoulder"},
        set(POINTS) - {"left_wrist", "right_knee"},
    ],
)
@pytest.mark.parametrize("expert", ["top", "bottom", "dress"])
def test_missing_landmarks_do_not_stop_it(expert: Expert, kept: set[str]) -> None:
    points = {name: point for name, point in POINTS.items() if name in kept}
    _, alpha = dress(ask(SHIRT, landmarks=Landmarks(points)), expert)
    assert alpha.any()


@pytest.mark.parametrize("expert", ["top", "bottom", "dress"])
def test_person_cut_by_the_border_is_dressed(expert: Expert) -> None:
    whole = ask(SHIRT)
    assert whole.silhouette_hw is not None
    cut = replace(
        whole,
        crop_hwc=whole.crop_hwc[130:280, 150:330].copy(),
        region_hw=whole.region_hw[130:280, 150:330].copy(),
        silhouette_hw=whole.silhouette_hw[130:280, 150:330].copy(),
        landmarks=LANDMARKS.transformed((1.0, 1.0), (-150.0, -130.0)),
    )
    image, _ = dress(cut, expert)
    assert image.shape == cut.crop_hwc.shape


@pytest.mark.parametrize("expert", ["top", "bottom", "dress"])
def test_same_request_gives_same_bytes(expert: Expert) -> None:
    first, second = (dress(ask(SHIRT), expert) for _ in range(2))
    assert first[0].tobytes() == second[0].tobytes()
    assert first[1].tobytes() == second[1].tobytes()


def test_empty_region_changes_nothing() -> None:
    request = ask(SHIRT, region_hw=np.zeros((HEIGHT, WIDTH), np.uint8))
    image, alpha = dress(request, "top")
    assert np.array_equal(image, request.crop_hwc)
    assert not alpha.any()


def test_print_of_the_product_stays_where_it_was_and_is_not_mirrored() -> None:
    printed = VEST.copy()
    printed[150:200, 150:190, :3] = (250, 250, 250)  # on the image's left half
    image, _ = dress(ask(printed), "top")
    white = (image.min(axis=2) > 150) & box(180, 150, 300, 310)
    assert white.sum() > 300
    assert np.nonzero(white)[1].mean() < 240


def test_product_is_darker_in_a_dark_scene() -> None:
    person = np.ones((HEIGHT, WIDTH), bool)
    picture, _ = draw_person()
    assert scene_gain(picture // 4, person) < 0.75 * scene_gain(picture, person)


def test_sleeves_are_told_from_a_bare_armhole() -> None:
    for product, has_sleeves in ((SHIRT, True), (COAT, True), (VEST, False)):
        outline = read_upper(product[40:356, 50:351], is_dress=False)
        assert (outline.left_sleeve is not None) == has_sleeves
        assert (outline.right_sleeve is not None) == has_sleeves


def test_trousers_have_a_crotch_and_a_skirt_has_none() -> None:
    assert read_lower(TROUSERS[20:391, 120:281]).crotch_y == pytest.approx(110, abs=25)
    assert read_lower(SKIRT[20:221, 100:301]).crotch_y is None


def test_warp_puts_nodes_where_they_are_asked() -> None:
    product = np.zeros((40, 40, 4), np.uint8)
    product[..., 3] = 255
    product[18:22, 18:22, :3] = 255
    source = np.array([[(0.0, 0.0), (39.0, 0.0)], [(0.0, 39.0), (39.0, 39.0)]])
    drawn = warp(product, source, source * 2 + (30.0, 10.0), (120, 140))
    y, x = np.nonzero(drawn[..., 0] > 128)
    assert x.mean() == pytest.approx(19.5 * 2 + 30, abs=1)
    assert y.mean() == pytest.approx(19.5 * 2 + 10, abs=1)
    assert not drawn[:8].any()


@pytest.mark.parametrize("seed", range(15))
def test_strange_pictures_do_not_crash_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(16, 160, 2))
    crop = cv2.resize(rng.integers(0, 256, (4, 4, 3), np.uint8), (width, height))
    masks = np.zeros((2, height, width), np.uint8)
    for mask in masks:
        x, y = (int(value) for value in rng.integers(0, (width, height)))
        cv2.ellipse(mask, (x, y), (30, 50), 0, 0, 360, 255, -1)
    points = {
        name: (float(rng.uniform(-width, 2 * width)), float(rng.uniform(-height, 2 * height)))
        for name in POINTS
        if rng.random() < 0.7
    }
    request = ExpertRequest(
        "tr_1", "top@1", crop, masks[0], masks[1], Landmarks(points), SHIRT, Landmarks(), seed
    )
    for expert in ("top", "bottom", "dress"):
        image, alpha = dress_garment(request, expert, rng)
        assert np.array_equal(image[masks[0] == 0], crop[masks[0] == 0])
        assert not alpha[masks[0] == 0].any()


MIDI = product_on(
    RED,
    [(170, 20), (200, 20), (230, 20), (262, 34), (290, 72), (246, 90), (238, 145), (300, 385),
     (100, 385), (162, 145), (154, 90), (110, 72), (138, 34)],
)  # fmt: skip
V_NECK = [(178, 20), (222, 20), (200, 62)]


def draw_trousers(request: ExpertRequest) -> ExpertRequest:
    """The figure in grey trousers and a blue shirt."""
    assert request.silhouette_hw is not None
    legs = (request.silhouette_hw > 0) & box(0, 311, WIDTH, HEIGHT)
    picture = request.crop_hwc.copy()
    picture[legs & (share_map(picture, OLD))] = GREY
    return replace(request, crop_hwc=picture)


def test_short_sleeves_of_a_dress_are_found_above_its_waist() -> None:
    outline = read_upper(MIDI[20:386, 100:301], is_dress=True)
    assert outline.left_sleeve is not None
    assert outline.right_sleeve is not None
    assert outline.armpit_y == pytest.approx(70, abs=15)
    assert outline.chest_px == pytest.approx(92, abs=12)


def test_dress_keeps_its_flare_and_its_hem_below_the_knee() -> None:
    region = np.zeros((HEIGHT, WIDTH), np.uint8)
    region[118:600, 60:420] = 255
    image, _ = dress(ask(MIDI, region_hw=region), "dress")
    red = share_map(image, RED)
    widths = red.sum(axis=1)
    hem = int(np.flatnonzero(widths > 40)[-1])
    assert 430 < hem < 545
    assert widths[hem - 15] > 1.5 * widths[265]


def test_dress_is_folded_into_a_narrow_region_instead_of_cut() -> None:
    marked = MIDI.copy()
    marked[300:385, 104:116, :3] = (250, 250, 250)  # at the seam near the hem
    region = np.zeros((HEIGHT, WIDTH), np.uint8)
    region[118:600, 165:315] = 255
    image, _ = dress(ask(marked, region_hw=region), "dress")
    assert (image.min(axis=2) > 225)[380:500, 165:200].sum() > 100


def test_trousers_do_not_show_beside_a_dress() -> None:
    slim = product_on(RED, [(150, 20), (250, 20), (255, 80), (222, 130), (222, 380), (178, 380),
                            (178, 130), (145, 80)])  # fmt: skip
    request = draw_trousers(ask(slim))
    image, _ = dress(request, "dress")
    assert share_map(request.crop_hwc, GREY, 12.0)[325:400, 170:310].mean() > 0.5
    assert share_map(image, GREY, 12.0)[325:400, 170:310].mean() < 0.03


def test_skin_shows_in_a_v_neck_instead_of_the_back() -> None:
    inside = (90, 10, 20)
    product = MIDI.copy()
    cv2.fillPoly(product, [np.array(V_NECK)], (*inside, 255))
    for picture, most in ((MIDI, 1.0), (product, 0.6)):
        image, _ = dress(ask(picture), "dress")
        neckline = share_map(image, RED)[140:158, 232:248].mean()
        assert neckline <= most
    assert share_of(image, box(235, 140, 245, 152), SKIN) > 0.5


def test_top_a_little_too_short_hides_the_old_hem() -> None:
    short = product_on(RED, [(140, 40), (260, 40), (275, 195), (125, 195)])
    request = draw_trousers(ask(short))
    image, _ = dress(request, "top")
    assert share_of(image, box(200, 280, 280, 305), RED) > 0.9
    assert not share_map(image, OLD)[290:311, 185:295].any()


def test_top_much_too_short_is_not_stretched_to_the_old_hem() -> None:
    crop_top = product_on(RED, [(140, 40), (260, 40), (275, 110), (125, 110)])
    image, _ = dress(draw_trousers(ask(crop_top)), "top")
    assert share_of(image, box(205, 290, 275, 305), RED) < 0.1


def test_strap_across_a_suit_does_not_shift_the_top() -> None:
    plain, _ = dress(ask(VEST), "top")
    picture, _ = draw_person()
    cv2.line(picture, (262, 200), (262, 310), (245, 245, 240), 12)
    strapped, _ = dress(ask(VEST, crop_hwc=picture), "top")
    centres = [np.nonzero(share_map(image, RED)[240:270])[1].mean() for image in (plain, strapped)]
    assert centres[1] == pytest.approx(centres[0], abs=4)


def test_bared_arm_meets_the_arm_that_came_out_of_the_sleeve() -> None:
    points = {**POINTS, "right_elbow": (188.0, 236.0), "left_elbow": (292.0, 236.0)}  # a bad guess
    request = ask(VEST, landmarks=Landmarks(points, LANDMARKS.face))
    image, _ = dress(request, "top")
    skin = share_map(image, SKIN)
    for row in (222, 228, 234):
        columns = np.flatnonzero(skin[row, :200])
        assert columns.mean() == pytest.approx(170, abs=6)
        assert np.ptp(columns) < 36


def test_notch_beside_the_shoulder_is_filled_with_the_garment() -> None:
    layer = np.zeros((100, 100, 4), np.float32)
    layer[40:90, 10:48] = layer[40:90, 52:90] = (200, 10, 10, 255)
    layer[60:90, 48:52] = (200, 10, 10, 255)
    ends = np.array([[(35.0 + 5 * k, 40.0 + 10 * r) for k in range(5)] for r in range(4)])
    sleeve = Part(SHIRT, ends, ends, is_sleeve=True)
    closed = close_seams(layer, [sleeve], 100.0)
    assert closed[45:60, 48:52, 3].min() > 200
    assert closed[50, 50, 0] > 150
    assert not close_seams(layer, [], 100.0)[45:60, 48:52].any()
