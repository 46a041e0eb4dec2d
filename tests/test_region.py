"""The crop covers the region, stays inside the picture, and comes back without a shift."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from deployments.bundle import Crop
from serve.errors import SubjectNotFound
from serve.imaging.decode import decode_image
from serve.imaging.limits import ImageLimits
from serve.imaging.paste import paste_back
from serve.imaging.region import (
    CropPolicy,
    cut_copy_to_crop,
    extract_crop,
    plan_crop,
    restore_crop,
    shrink_region,
    upscale_region,
)
from serve.receipts import invert_plan
from serve.schemas.receipt import Blend
from tests.image_files import make_region, make_rgb, save

BOUND = settings(max_examples=150, deadline=None, derandomize=True)
POLICY = CropPolicy()


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, int, tuple[int, int, int, int], float]:
    """Picture size, region box inside of it, and the scale of the copy it was found on."""
    width, height = draw(st.integers(16, 250)), draw(st.integers(16, 250))
    x0, y0 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    x1, y1 = draw(st.integers(x0 + 1, width)), draw(st.integers(y0 + 1, height))
    return width, height, (x0, y0, x1, y1), draw(st.sampled_from([1.0, 2.0, 3.7, 9.0]))


policies = st.builds(
    CropPolicy,
    context=st.floats(1, 3),
    size_px=st.sampled_from([512, 768, 1000]),
    multiple_of=st.sampled_from([8, 16, 64]),
)


@BOUND
@given(cases(), policies)
def test_box_covers_the_region_inside_the_picture(
    case: tuple[int, int, tuple[int, int, int, int], float], policy: CropPolicy
) -> None:
    copy_w, copy_h, (x0, y0, x1, y1), scale = case
    region = np.zeros((copy_h, copy_w), np.uint8)
    region[y0:y1, x0:x1] = 255
    width, height = round(copy_w * scale), round(copy_h * scale)
    plan = plan_crop(region, width, height, policy)
    left, top, right, bottom = plan.box
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    scale_x, scale_y = width / copy_w, height / copy_h
    assert left <= x0 * scale_x
    assert top <= y0 * scale_y
    assert right >= x1 * scale_x - 1e-6
    assert bottom >= y1 * scale_y - 1e-6
    assert plan.crop_w_px % policy.multiple_of == plan.crop_h_px % policy.multiple_of == 0
    assert 0 < min(plan.crop_w_px, plan.crop_h_px)
    assert max(plan.crop_w_px, plan.crop_h_px) <= policy.size_px
    upscaled = upscale_region(region, plan)
    assert upscaled.shape == (bottom - top, right - left)
    assert set(np.unique(upscaled)) <= {0, 255}
    assert upscaled.any()


def test_region_touching_border_stays_inside() -> None:
    region = np.zeros((400, 300), np.uint8)
    region[380:, 270:] = 255
    plan = plan_crop(region, 300, 400, POLICY)
    assert plan.box[2:] == (300, 400)
    assert (plan.box_w_px, plan.box_h_px) == (192, 128), "shifted, not cut"


def test_context_is_kept_around_the_region() -> None:
    region = np.zeros((2000, 2000), np.uint8)
    region[800:1200, 800:1200] = 255
    plan = plan_crop(region, 2000, 2000, CropPolicy(context=1.5))
    assert plan.box == (700, 700, 1300, 1300)
    assert (plan.crop_w_px, plan.crop_h_px) == (768, 768)


def test_tiny_region_in_a_large_photo_gets_surroundings() -> None:
    """40 pixels in 50 megapixels: four times larger at most, the rest is context."""
    region = np.zeros((768, 1024), np.uint8)
    region[300:305, 500:505] = 255
    plan = plan_crop(region, 8192, 6144, POLICY)
    assert 192 <= max(plan.box_w_px, plan.box_h_px) < 260
    assert max(plan.scale) <= 4.0


def test_long_region_is_not_squeezed() -> None:
    region = np.zeros((1500, 1500), np.uint8)
    region[700:760, 100:1400] = 255
    plan = plan_crop(region, 1500, 1500, POLICY)
    across, down = plan.scale
    assert across == pytest.approx(down, rel=0.02)
    assert plan.box_w_px / plan.box_h_px <= POLICY.max_aspect + 0.1


def test_picture_smaller_than_the_expert_is_resampled() -> None:
    region = np.full((48, 37), 255, np.uint8)
    plan = plan_crop(region, 37, 48, POLICY)
    assert plan.box == (0, 0, 37, 48)
    assert plan.crop_h_px == 768
    assert extract_crop(make_rgb(37, 48), plan).shape == (plan.crop_h_px, plan.crop_w_px, 3)


def test_empty_region_is_refused() -> None:
    with pytest.raises(SubjectNotFound):
        plan_crop(np.zeros((50, 50), np.uint8), 50, 50, POLICY)


def measure_shift(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Least-squares shift (x, y) in pixels, from the gradient of the first."""
    a = cv2.GaussianBlur(before.astype(np.float64), (0, 0), 1.5)
    b = cv2.GaussianBlur(after.astype(np.float64), (0, 0), 1.5)
    gy, gx = np.gradient(a)
    normal = np.array([[np.sum(gx * gx), np.sum(gx * gy)], [np.sum(gx * gy), np.sum(gy * gy)]])
    return -np.linalg.solve(normal, [np.sum(gx * (b - a)), np.sum(gy * (b - a))])


@pytest.mark.parametrize("box", [(500, 400, 560, 470), (300, 200, 1100, 900), (0, 0, 50, 40)])
def test_untouched_crop_returns_without_a_shift(box: tuple[int, int, int, int]) -> None:
    picture = make_rgb(1403, 1107)
    plan = plan_crop(make_region(1403, 1107, box), 1403, 1107, POLICY)
    x0, y0, x1, y1 = plan.box
    before = np.ascontiguousarray(picture[y0:y1, x0:x1])
    crop = extract_crop(before, plan)
    assert crop.shape[:2] == (plan.crop_h_px, plan.crop_w_px) != before.shape[:2]
    after = restore_crop(crop, plan)
    assert np.abs(measure_shift(before[..., 1], after[..., 1])).max() < 0.05
    rolled = np.roll(before, 1, axis=1)
    assert measure_shift(before[..., 1], rolled[..., 1])[0] == pytest.approx(1, abs=0.2)


def test_crop_and_region_and_landmarks_agree() -> None:
    """One disc, found on the copy: in the crop all three ways lead to the same place."""
    width, height, copy_w, copy_h = 2000, 1500, 1000, 750
    disc = make_region(copy_w, copy_h, (600, 300, 680, 400))
    plan = plan_crop(disc, width, height, POLICY)
    region_crop = shrink_region(upscale_region(disc, plan), plan)
    map_crop = cut_copy_to_crop(disc, plan)
    scale, offset = plan.affine_from_copy(copy_w, copy_h)
    centre = (640.5 * scale[0] + offset[0], 350.5 * scale[1] + offset[1])
    for found in (region_crop, map_crop):
        rows, columns = np.nonzero(found > 127)
        assert columns.mean() + 0.5 == pytest.approx(centre[0], abs=0.6)
        assert rows.mean() + 0.5 == pytest.approx(centre[1], abs=0.6)


def test_upscaled_edges_are_smooth_not_blocky() -> None:
    """A disc from a copy eight times smaller stays closer to the disc than blocks would."""
    size = 2000
    truth = make_region(size, size, (400, 400, 1600, 1600))
    copy = np.where(cv2.resize(truth, (250, 250), interpolation=cv2.INTER_AREA) > 127, 255, 0)
    copy = copy.astype(np.uint8)
    plan = plan_crop(copy, size, size, POLICY)
    x0, y0, x1, y1 = plan.box
    wanted = truth[y0:y1, x0:x1]
    blocks = np.kron(copy, np.ones((8, 8), np.uint8))[y0:y1, x0:x1]
    wrong = np.count_nonzero(upscale_region(copy, plan) != wanted)
    assert wrong < 0.5 * np.count_nonzero(blocks != wanted)


def test_soft_region_stays_soft() -> None:
    soft = np.tile(np.linspace(0, 255, 100).astype(np.uint8), (80, 1))
    plan = plan_crop(soft, 400, 320, POLICY)
    assert len(np.unique(upscale_region(soft, plan))) > 200


def test_region_at_full_size_is_taken_as_it_is() -> None:
    region = (np.random.default_rng(0).random((90, 120)) > 0.5).astype(np.uint8) * 255
    plan = plan_crop(region, 120, 90, POLICY)
    x0, y0, x1, y1 = plan.box
    assert np.array_equal(upscale_region(region, plan), region[y0:y1, x0:x1])


def test_one_pixel_line_survives_both_ways() -> None:
    """Spectacle frames are that thin on the copy."""
    line = np.zeros((200, 200), np.uint8)
    line[100, 40:160] = 255
    plan = plan_crop(line, 1000, 1000, POLICY)
    assert upscale_region(line, plan).any(axis=0).sum() > 550
    wide = np.zeros((4000, 4000), np.uint8)
    wide[2000, 100:3900] = 255
    plan = plan_crop(wide, 4000, 4000, POLICY)
    assert shrink_region(upscale_region(wide, plan), plan).any()


SIZES = st.lists(
    st.tuples(st.sampled_from([256, 512, 768, 1024]), st.sampled_from([256, 512, 768, 1024])),
    min_size=1,
    max_size=3,
    unique=True,
).map(tuple)


@BOUND
@given(cases(), SIZES, st.floats(1, 3))
def test_fixed_sizes_hold_the_region_and_squeeze_nothing(
    case: tuple[int, int, tuple[int, int, int, int], float],
    sizes: tuple[tuple[int, int], ...],
    context: float,
) -> None:
    copy_w, copy_h, (x0, y0, x1, y1), scale = case
    region = np.zeros((copy_h, copy_w), np.uint8)
    region[y0:y1, x0:x1] = 255
    width, height = round(copy_w * scale), round(copy_h * scale)
    plan = plan_crop(region, width, height, CropPolicy(context=context, sizes=sizes))
    left, top, right, bottom = plan.box
    assert (plan.crop_w_px, plan.crop_h_px) in sizes
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    scale_x, scale_y = width / copy_w, height / copy_h
    assert left <= x0 * scale_x
    assert top <= y0 * scale_y
    assert right >= x1 * scale_x - 1e-6
    assert bottom >= y1 * scale_y - 1e-6
    across, down = plan.scale
    # Half a pixel of what is shown is the most that whole pixels can cost beside a border.
    allowed = max(0.02, 0.5 / min(plan.shown_w_px, plan.shown_h_px))
    assert max(across, down) / min(across, down) - 1 <= allowed + 1e-9
    # Only where the picture ends does the crop reach beyond the box.
    if plan.border_px[0] or plan.border_px[2]:
        assert (left, right) == (0, width)
    if plan.border_px[1] or plan.border_px[3]:
        assert (top, bottom) == (0, height)
    mask = shrink_region(upscale_region(region, plan), plan)
    assert mask.shape == (plan.crop_h_px, plan.crop_w_px)
    assert mask.any()
    shown = np.zeros_like(mask)
    x, y = plan.border_px[:2]
    shown[y : y + plan.shown_h_px, x : x + plan.shown_w_px] = 255
    assert not mask[shown == 0].any(), "nothing outside the picture may be painted"


@pytest.mark.parametrize(
    ("size", "box", "wanted"),
    [
        ((1500, 1500), (600, 500, 900, 900), (768, 1024)),
        ((1500, 1500), (500, 600, 900, 900), (1024, 768)),
        ((1500, 1500), (600, 600, 900, 900), (1024, 1024)),
    ],
)
def test_the_size_that_takes_in_least_is_chosen(
    size: tuple[int, int], box: tuple[int, int, int, int], wanted: tuple[int, int]
) -> None:
    policy = CropPolicy(sizes=((1024, 1024), (768, 1024), (1024, 768)))
    plan = plan_crop(make_region(*size, box), *size, policy)
    assert (plan.crop_w_px, plan.crop_h_px) == wanted
    assert plan.border_px == (0, 0, 0, 0)


def test_context_is_given_up_before_the_crop_leaves_the_picture() -> None:
    """A figure nearly as high as a narrow picture: 768x1024 fits with less air around it."""
    region = np.zeros((1400, 1000), np.uint8)
    region[60:1360, 200:800] = 255
    plan = plan_crop(region, 1000, 1400, CropPolicy(context=1.3, sizes=((768, 1024),)))
    assert plan.border_px == (0, 0, 0, 0)
    assert plan.box_w_px == 1000
    across, down = plan.scale
    assert across == pytest.approx(down, rel=0.002)


def test_a_whole_narrow_picture_gets_a_border_not_a_squeeze() -> None:
    """The background expert's region is the picture: 2:3 in 3:4 leaves a strip on either side."""
    region = np.full((1500, 1000), 255, np.uint8)
    plan = plan_crop(region, 1000, 1500, CropPolicy(context=1.0, sizes=((768, 1024),)))
    assert plan.box == (0, 0, 1000, 1500)
    assert plan.border_px == (42, 0, 43, 0)
    crop = extract_crop(make_rgb(1000, 1500), plan)
    assert crop.shape == (1024, 768, 3)
    assert (crop[:, :42] == crop[:, 42:43]).all()
    assert (crop[:, -43:] == crop[:, -44:-43]).all()


BORDERED = CropPolicy(context=1.0, sizes=((512, 512),))


@pytest.mark.parametrize(
    ("size", "box", "policy"),
    [
        ((1403, 1107), (300, 200, 1100, 900), CropPolicy(sizes=((768, 1024),))),
        ((1403, 1107), (500, 400, 560, 470), CropPolicy(sizes=((1024, 512),))),
        ((1000, 707), (0, 0, 1000, 707), BORDERED),
        ((611, 1304), (0, 0, 611, 1304), BORDERED),
    ],
)
def test_untouched_crop_of_a_fixed_size_returns_without_a_shift(
    size: tuple[int, int], box: tuple[int, int, int, int], policy: CropPolicy
) -> None:
    picture = make_rgb(*size)
    plan = plan_crop(make_region(*size, box), *size, policy)
    x0, y0, x1, y1 = plan.box
    before = np.ascontiguousarray(picture[y0:y1, x0:x1])
    crop = extract_crop(before, plan)
    assert crop.shape[:2] == (plan.crop_h_px, plan.crop_w_px)
    after = restore_crop(crop, plan)
    assert after.shape == before.shape
    assert np.abs(measure_shift(before[..., 1], after[..., 1])).max() < 0.05


@pytest.mark.parametrize("size", [(2000, 1500), (1500, 2200)])
def test_crop_region_map_and_landmarks_agree_beside_a_border(size: tuple[int, int]) -> None:
    width, height = size
    copy_w, copy_h = width // 2, height // 2
    disc = make_region(copy_w, copy_h, (600, 300, 680, 400))
    whole = np.full_like(disc, 255)
    plan = plan_crop(whole, width, height, BORDERED)
    assert any(plan.border_px)
    region_crop = shrink_region(upscale_region(disc, plan), plan)
    map_crop = cut_copy_to_crop(disc, plan)
    scale, offset = plan.affine_from_copy(copy_w, copy_h)
    centre = (640.5 * scale[0] + offset[0], 350.5 * scale[1] + offset[1])
    for found in (region_crop, map_crop):
        rows, columns = np.nonzero(found > 127)
        assert columns.mean() + 0.5 == pytest.approx(centre[0], abs=0.6)
        assert rows.mean() + 0.5 == pytest.approx(centre[1], abs=0.6)


def test_squeeze_of_ordinary_photos_is_what_whole_pixels_cost() -> None:
    """99 of 100 stay below 0.25 %; the rest are nearly of the size's aspect and kept whole."""
    rng = np.random.default_rng(3)
    policy = CropPolicy(sizes=((768, 1024), (1024, 1024), (1024, 768)))
    squeezes = []
    for _ in range(300):
        width, height = (int(side) for side in rng.integers(800, 4000, 2))
        x0, y0 = rng.integers(0, width - 200), rng.integers(0, height - 200)
        x1, y1 = rng.integers(x0 + 100, width), rng.integers(y0 + 100, height)
        region = np.zeros((height // 4, width // 4), np.uint8)
        region[y0 // 4 : y1 // 4, x0 // 4 : x1 // 4] = 255
        plan = plan_crop(region, width, height, policy)
        squeezes.append(max(plan.scale) / min(plan.scale) - 1)
    assert np.quantile(squeezes, 0.99) < 0.0025
    assert max(squeezes) < 0.02


@pytest.mark.parametrize("blend", ["exact", "seamless"])
def test_crop_with_a_border_is_pasted_back_where_it_was_cut(blend: Blend) -> None:
    """Background round a person, inverted by the expert: exactly that changes, border or not."""
    image = decode_image(save(make_rgb(400, 700), "PNG"), ImageLimits())
    region = np.full((700, 400), 255, np.uint8)
    region[200:650, 100:300] = 0
    plan = plan_crop(region, 400, 700, BORDERED)
    assert plan.border_px[0] > 0
    crop = extract_crop(image.pixels, plan)
    pasted = paste_back(image, 255 - crop, None, plan, region, blend=blend, feather_px=0)
    assert np.array_equal(pasted.pixels[region == 0], image.pixels[region == 0])
    if blend == "exact":
        wanted = np.where(region[..., None] > 0, 255 - image.pixels, image.pixels)
        assert cv2.PSNR(pasted.pixels, wanted) > 30


def test_affine_of_the_receipt_leads_back_from_beside_a_border() -> None:
    plan = plan_crop(np.full((700, 400), 255, np.uint8), 400, 700, BORDERED)
    affine = invert_plan(plan)
    left, top, right, bottom = plan.border_px
    assert left * affine.scale_x + affine.left == pytest.approx(0)
    assert top * affine.scale_y + affine.top == pytest.approx(0)
    assert (plan.crop_w_px - right) * affine.scale_x + affine.left == pytest.approx(400)
    assert (plan.crop_h_px - bottom) * affine.scale_y + affine.top == pytest.approx(700)


def test_sizes_that_the_expert_cannot_have_are_refused_by_name() -> None:
    assert Crop(sizes=((768, 1024),)).sizes == ((768, 1024),)
    with pytest.raises(ValidationError, match="500x768 is no multiple of 16"):
        Crop(sizes=((768, 1024), (500, 768)))


def test_a_size_that_keeps_the_context_is_preferred() -> None:
    """A square would take in less of this narrow picture, and cut the surroundings by half."""
    region = np.zeros((2000, 900), np.uint8)
    region[700:1300, 100:800] = 255
    plan = plan_crop(region, 900, 2000, CropPolicy(context=2.0, sizes=((1024, 1024), (512, 1024))))
    assert (plan.crop_w_px, plan.crop_h_px) == (512, 1024)
    assert plan.box == (0, 100, 900, 1900)
