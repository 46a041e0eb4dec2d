"""Every picture the demo needs is bundled, small, readable and fit for its expert."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from serve.demo.cases import ASSETS_DIR, demo_cases
from serve.messages import EXPERTS

PICTURES = sorted(path for path in ASSETS_DIR.iterdir() if path.suffix in {".jpg", ".png"})
CUT_OUT = ("eyewear", "shoes", "face", "top", "bottom", "dress")


def _load(name: str, mode: str) -> np.ndarray:
    with Image.open(ASSETS_DIR / name) as picture:
        return np.asarray(picture.convert(mode))


def test_every_expert_has_one_case_with_existing_files() -> None:
    cases = demo_cases()
    assert [case.expert for case in cases] == list(EXPERTS)
    assert all(case.person_path.is_file() and case.product_path.is_file() for case in cases)


def test_every_picture_is_named_in_the_attribution() -> None:
    text = (ASSETS_DIR / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert PICTURES
    assert [path.name for path in PICTURES if path.stem not in text] == []


def test_all_pictures_together_stay_under_two_megabytes() -> None:
    assert sum(path.stat().st_size for path in PICTURES) < 2_000_000


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
def test_picture_decodes_and_is_small(path: Path) -> None:
    assert path.stat().st_size < (200_000 if path.stem.startswith("product_") else 1_000_000)
    with Image.open(path) as picture:
        picture.load()
        assert min(picture.size) >= 200
        assert max(picture.size) >= 500


@pytest.mark.parametrize("product", CUT_OUT)
def test_cut_out_product_is_clear_around_and_opaque_within(product: str) -> None:
    with Image.open(ASSETS_DIR / f"product_{product}.png") as picture:
        assert picture.mode == "RGBA"
        alpha_hw = np.asarray(picture)[..., 3]
    assert not alpha_hw[0].any()
    assert 0.2 < (alpha_hw == 255).mean() < 0.95


@pytest.mark.parametrize("product", CUT_OUT)
def test_product_also_comes_on_a_plain_light_backdrop(product: str) -> None:
    image_hwc = _load(f"product_{product}.jpg", "RGB").astype(int)
    corners = np.stack([image_hwc[:12, :12], image_hwc[:12, -12:]])
    assert corners.min() > 170
    assert np.ptp(corners.reshape(-1, 3).mean(axis=0)) < 12


@pytest.mark.parametrize("name", ["person_portrait", "person_full", "product_face"])
def test_face_is_found_where_an_expert_needs_one(name: str) -> None:
    grey_hw = _load(f"{name}.jpg", "L")
    cascade = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_alt2.xml")
    faces = cascade.detectMultiScale(grey_hw, 1.1, 5)
    assert any(top < grey_hw.shape[0] * 0.4 for _, top, _, _ in faces)
