"""FLUX.2 klein gets each row's own product as latents and paints what the stock pipeline would."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinInpaintPipeline
from diffusers.utils import logging as diffusers_logging
from PIL import Image

from deployments.backends.diffusion.flux2_klein import Flux2KleinInpaintRecipe
from deployments.recipes import Flux2KleinInpaint, Prompt
from serve.errors import BundleInvalid
from serve.messages import UInt8Array
from tests.pictures import photo
from tests.rows import HEIGHT_PX, PROMPT, WIDTH_PX, Loaded, levels_apart, product, region
from tests.tiny.klein import build_klein, build_klein_lora

RECIPE = Flux2KleinInpaintRecipe(Flux2KleinInpaint())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_klein(tmp_path_factory.mktemp("klein"))


@pytest.fixture(scope="module")
def klein(folder: Path) -> Loaded:
    return Loaded(folder, RECIPE)


def undistilled(folder: Path, prompt: Prompt = PROMPT, guidance: float = 3.0) -> Loaded:
    """The base as it is before distillation: it can be guided."""
    loaded = Loaded(folder, RECIPE, prompt=PROMPT)
    loaded.pipe.register_to_config(is_distilled=False)
    loaded.guidance = guidance
    loaded.prompt = RECIPE.encode_prompt(loaded.pipe, prompt, guidance)
    return loaded


@contextmanager
def counting(module: torch.nn.Module) -> Iterator[list[int]]:
    calls: list[int] = []
    hook = module.register_forward_hook(lambda *_: calls.append(1))
    yield calls
    hook.remove()


def test_latents_give_the_bytes_that_pictures_give_the_stock_pipeline(
    folder: Path, klein: Loaded
) -> None:
    stock = Flux2KleinInpaintPipeline.from_pretrained(folder, local_files_only=True)
    stock.set_progress_bar_config(disable=True)
    row = klein.row(1)
    painted = stock(
        prompt=PROMPT.text,
        max_sequence_length=PROMPT.max_tokens,
        image=Image.fromarray(row.crop_hwc),
        mask_image=Image.fromarray(region(1)),  # its borders are on whole tokens
        image_reference=Image.fromarray(row.product_hwc),
        strength=1.0,
        num_inference_steps=klein.num_steps,
        generator=torch.Generator().manual_seed(1),
        output_type="np",
    ).images
    expected = np.rint(painted * 255).astype(np.uint8)
    assert (klein.paint([row]) == expected).all()


def test_product_encoded_before_gives_the_bytes_of_one_encoded_now(klein: Loaded) -> None:
    before = klein.paint([klein.row(0)])
    row = klein.row(0, product=None)
    with counting(klein.pipe.vae.encoder) as calls:
        now = klein.paint([row])
    assert (now == before).all()
    assert len(calls) == 2


def test_each_row_of_a_batch_has_its_own_product(klein: Loaded) -> None:
    together = klein.paint([klein.row(index) for index in range(3)])
    for index in range(3):
        assert levels_apart(together[index], klein.paint([klein.row(index)])[0]) <= 1
    swapped = klein.paint([klein.row(0, product_index=2), klein.row(1), klein.row(2)])
    assert levels_apart(swapped[0], together[0]) > 10
    assert levels_apart(swapped[1:], together[1:]) <= 1


def test_batch_steps_once_for_all_rows(klein: Loaded) -> None:
    with counting(klein.pipe.transformer) as calls:
        klein.paint([klein.row(index) for index in range(3)])
    assert len(calls) == klein.num_steps


def test_text_encoder_is_not_needed_once_the_prompt_is_encoded(folder: Path, klein: Loaded) -> None:
    dropped = Loaded(folder, RECIPE)
    dropped.drop_text_encoders()
    assert dropped.pipe._execution_device == torch.device("cpu")
    assert (dropped.paint([dropped.row(0)]) == klein.paint([klein.row(0)])).all()


def test_loras_load_without_the_text_encoder(folder: Path, klein: Loaded, tmp_path: Path) -> None:
    dropped = Loaded(folder, RECIPE)
    dropped.drop_text_encoders()
    dropped.pipe.load_lora_weights(build_klein_lora(tmp_path, seed=1), local_files_only=True)
    assert levels_apart(dropped.paint([dropped.row(0)]), klein.paint([klein.row(0)])) > 0


def test_distilled_base_ignores_guidance_without_a_word(
    klein: Loaded, caplog: pytest.LogCaptureFixture
) -> None:
    diffusers_logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        guided = klein.paint([klein.row(0)])
    diffusers_logging.disable_propagation()
    assert not caplog.records
    plain = Loaded.__new__(Loaded)
    vars(plain).update(vars(klein), guidance=0.0)
    assert (plain.paint([plain.row(0)]) == guided).all()


def test_distilled_base_refuses_a_negative_prompt(klein: Loaded) -> None:
    with pytest.raises(BundleInvalid, match=r"prompt\.negative would not be read"):
        RECIPE.encode_prompt(klein.pipe, Prompt(text="a", negative="b"), 3.0)


def test_undistilled_base_is_guided_away_from_the_negative_prompt(folder: Path) -> None:
    def painted(negative: str, guidance: float) -> UInt8Array:
        prompt = PROMPT.model_copy(update={"negative": negative})
        loaded = undistilled(folder, prompt, guidance)
        loaded.drop_text_encoders()
        with counting(loaded.pipe.transformer) as calls:
            picture = loaded.paint([loaded.row(0), loaded.row(1)])
        assert len(calls) == loaded.num_steps * (2 if guidance > 1 else 1)
        return picture

    plain = painted("", 1.0)
    guided = painted("", 4.0)
    assert levels_apart(guided, plain) > 0
    assert levels_apart(painted("blurred", 4.0), guided) > 0


def test_crop_above_a_megapixel_keeps_its_size(klein: Loaded) -> None:
    width_px, height_px = 1296, 816
    row = replace(
        klein.row(0),
        crop_hwc=photo(width_px, height_px),
        region_hw=np.full((height_px, width_px), 255, np.uint8),
    )
    single = Loaded.__new__(Loaded)
    vars(single).update(vars(klein), num_steps=1)
    assert single.paint([row]).shape == (1, height_px, width_px, 3)


def test_region_thinner_than_a_token_is_painted(klein: Loaded) -> None:
    thin = np.zeros((HEIGHT_PX, WIDTH_PX), np.uint8)
    thin[81:83] = 255
    nothing = klein.paint([klein.row(0, region_hw=np.zeros_like(thin))])[0]
    painted = klein.paint([klein.row(0, region_hw=thin)])[0]
    assert levels_apart(painted[81:83], nothing[81:83]) > 5


def test_canvas_of_any_size_is_shown_whole(klein: Loaded) -> None:
    odd = product(0)[:150, :100]
    row = klein.row(0, product_hwc=odd, product=None)
    edge = odd.copy()
    edge[-4:] = 0
    changed = klein.row(0, product_hwc=edge, product=None)
    # The stock pipeline would cut the last rows off.
    assert levels_apart(klein.paint([row]), klein.paint([changed])) > 0


def test_size_that_is_no_multiple_of_a_token_is_refused(klein: Loaded) -> None:
    row = klein.row(0, crop_hwc=photo(120, 192), region_hw=region(0)[:, :120])
    with pytest.raises(BundleInvalid, match="cannot paint 120 x 192: .* multiples of 16") as caught:
        klein.paint([row])
    assert "crop.multiple_of" in caught.value.remedy
