"""Experts with weights on the real cluster: seven LoRAs on one base beside the weightless arm."""

import io

import numpy as np
import pytest
from PIL import Image

from serve.client import Client, TryOn
from serve.demo.cases import DemoCase, demo_cases
from serve.schemas.tryon import TryOnOptions
from tests.labelled_people import draw_labels, paint
from tests.pictures import encoded

pytestmark = pytest.mark.ray
CASES = {case.expert: case for case in demo_cases()}


def tryon(api: Client, case: DemoCase, version: str, seed: int = 5) -> TryOn:
    options = TryOnOptions(expert=case.expert, version=version, seed=seed, format="png")
    return api.tryon(options, case.person_path.read_bytes(), case.product_path.read_bytes())


def pixels(answer: TryOn) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(answer.pictures[0].data)).convert("RGB"))


@pytest.mark.parametrize("expert", CASES)
def test_lora_expert_paints_inside_its_region_only(api: Client, expert: str) -> None:
    case = CASES[expert]
    answer = tryon(api, case, "lora")
    receipt = answer.receipt
    assert (receipt.version, receipt.backend, receipt.preview) == (
        f"{expert}@lora",
        "inpaint",
        False,
    )
    assert receipt.outside.max_abs_diff == 0
    assert receipt.num_steps == 2
    person = np.asarray(Image.open(case.person_path).convert("RGB"))
    x0, y0, x1, y1 = receipt.region_box or (0, 0, 0, 0)
    assert not np.array_equal(pixels(answer)[y0:y1, x0:x1], person[y0:y1, x0:x1])


def test_a_b_a_gives_a_again(api: Client) -> None:
    case, other = CASES["eye"], CASES["top"]
    first = tryon(api, case, "lora")
    tryon(api, other, "lora")
    assert tryon(api, case, "lora").pictures[0].data == first.pictures[0].data


def test_adapters_make_different_experts_of_one_base(api: Client) -> None:
    case = CASES["top"]
    as_top = tryon(api, case, "lora")
    dress = TryOnOptions(expert="dress", version="lora", seed=5, format="png")
    person, product = case.person_path.read_bytes(), case.product_path.read_bytes()
    as_dress = api.tryon(dress, person, product)
    assert as_top.receipt.version != as_dress.receipt.version
    assert not np.array_equal(pixels(as_top), pixels(as_dress))


def test_two_arms_of_one_expert_serve_side_by_side(api: Client) -> None:
    case = CASES["eye"]
    arms = [tryon(api, case, version).receipt for version in ("1", "lora", "1", "lora")]
    assert [arm.backend for arm in arms] == ["warp", "inpaint", "warp", "inpaint"]
    assert all(arm.outside.max_abs_diff == 0 for arm in arms)


def test_models_lists_both_arms(api: Client) -> None:
    states = {model.version: model.state for model in api.models().models}
    assert states["eye@1"] == states["eye@lora"] == "ready"


def test_region_is_found_by_the_masker_the_bundle_names(api: Client) -> None:
    person = np.repeat(np.repeat(paint(draw_labels()), 2, axis=0), 2, axis=1)
    product = CASES["top"].product_path.read_bytes()
    options = TryOnOptions(expert="top", version="parsed", format="png")
    receipt = api.tryon(options, encoded(person), product).receipt
    assert receipt.masker.startswith("parsing/parser+")
    assert (receipt.backend, receipt.outside.max_abs_diff) == ("inpaint", 0)
