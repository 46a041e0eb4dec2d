"""What the engine loads, keeps and drops, shown on a tiny FLUX.2 klein with real classes."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pydantic import BaseModel
from safetensors.torch import load_file, save_file

from deployments import recipes
from deployments.backends.diffusion.backend import DiffusionBackend
from deployments.backends.diffusion.flux2_klein import Flux2KleinInpaintRecipe
from deployments.backends.diffusion.recipe import Encoded
from deployments.backends.diffusion.registry import RECIPES
from deployments.bundle import Bundle
from deployments.recipes import Prompt
from serve.config import ReplicaPlan
from serve.errors import BundleInvalid
from serve.observing.meter import MemoryMeter
from tests.diffusion_requests import (
    counting,
    loaded,
    paint,
    picture,
    pipe_of,
    product,
    request,
    stop_at,
    tiny_bundle,
)
from tests.pictures import photo
from tests.rows import Stop, levels_apart
from tests.tiny.klein import build_klein, build_klein_lora, build_transformer


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for bundles with the pipeline and two adapters beside them."""
    folder = tmp_path_factory.mktemp("home")
    build_klein(folder / "klein")
    for seed in (1, 2):
        build_klein_lora(folder / f"lora{seed}", seed=seed)
    return folder


@pytest.fixture(scope="module")
def backend(home: Path) -> DiffusionBackend:
    return loaded(tiny_bundle(home))


# What it keeps and drops


def test_product_is_encoded_once_and_gives_the_same_bytes(backend: DiffusionBackend) -> None:
    asked = request(product_hwc=product(99), product_hash="theirs-99")
    with counting(pipe_of(backend).vae.encoder) as calls:
        (first,) = paint(backend, asked)
        assert len(calls) == 2  # person and product
        (again,) = paint(backend, asked)
        assert len(calls) == 3  # the person alone
        (nobodys,) = paint(backend, replace(asked, product_hash=""))
        assert len(calls) == 5
    assert [reply.product_cached for reply in (first, again, nobodys)] == [False, True, False]
    assert (again.images_nhwc == first.images_nhwc).all()
    assert (nobodys.images_nhwc == first.images_nhwc).all()
    assert backend.forget({"theirs-99", "another"}) == 1
    assert paint(backend, asked)[0].product_cached is False


def test_products_beyond_the_budget_are_encoded_again(home: Path) -> None:
    backend = loaded(tiny_bundle(home))
    backend.use_meter(meter := MemoryMeter())
    backend._products._cache._kept._max_bytes = 4000  # one product's latents are 2,304 bytes
    with counting(pipe_of(backend).vae.encoder) as calls:
        for index in (0, 1, 0):
            paint(backend, request(0, product_hwc=product(index), product_hash=str(index)))
    assert len(calls) == 6
    assert meter.total("sm4ll_cache_requests_total", cache="encodings", outcome="miss") == 3
    assert 0 < meter.gauges["sm4ll_cache_bytes", (("cache", "encodings"),)] <= 4000


def test_dropped_text_encoders_give_their_memory_back(home: Path) -> None:
    prompt = {"text": "the person wears the sunglasses", "max_tokens": 32}
    keeping = loaded(tiny_bundle(home, prompt={**prompt, "drop_text_encoders": False}))
    dropping = loaded(tiny_bundle(home))
    encoder = pipe_of(keeping).text_encoder
    encoder_bytes = sum(tensor.nbytes for tensor in encoder.state_dict().values())
    saved_bytes = keeping.memory().weights_bytes - dropping.memory().weights_bytes
    assert saved_bytes == encoder_bytes > 0
    assert pipe_of(dropping).text_encoder is None
    assert (picture(keeping, request()) == picture(dropping, request())).all()


def test_text_encoders_stay_while_one_version_keeps_them(home: Path) -> None:
    prompt = {"text": "other words", "max_tokens": 32, "drop_text_encoders": False}
    backend = loaded(tiny_bundle(home), tiny_bundle(home, name="keeps", prompt=prompt))
    assert pipe_of(backend).text_encoder is not None


def test_each_prompt_is_encoded_once(home: Path) -> None:
    words = {"max_tokens": 32, "drop_text_encoders": False}
    first = tiny_bundle(home, prompt={"text": "one", **words})
    same = tiny_bundle(home, name="same", prompt={"text": "one", **words})
    other = tiny_bundle(home, name="other", prompt={"text": "two", **words})
    backend = loaded(first, same, other)
    with counting(pipe_of(backend).text_encoder) as calls:
        pictures = [picture(backend, request(version=b.version)) for b in (first, same, other)]
    assert not calls
    assert (pictures[0] == pictures[1]).all()
    assert levels_apart(pictures[0], pictures[2]) > 2


def test_vae_works_in_tiles_above_the_limit_only(home: Path) -> None:
    # 0.025 MP lie between 128x128 and 128x192.
    backend = loaded(tiny_bundle(home, speed={"vae_tiling_above_megapixels": 0.02}))
    vae = pipe_of(backend).vae
    vae.tile_sample_min_size, vae.tile_latent_min_size = 128, 16
    small = request(crop_hwc=photo(128, 128), region_hw=request().region_hw[:128])
    for painted, num_tiles in ((request(), 4), (small, 1), (request(), 4)):
        with counting(vae.decoder) as calls:
            paint(backend, painted)
        assert len(calls) == num_tiles


def test_unload_gives_everything_back_and_may_be_called_twice(home: Path) -> None:
    backend = loaded(tiny_bundle(home))
    assert backend.memory().weights_bytes > 0
    backend.unload()
    backend.unload()
    assert backend.memory().weights_bytes == 0


# What it loads


def lora(home: Path, name: str, folder: str) -> Bundle:
    return tiny_bundle(home, name=name, adapter={"source": {"path": folder}})


def test_versions_of_one_base_take_turns_without_a_trace(home: Path) -> None:
    versions = lora(home, "a", "lora1"), lora(home, "b", "lora2"), tiny_bundle(home)
    shared = loaded(*versions)
    asked = [request(version=bundle.version) for bundle in versions]
    alone = [picture(loaded(v), r) for v, r in zip(versions, asked, strict=True)]
    for index in (0, 1, 0, 2, 1, 2, 0):
        assert (picture(shared, asked[index]) == alone[index]).all()
        with pytest.raises(Stop):
            shared.generate([asked[index - 1]], stop_at(1))
    assert levels_apart(alone[0], alone[1]) > 5
    assert levels_apart(alone[0], alone[2]) > 5


def test_memory_tells_base_and_adapters_apart(home: Path, backend: DiffusionBackend) -> None:
    shared = loaded(lora(home, "a", "lora1"), lora(home, "b", "lora2"))
    assert shared.memory().weights_bytes == backend.memory().weights_bytes
    assert set(shared.memory().adapter_bytes) == {"eye@a", "eye@b"}
    assert all(shared.memory().adapter_bytes.values())


def test_fine_tuned_denoiser_takes_the_bases_place(home: Path, backend: DiffusionBackend) -> None:
    torch.manual_seed(9)
    tuned = build_transformer()
    tuned.save_pretrained(home / "tuned")
    served = loaded(tiny_bundle(home, transformer={"path": "tuned"}))
    for name, tensor in pipe_of(served).transformer.state_dict().items():
        assert torch.equal(tensor, tuned.state_dict()[name])
    assert levels_apart(picture(served, request()), picture(backend, request())) > 5


def remove_key(file: Path, key: str) -> None:
    state = load_file(file)
    del state[key]
    save_file(state, file, metadata={"format": "pt"})


def test_fine_tuned_denoiser_with_keys_missing_is_refused_by_key(home: Path) -> None:
    build_transformer().save_pretrained(home / "cut")
    remove_key(home / "cut/diffusion_pytorch_model.safetensors", "proj_out.weight")
    with pytest.raises(BundleInvalid, match=r"cut: .* 1 keys missing or unknown: proj_out\.weight"):
        loaded(tiny_bundle(home, transformer={"path": "cut"}))


@pytest.mark.parametrize(
    ("part", "key"), [("transformer", "proj_out.weight"), ("vae", "decoder.conv_out.weight")]
)
def test_base_with_keys_missing_is_refused_by_key(tmp_path: Path, part: str, key: str) -> None:
    build_klein(tmp_path / "klein")
    remove_key(tmp_path / f"klein/{part}/diffusion_pytorch_model.safetensors", key)
    with pytest.raises(BundleInvalid, match=rf"1 keys missing or unknown: {key}"):
        loaded(tiny_bundle(tmp_path))


def test_folder_that_is_no_pipeline_is_refused(home: Path) -> None:
    with pytest.raises(BundleInvalid, match="no diffusers pipeline"):
        loaded(tiny_bundle(home, model={"path": "klein/vae"}))


def test_prompts_are_encoded_while_the_denoiser_is_elsewhere(home: Path) -> None:
    seen: list[tuple[object, object, torch.device]] = []

    class Watching(Flux2KleinInpaintRecipe):
        def encode_prompt(self, pipe: Any, prompt: Prompt, guidance: float) -> Encoded:
            seen.append((pipe.transformer, pipe.vae, pipe.device))
            return super().encode_prompt(pipe, prompt, guidance)

    bundle = tiny_bundle(home)
    backend = DiffusionBackend((bundle,), ReplicaPlan(name="r"))
    backend._recipe = Watching(bundle.backend.recipe)
    backend.load()
    assert seen == [(None, None, torch.device("cpu"))]
    assert pipe_of(backend).transformer is not None


def test_weights_of_another_family_are_refused(home: Path) -> None:
    other = {"pipeline": "FluxKontextInpaintPipeline"}
    with pytest.raises(
        BundleInvalid, match="does not load as FluxKontextInpaintPipeline"
    ) as caught:
        loaded(tiny_bundle(home, recipe=other))
    assert "recipe.pipeline" in caught.value.remedy
    with pytest.raises(BundleInvalid, match="does not load as StableDiffusionInpaintPipeline"):
        loaded(tiny_bundle(home, recipe={"pipeline": "StableDiffusionInpaintPipeline"}))


def test_damaged_weights_are_refused(home: Path, tmp_path: Path) -> None:
    build_klein(tmp_path / "klein")
    file = tmp_path / "klein/transformer/diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(BundleInvalid, match="klein does not load"):
        loaded(tiny_bundle(tmp_path))


def test_pickle_beside_safetensors_is_never_read(tmp_path: Path) -> None:
    build_klein(tmp_path / "klein")
    (tmp_path / "klein/transformer/diffusion_pytorch_model.bin").write_bytes(b"no pickle at all")
    loaded(tiny_bundle(tmp_path))


def test_every_pipeline_a_bundle_may_name_has_a_recipe_and_no_other() -> None:
    named = {
        get_args(model.model_fields["pipeline"].annotation)[0]
        for model in vars(recipes).values()
        if isinstance(model, type) and issubclass(model, BaseModel)
        if "pipeline" in model.model_fields
    }
    assert set(RECIPES) == named
