"""Adapters are read as diffusers' own loader reads them, or refused with their keys named."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    Flux2KleinInpaintPipeline,
    FluxFillPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLInpaintPipeline,
)
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from deployments.backends.diffusion.adapter_file import AdapterFile, AdapterReader, AdapterWeights
from serve.errors import BundleInvalid
from tests.tiny.flux import FILL_CHANNELS, build_flux_fill, build_flux_lora
from tests.tiny.klein import build_klein, build_klein_lora
from tests.tiny.stable_diffusion import (
    build_sd_inpaint,
    build_sd_unet,
    build_sdxl_inpaint,
    build_sdxl_unet,
    build_unet_lora,
)

WEIGHTS = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def klein_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_klein(tmp_path_factory.mktemp("klein"))


@pytest.fixture(scope="module")
def klein(klein_base: Path) -> AdapterReader:
    return AdapterReader(Flux2KleinInpaintPipeline.from_pretrained(klein_base), "transformer")


def added_by(weights: AdapterWeights) -> dict[str, torch.Tensor]:
    """What each layer's weight grows by."""
    return {
        name: (layer.b.flatten(1) @ layer.a.flatten(1)).reshape(
            *layer.b.shape[:1], *layer.a.shape[1:]
        )
        for name, layer in weights.layers.items()
    }


def added_by_diffusers(pipe: Any, denoiser_name: str, adapter: Path) -> dict[str, torch.Tensor]:
    """The same, by loading the adapter into the pipeline."""
    pipe.load_lora_weights(str(adapter), weight_name=WEIGHTS, adapter_name="own")
    return {
        name: module.get_delta_weight("own").detach()
        for name, module in getattr(pipe, denoiser_name).named_modules()
        if hasattr(module, "get_delta_weight")
    }


def assert_read_alike(pipe: Any, denoiser_name: str, adapter: Path, num_layers: int) -> None:
    ours = added_by(AdapterReader(pipe, denoiser_name).read(AdapterFile(adapter, WEIGHTS)))
    theirs = added_by_diffusers(pipe, denoiser_name, adapter)
    assert ours.keys() == theirs.keys()
    assert len(ours) == num_layers
    for name, delta in theirs.items():
        torch.testing.assert_close(ours[name], delta, atol=1e-6, rtol=1e-5)
        assert delta.abs().max() > 0


def test_a_flux_2_adapter_is_read_alike(klein_base: Path, tmp_path: Path) -> None:
    pipe = Flux2KleinInpaintPipeline.from_pretrained(klein_base)
    adapter = build_klein_lora(tmp_path, seed=1, ranks={"to_v": 7})
    assert_read_alike(pipe, "transformer", adapter, 4)


@pytest.mark.parametrize("alpha", [1.0, 4.0, 7.0])
def test_alpha_from_the_files_metadata_counts(
    klein_base: Path, tmp_path: Path, alpha: float
) -> None:
    pipe = Flux2KleinInpaintPipeline.from_pretrained(klein_base)
    adapter = build_klein_lora(tmp_path, seed=1, ranks={"to_v": 7}, alpha=alpha)
    assert_read_alike(pipe, "transformer", adapter, 4)


def test_alpha_patterns_and_rank_stabilised_scaling_count(klein_base: Path, tmp_path: Path) -> None:
    pipe = Flux2KleinInpaintPipeline.from_pretrained(klein_base)
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        alpha_pattern={"attn.to_k": 3.0, "to_out.0": 20.0},
        target_modules=["to_q", "to_k", "to_out.0"],
        use_rslora=True,
        init_lora_weights=False,
    )
    pipe.transformer.add_adapter(config)
    layers = get_peft_model_state_dict(pipe.transformer)
    pipe.save_lora_weights(tmp_path, layers, transformer_lora_adapter_metadata=config.to_dict())
    fresh = Flux2KleinInpaintPipeline.from_pretrained(klein_base)
    assert_read_alike(fresh, "transformer", tmp_path, 3)


def test_ai_toolkits_names_for_flux_2_are_converted(klein_base: Path, tmp_path: Path) -> None:
    pipe = Flux2KleinInpaintPipeline.from_pretrained(klein_base)
    rng = torch.Generator().manual_seed(0)
    shapes = {"double_blocks.0.img_attn.qkv": (32, 96), "single_blocks.0.linear1": (32, 288)}
    state = {}
    for name, (inputs, outputs) in shapes.items():
        state[f"diffusion_model.{name}.lora_A.weight"] = torch.randn(4, inputs, generator=rng)
        state[f"diffusion_model.{name}.lora_B.weight"] = torch.randn(outputs, 4, generator=rng)
    save_file(state, tmp_path / WEIGHTS)
    assert_read_alike(pipe, "transformer", tmp_path, 4)  # q, k, v and the single block's


def test_kohyas_names_and_alphas_for_flux_2_are_converted(klein_base: Path, tmp_path: Path) -> None:
    pipe = Flux2KleinInpaintPipeline.from_pretrained(klein_base)
    rng = torch.Generator().manual_seed(0)
    name = "lora_unet_single_blocks_0_linear1"
    state = {
        f"{name}.lora_down.weight": torch.randn(4, 32, generator=rng),
        f"{name}.lora_up.weight": torch.randn(288, 4, generator=rng),
        f"{name}.alpha": torch.tensor(3.0),
    }
    save_file(state, tmp_path / WEIGHTS)
    assert_read_alike(pipe, "transformer", tmp_path, 1)


def test_a_flux_1_adapter_is_read_alike(tmp_path: Path) -> None:
    pipe = FluxFillPipeline.from_pretrained(build_flux_fill(tmp_path / "fill"))
    adapter = build_flux_lora(tmp_path / "lora", seed=1, in_channels=FILL_CHANNELS)
    num_layers = len(load_file(adapter / WEIGHTS)) // 2
    assert_read_alike(pipe, "transformer", adapter, num_layers)


def test_alphas_beside_the_weights_of_flux_1_count(tmp_path: Path) -> None:
    pipe = FluxFillPipeline.from_pretrained(build_flux_fill(tmp_path / "fill"))
    adapter = build_flux_lora(tmp_path / "lora", seed=1, in_channels=FILL_CHANNELS)
    layers = [key.removesuffix(".lora_A.weight") for key in load_file(adapter / WEIGHTS)]
    alphas = {
        f"{layer}.alpha": torch.tensor(float(number + 1))
        for number, layer in enumerate(layers)
        if not layer.endswith(".weight")
    }
    edit_weights(adapter, alphas)
    assert_read_alike(pipe, "transformer", adapter, len(alphas))


def test_a_unets_adapter_is_read_alike(tmp_path: Path) -> None:
    pipe = StableDiffusionInpaintPipeline.from_pretrained(build_sd_inpaint(tmp_path / "sd"))
    adapter = build_unet_lora(tmp_path / "lora", build_sd_unet(), seed=1)
    assert_read_alike(pipe, "unet", adapter, len(load_file(adapter / WEIGHTS)) // 2)


def test_convolutions_of_a_unet_take_adapters_too(tmp_path: Path) -> None:
    pipe = StableDiffusionInpaintPipeline.from_pretrained(build_sd_inpaint(tmp_path / "sd"))
    unet = build_sd_unet()
    targets = ["conv1", "proj_in", "conv_in"]  # 3 x 3, 1 x 1, and one of 3 x 3 with nine inputs
    unet.add_adapter(LoraConfig(r=3, target_modules=targets, init_lora_weights=False))
    layers = get_peft_model_state_dict(unet)
    pipe.save_lora_weights(tmp_path, unet_lora_layers=layers)
    assert_read_alike(pipe, "unet", tmp_path, len(layers) // 2)


def test_kohyas_names_and_alphas_for_unets_are_converted(tmp_path: Path) -> None:
    pipe = StableDiffusionInpaintPipeline.from_pretrained(build_sd_inpaint(tmp_path / "sd"))
    adapter = build_unet_lora(tmp_path / "lora", build_sd_unet(), seed=1)
    as_kohya(adapter, first_alpha=3.0, other_alpha=3.0)
    assert_read_alike(pipe, "unet", adapter, len(load_file(adapter / WEIGHTS)) // 3)


def test_kohyas_alphas_may_differ_from_layer_to_layer(tmp_path: Path) -> None:
    pipe = StableDiffusionInpaintPipeline.from_pretrained(build_sd_inpaint(tmp_path / "sd"))
    adapter = build_unet_lora(tmp_path / "lora", build_sd_unet(), seed=1)
    reader = AdapterReader(pipe, "unet")
    plain = added_by(reader.read(AdapterFile(adapter, WEIGHTS)))
    as_kohya(adapter, first_alpha=1.0, other_alpha=8.0)
    scaled = added_by(reader.read(AdapterFile(adapter, WEIGHTS)))
    first = min(plain)
    for name, delta in plain.items():
        torch.testing.assert_close(scaled[name], delta * (1.0 if name == first else 8.0) / 4)


def as_kohya(adapter: Path, first_alpha: float, other_alpha: float) -> None:
    """Give a UNet's adapter of rank 4 the names kohya's scripts write, with an alpha per layer."""
    state: dict[str, torch.Tensor] = {}
    for key, tensor in sorted(load_file(adapter / WEIGHTS).items()):
        layer, _, half = key.removeprefix("unet.").partition(".lora_")
        name = f"lora_unet_{layer.replace('.', '_')}"
        alpha = first_alpha if len(state) < 3 else other_alpha
        state.setdefault(f"{name}.alpha", torch.tensor(alpha))
        state[f"{name}.lora_{'down' if half[0] == 'A' else 'up'}.weight"] = tensor
    save_file(state, adapter / WEIGHTS)


def test_an_sdxl_unets_adapter_is_read_alike(tmp_path: Path) -> None:
    pipe = StableDiffusionXLInpaintPipeline.from_pretrained(build_sdxl_inpaint(tmp_path / "xl"))
    adapter = build_unet_lora(tmp_path / "lora", build_sdxl_unet(), seed=1)
    assert_read_alike(pipe, "unet", adapter, len(load_file(adapter / WEIGHTS)) // 2)


def test_an_adapter_takes_the_bases_dtype(klein_base: Path, tmp_path: Path) -> None:
    pipe = Flux2KleinInpaintPipeline.from_pretrained(klein_base, torch_dtype=torch.bfloat16)
    adapter = AdapterFile(build_klein_lora(tmp_path, seed=1), WEIGHTS)
    weights = AdapterReader(pipe, "transformer").read(adapter)
    assert {half.dtype for layer in weights.layers.values() for half in layer} == {torch.bfloat16}
    num_values = sum(tensor.numel() for tensor in load_file(adapter.path).values())
    assert weights.nbytes == 2 * num_values


def test_what_was_read_does_not_change_with_the_file(klein: AdapterReader, tmp_path: Path) -> None:
    adapter = AdapterFile(build_klein_lora(tmp_path, seed=1), WEIGHTS)
    weights = klein.read(adapter)
    before = {name: layer.a.clone() for name, layer in weights.layers.items()}
    with adapter.path.open("r+b") as file:
        file.seek(-1000, 2)
        file.write(b"\x7f" * 1000)
    for name, layer in weights.layers.items():
        assert np.array_equal(layer.a.numpy(), before[name].numpy())


def edit_weights(adapter: Path, edits: Mapping[str, torch.Tensor | None]) -> Path:
    """Put tensors into an adapter's file, or take them out."""
    state = load_file(adapter / WEIGHTS)
    for key, tensor in edits.items():
        state.pop(key, None)
        if tensor is not None:
            state[key] = tensor
    save_file(state, adapter / WEIGHTS)
    return adapter


TO_Q = "transformer.transformer_blocks.0.attn.to_q"


@pytest.mark.parametrize(
    ("edits", "complaint"),
    [
        (
            {
                "transformer.blocks.9.to_q.lora_A.weight": torch.ones(4, 32),
                "transformer.blocks.9.to_q.lora_B.weight": torch.ones(32, 4),
            },
            r"2 of 10 keys .*transformer\.blocks\.9\.to_q\.lora_A\.weight \(no such layer\)",
        ),
        (
            {f"{TO_Q}.lora_A.weight": torch.ones(4, 33)},
            r"1 of 8 .*to_q\.lora_A\.weight \(has \(4, 33\), the layer takes \(4, 32\)\)",
        ),
        (
            {f"{TO_Q}.lora_B.weight": torch.ones(64, 4)},
            r"1 of 8 .*to_q\.lora_B\.weight \(has \(64, 4\), the layer takes \(32, 4\)\)",
        ),
        (
            {f"{TO_Q}.lora_B.weight": torch.ones(32, 5)},
            r"to_q\.lora_B\.weight \(has \(32, 5\), the layer takes \(32, 4\)\)",
        ),
        ({f"{TO_Q}.lora_B.weight": None}, r"to_q\.lora_A\.weight \(its other half is missing\)"),
        (
            {
                f"{TO_Q}.lora_A.weight": torch.ones(0, 32),
                f"{TO_Q}.lora_B.weight": torch.ones(32, 0),
            },
            r"2 of 8 .*\(has \(0, 32\)",
        ),
        (
            {f"{TO_Q}.lora_A.weight": torch.ones(4, 32, dtype=torch.int8)},
            r"to_q\.lora_A\.weight \(is torch\.int8\)",
        ),
        (
            {f"{TO_Q}.lora_B.bias": torch.ones(32)},
            r"to_q\.lora_B\.bias \(not a LoRA weight\)",
        ),
        (
            {"text_encoder.model.layers.0.mlp.up_proj.lora_A.weight": torch.ones(4, 16)},
            r"text_encoder\.model\..* \(adapters change the transformer alone\)",
        ),
        (
            {"layers.0.lora_A.weight": torch.ones(4, 16)},
            r"layers\.0\.lora_A\.weight \(does not begin with transformer\)",
        ),
        (
            {"transformer.a.lora_magnitude_vector": torch.ones(4)},
            r"is a DoRA, not a LoRA: transformer\.a\.lora_magnitude_vector",
        ),
        ({"transformer.a.dora_scale": torch.ones(4)}, r"is a DoRA, not a LoRA"),
        ({"transformer.a.lokr_w1": torch.ones(4, 4)}, r"is a LoKr, not a LoRA"),
        ({"transformer.a.hada_w1_a": torch.ones(4, 4)}, r"is a LoHa, not a LoRA"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_with_the_keys_named(
    klein: AdapterReader, tmp_path: Path, edits: dict[str, torch.Tensor | None], complaint: str
) -> None:
    adapter = edit_weights(build_klein_lora(tmp_path / "eye", seed=1), edits)
    with pytest.raises(BundleInvalid, match=complaint) as caught:
        klein.read(AdapterFile(adapter, WEIGHTS))
    assert str(adapter / WEIGHTS) in caught.value.detail
    assert caught.value.remedy


def test_a_wholly_foreign_adapter_names_a_few_keys_and_counts_the_rest(
    klein: AdapterReader, tmp_path: Path
) -> None:
    foreign = {f"unet.{index}.lora_A.weight": torch.ones(4, 4) for index in range(12)}
    save_file(foreign, tmp_path / WEIGHTS)
    with pytest.raises(BundleInvalid, match=r"12 of 12 keys .* and 7 more") as caught:
        klein.read(AdapterFile(tmp_path, WEIGHTS))
    assert caught.value.detail.count("lora_A") == 5


def test_a_file_without_one_key_is_refused(klein: AdapterReader, tmp_path: Path) -> None:
    save_file({}, tmp_path / WEIGHTS)
    with pytest.raises(BundleInvalid, match="not one LoRA key"):
        klein.read(AdapterFile(tmp_path, WEIGHTS))


def test_a_damaged_file_is_refused_by_name(klein: AdapterReader, tmp_path: Path) -> None:
    (tmp_path / WEIGHTS).write_bytes(b"\xff" * 100)
    with pytest.raises(BundleInvalid, match=WEIGHTS):
        klein.read(AdapterFile(tmp_path, WEIGHTS))


def test_a_pickle_is_refused_by_name_and_never_opened(klein: AdapterReader, tmp_path: Path) -> None:
    (tmp_path / "lora.bin").write_bytes(b"whatever")
    with pytest.raises(BundleInvalid, match=r"lora\.bin is not safetensors"):
        klein.read(AdapterFile(tmp_path, "lora.bin"))


def test_a_missing_file_says_which_names_are_there(klein: AdapterReader, tmp_path: Path) -> None:
    adapter = build_klein_lora(tmp_path, seed=1)
    with pytest.raises(BundleInvalid, match="no such file") as caught:
        klein.read(AdapterFile(adapter, "eye.safetensors"))
    assert WEIGHTS in caught.value.remedy
