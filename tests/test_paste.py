"""Outside the region nothing changes: shown on the file that is delivered, for every format."""

import time
import tracemalloc
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.imaging.colour import crop_to_srgb
from serve.imaging.decode import DecodedImage, decode_image
from serve.imaging.encode import LOSSLESS, encode_image
from serve.imaging.limits import ImageLimits
from serve.imaging.paste import Pasted, paste_back
from serve.imaging.proof import OutsideProof, prove_outside
from serve.imaging.region import (
    CropPlan,
    CropPolicy,
    extract_crop,
    plan_crop,
    upscale_region,
)
from serve.schemas.receipt import Blend, Format
from tests.image_files import build_profile, make_region, make_rgb

P3 = build_profile()
SMALL = CropPolicy(size_px=128, min_side_px=64)


def make_image(
    width_px: int = 160,
    height_px: int = 120,
    *,
    depth: int = 8,
    alpha: bool = False,
    icc_profile: bytes | None = None,
) -> DecodedImage:
    pixels = make_rgb(width_px, height_px, depth=depth)
    cover: Any = np.roll(make_rgb(width_px, height_px, seed=5, depth=depth)[..., 0], 7)
    data = encode_image(
        pixels,
        cover if alpha else None,
        format="tiff" if depth == 16 else "png",
        bit_depth=depth,
        icc_profile=icc_profile,
    )
    return decode_image(data, ImageLimits(max_pixels=100_000_000))


def prepare(image: DecodedImage, region_hw: Any, policy: CropPolicy = SMALL) -> tuple[Any, ...]:
    plan = plan_crop(region_hw, image.width, image.height, policy)
    crop = extract_crop(crop_to_srgb(image, plan.box), plan)
    return plan, upscale_region(region_hw, plan), crop


def deliver(
    image: DecodedImage,
    pasted: Pasted,
    region: Any,
    plan: CropPlan,
    format: Format,
) -> OutsideProof:
    file = encode_image(
        pasted.pixels,
        pasted.alpha,
        format=format,
        icc_profile=image.icc_profile,
        bit_depth=image.bit_depth,
        exif=image.exif,
    )
    return prove_outside(file, image, region, plan.box)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.tuples(st.integers(0, 120), st.integers(0, 90), st.integers(8, 60), st.integers(8, 60)),
    st.sampled_from(LOSSLESS),
    st.sampled_from([8, 16]),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["exact", "seamless"]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_outside_is_identical_in_the_delivered_file(
    box: tuple[int, int, int, int],
    format: Format,
    depth: int,
    alpha: bool,
    profile: bool,
    blend: Blend,
    knows_alpha: bool,
    seed: int,
) -> None:
    image = make_image(depth=depth, alpha=alpha, icc_profile=P3 if profile else None)
    rng = np.random.default_rng(seed)
    x, y, width, height = box
    found = make_region(160, 120, (x, y, x + width, y + height))
    found[rng.random(found.shape) < 0.01] = 255
    plan, region, crop = prepare(image, found)
    painted = rng.integers(0, 256, crop.shape).astype(np.uint8)
    alpha_hw = rng.integers(0, 256, crop.shape[:2]).astype(np.uint8) if knows_alpha else None
    pasted = paste_back(
        image, painted, alpha_hw, plan, region, blend=blend, colour_match=bool(seed % 2)
    )
    proof = deliver(image, pasted, region, plan, format)
    assert proof.max_abs_diff == 0
    assert proof.num_pixels_changed_inside <= np.count_nonzero(region)
    assert proof.exact == (depth == 8 or format != "webp"), "WebP has no 16 bit"


@pytest.mark.parametrize("format", LOSSLESS)
@pytest.mark.parametrize("place", ["outside the box", "inside the box", "alpha"])
def test_one_changed_pixel_outside_is_caught(format: Format, place: str) -> None:
    image = make_image(alpha=True)
    plan, region, crop = prepare(image, make_region(160, 120, (60, 40, 100, 80)))
    pasted = paste_back(image, crop, None, plan, region)
    x, y = {"outside the box": (0, 119), "alpha": (0, 0)}.get(place, (plan.box[0], plan.box[1]))
    assert pasted.alpha is not None
    if place == "alpha":
        pasted.alpha[y, x] ^= 3
    else:
        pasted.pixels[y, x, 2] ^= 3
    proof = deliver(image, pasted, region, plan, format)
    assert 1 <= proof.max_abs_diff <= 3
    assert not proof.exact


def test_a_lost_profile_is_not_exact() -> None:
    image = make_image(icc_profile=P3)
    plan, region, _ = prepare(image, make_region(160, 120, (60, 40, 100, 80)))
    file = encode_image(image.pixels, None, format="png", icc_profile=None)
    assert not prove_outside(file, image, region, plan.box).exact


def test_a_file_of_another_size_is_not_exact() -> None:
    image = make_image()
    plan, region, _ = prepare(image, make_region(160, 120, (60, 40, 100, 80)))
    file = encode_image(image.pixels[:, 1:].copy(), None, format="png")
    proof = prove_outside(file, image, region, plan.box)
    assert (proof.max_abs_diff, proof.exact) == (255, False)


def test_jpeg_is_measured_and_never_called_exact() -> None:
    image = make_image()
    plan, region, crop = prepare(image, make_region(160, 120, (60, 40, 100, 80)))
    pasted = paste_back(image, crop, None, plan, region)
    proof = deliver(image, pasted, region, plan, "jpeg")
    assert 0 < proof.max_abs_diff < 40
    assert not proof.exact


def test_the_original_is_not_written() -> None:
    image = make_image()
    before = image.pixels.copy()
    plan, region, crop = prepare(image, make_region(160, 120, (60, 40, 100, 80)))
    paste_back(image, 255 - crop, None, plan, region)
    assert np.array_equal(image.pixels, before)


def test_the_region_really_takes_the_painted_colour() -> None:
    image = make_image(icc_profile=P3)
    plan, region, crop = prepare(image, make_region(160, 120, (40, 30, 120, 90)))
    crop = np.full_like(crop, (200, 30, 60))
    pasted = paste_back(image, crop, None, plan, region)
    pasted_image = decode_image(
        encode_image(pasted.pixels, None, format="png", icc_profile=P3), ImageLimits()
    )
    seen = crop_to_srgb(pasted_image, (78, 58, 82, 62))
    assert np.abs(seen.astype(int) - (200, 30, 60)).max() <= 3


def test_blend_happens_inside_the_region() -> None:
    image = make_image()
    plan, region, crop = prepare(image, make_region(160, 120, (40, 30, 120, 90)))
    pasted = paste_back(image, crop, None, plan, region, feather_px=6)
    weight = pasted.overlay.weight_hw
    assert (weight[region == 0] == 0).all()
    assert weight.max() == 1
    assert np.count_nonzero((weight > 0.1) & (weight < 0.9)) > 200


def test_region_at_the_picture_border_has_no_soft_edge_there() -> None:
    image = make_image()
    found = np.zeros((120, 160), np.uint8)
    found[60:, :] = 255
    plan, region, crop = prepare(image, found)
    pasted = paste_back(image, crop, None, plan, region, feather_px=10)
    assert pasted.overlay.weight_hw[-1].min() == pasted.overlay.weight_hw[-20:, 0].min() == 1


def test_thin_region_still_reaches_full_weight() -> None:
    image = make_image()
    found = np.zeros((120, 160), np.uint8)
    found[60:63, 20:140] = 255
    plan, region, crop = prepare(image, found)
    pasted = paste_back(image, crop, None, plan, region, feather_px=30)
    assert pasted.overlay.weight_hw.max() > 0.95


def test_unpainted_parts_of_the_region_keep_their_pixels() -> None:
    image = make_image(600, 500)
    plan, region, crop = prepare(image, make_region(600, 500, (100, 100, 500, 400)))
    alpha = np.zeros(crop.shape[:2], np.uint8)
    alpha[:, : alpha.shape[1] // 2] = 255
    pasted = paste_back(image, 255 - crop, alpha, plan, region)
    assert np.array_equal(pasted.pixels[:, 330:], image.pixels[:, 330:])
    assert not np.array_equal(pasted.pixels[:, :270], image.pixels[:, :270])


def test_cut_out_background_stays_clear_where_nothing_was_painted() -> None:
    rgba = np.dstack([make_rgb(160, 120), np.zeros((120, 160), np.uint8)])
    rgba[:, :80, 3] = 255
    data = encode_image(np.ascontiguousarray(rgba[..., :3]), rgba[..., 3], format="png")
    image = decode_image(data, ImageLimits())
    plan, region, crop = prepare(image, make_region(160, 120, (40, 30, 120, 90)))
    crop = crop.copy()
    half = crop.shape[1] // 2
    crop[:, : half + crop.shape[1] // 8] = (10, 120, 10)
    pasted = paste_back(image, crop, None, plan, region)
    assert pasted.alpha is not None
    assert pasted.alpha[60, 82] == 255, "painted over clear background: visible"
    assert np.abs(pasted.pixels[60, 82].astype(int) - (10, 120, 10)).max() <= 6
    assert pasted.alpha[60, 110] == 0, "left as it was: still clear"


def test_16_bit_keeps_its_depth_outside_and_inside_takes_steps_of_257() -> None:
    image = make_image(depth=16)
    plan, region, crop = prepare(image, make_region(160, 120, (40, 30, 120, 90)))
    pasted = paste_back(image, np.full_like(crop, 77), None, plan, region)
    assert pasted.pixels.dtype == np.uint16
    assert (pasted.pixels[60, 80] == 77 * 257).all()


def shifted_scene() -> tuple[DecodedImage, CropPlan, Any, Any]:
    """An expert that shifts every tone by 7 levels, as a VAE does, and paints a red disc."""
    image = make_image(400, 300)
    plan, region, crop = prepare(image, make_region(400, 300, (100, 60, 300, 240)))
    painted = np.clip(crop.astype(int) + 7, 0, 255).astype(np.uint8)
    middle = make_region(crop.shape[1], crop.shape[0], (45, 45, 75, 75)) > 0
    painted[middle] = (220, 40, 40)
    return image, plan, region, painted


def seam(image: DecodedImage, pasted: Pasted, region: Any, plan: CropPlan) -> float:
    """Mean step of tone in levels, a little inside the region's edge."""
    x0, y0, x1, y1 = plan.box
    inside = cv2.erode((region > 0).astype(np.uint8), np.ones((9, 9), np.uint8))
    core = cv2.erode(inside, np.ones((9, 9), np.uint8))
    ring = (inside > 0) & (core == 0)
    new, old = pasted.pixels[y0:y1, x0:x1], image.pixels[y0:y1, x0:x1]
    return float(np.abs((new[ring].astype(float) - old[ring]).mean()))


def test_colour_match_removes_a_global_tone_shift() -> None:
    image, plan, region, painted = shifted_scene()
    plain = paste_back(image, painted, None, plan, region)
    matched = paste_back(image, painted, None, plan, region, colour_match=True)
    assert seam(image, plain, region, plan) > 5
    assert seam(image, matched, region, plan) < 1.5
    centre = matched.pixels[150, 200].astype(int)
    assert centre[0] > 190 > 60 > centre[1], "the product keeps its colour"


def test_seamless_meets_the_original_and_keeps_the_product() -> None:
    image, plan, region, painted = shifted_scene()
    smooth = paste_back(image, painted, None, plan, region, blend="seamless")
    assert seam(image, smooth, region, plan) < 1.5
    centre = smooth.pixels[150, 200].astype(int)
    assert centre[0] > 190 > 60 > centre[1]


def test_seamless_does_not_bleed_a_strong_edge_into_the_product() -> None:
    """Black beside white at the edge of the region is the picture, not an error to spread."""
    image = make_image(400, 300)
    plan, region, crop = prepare(image, make_region(400, 300, (100, 60, 300, 240)))
    painted = np.full_like(crop, 250)
    pasted = paste_back(image, painted, None, plan, region, blend="seamless")
    assert pasted.pixels[150, 200].min() >= 250 - 50


def test_colour_match_leaves_a_new_garment_alone() -> None:
    """Nothing near the edge is alike any more: there is nothing to read a shift from."""
    image = make_image(400, 300)
    plan, region, crop = prepare(image, make_region(400, 300, (100, 60, 300, 240)))
    painted = np.full_like(crop, 255)
    painted[::2] = 0
    plain = paste_back(image, painted, None, plan, region)
    matched = paste_back(image, painted, None, plan, region, colour_match=True)
    assert np.array_equal(plain.pixels, matched.pixels)


def test_same_inputs_give_the_same_bytes() -> None:
    image, plan, region, painted = shifted_scene()
    for blend in ("exact", "seamless"):
        first, second = (
            paste_back(image, painted, None, plan, region, blend=blend, colour_match=True)  # type: ignore[arg-type]
            for _ in range(2)
        )
        assert first.pixels.tobytes() == second.pixels.tobytes()


def test_50_megapixels_with_a_40_pixel_region_cost_one_copy() -> None:
    width, height = 8192, 6104
    pixels = np.tile(make_rgb(1024, 763), (8, 8, 1))
    pixels.flags.writeable = False
    image = DecodedImage(pixels, None, 8, None, "png", "0" * 64, None, "RGB")
    copy_region = np.zeros((763, 1024), np.uint8)
    copy_region[400:405, 500:505] = 255
    tracemalloc.start()
    start = time.perf_counter()
    plan = plan_crop(copy_region, width, height, CropPolicy())
    region = upscale_region(copy_region, plan)
    crop = extract_crop(crop_to_srgb(image, plan.box), plan)
    pasted = paste_back(image, 255 - crop, None, plan, region, blend="seamless", colour_match=True)
    taken_s = time.perf_counter() - start
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < pixels.nbytes + 40_000_000
    assert taken_s < 2.0
    assert max(region.shape) < 260
    changed = (pasted.pixels != image.pixels).any(axis=2)
    assert 0 < np.count_nonzero(changed) <= np.count_nonzero(region)
