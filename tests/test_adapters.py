"""Versions that share a base by LoRA paint as if each had a pipeline of its own."""

import gc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    Flux2KleinInpaintPipeline,
    FluxFillPipeline,
    StableDiffusionInpaintPipeline,
)
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from deployments.backends.diffusion.adapters import AdapterRack, time_swaps
from deployments.bundle import Bundle
from deployments.sources import ModelSource
from serve.errors import BundleInvalid
from serve.messages import EXPERTS
from tests.tiny.family import lora_bundle
from tests.tiny.flux import FILL_CHANNELS, build_flux_fill, build_flux_transformer
from tests.tiny.klein import build_klein, build_klein_lora
from tests.tiny.stable_diffusion import (
    TEXT_WIDTH,
    build_sd_inpaint,
    build_sd_unet,
    build_unet_lora,
)

WEIGHTS = "pytorch_lora_weights.safetensors"
PLENTY_BYTES = 2**30
SINGLE = "single_transformer_blocks.0.attn.to_qkv_mlp_proj"
Painted = NDArray[np.float32]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_klein(tmp_path_factory.mktemp("klein"))


@pytest.fixture
def pipe(base: Path) -> Any:
    return load_pipe(base)


def load_pipe(base: Path) -> Any:
    pipe = Flux2KleinInpaintPipeline.from_pretrained(base, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def paint(pipe: Any, seed: int = 0) -> Painted:
    rng = np.random.default_rng(0)
    picture = torch.from_numpy(rng.random((1, 3, 64, 64), dtype=np.float32))
    painted: Painted = pipe(
        prompt="the person wears the sunglasses",
        image=picture,
        mask_image=torch.ones(1, 1, 64, 64),
        height=64,
        width=64,
        num_inference_steps=2,
        strength=1.0,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
    ).images
    return painted


def make_bundle(version: str, adapter: Path | None = None, **adapter_fields: Any) -> Bundle:
    expert, name = version.split("@")
    fields: dict[str, Any] = {**lora_bundle(expert), "name": name}
    source = {"source": {"path": str(adapter)}, **adapter_fields}
    backend = {**fields["backend"], "adapter": None if adapter is None else source}
    return Bundle.model_validate({**fields, "backend": backend})


def locate(source: ModelSource) -> str:
    return str(source.path)


def make_rack(
    pipe: Any, adapters: Mapping[str, Path | None], budget_bytes: int = PLENTY_BYTES
) -> AdapterRack:
    bundles = tuple(make_bundle(version, adapter) for version, adapter in adapters.items())
    rack = AdapterRack(pipe, "transformer", bundles, locate, budget_bytes)
    rack.load()
    return rack


def paint_as(rack: AdapterRack, pipe: Any, version: str) -> Painted:
    with rack.use(version):
        return paint(pipe)


def paint_alone(base: Path, adapter: Path, scale: float = 1.0) -> Painted:
    """What diffusers paints with one adapter in a pipeline of its own."""
    pipe = load_pipe(base)
    pipe.load_lora_weights(str(adapter), adapter_name="own")
    pipe.set_adapters("own", scale)
    return paint(pipe)


def test_an_adapter_on_the_rack_paints_as_in_a_pipeline_of_its_own(
    base: Path, pipe: Any, tmp_path: Path
) -> None:
    adapter = build_klein_lora(tmp_path / "eye", seed=1)
    rack = make_rack(pipe, {"eye@1": adapter})
    alone = paint_alone(base, adapter)
    assert np.array_equal(paint_as(rack, pipe, "eye@1"), alone)
    assert np.abs(alone - paint(load_pipe(base))).max() > 1e-3


def test_a_b_a_gives_as_bytes(pipe: Any, tmp_path: Path) -> None:
    adapters = {
        "eye@1": build_klein_lora(tmp_path / "eye", seed=1),
        "top@1": build_klein_lora(tmp_path / "top", seed=2, rank=8),
    }
    rack = make_rack(pipe, adapters)
    first = paint_as(rack, pipe, "eye@1")
    other = paint_as(rack, pipe, "top@1")
    assert paint_as(rack, pipe, "eye@1").tobytes() == first.tobytes()
    assert other.tobytes() != first.tobytes()


def test_a_version_without_an_adapter_gives_the_bytes_of_a_base_that_never_saw_one(
    base: Path, pipe: Any, tmp_path: Path
) -> None:
    rack = make_rack(pipe, {"eye@1": build_klein_lora(tmp_path, seed=1), "eye@plain": None})
    plain = paint(load_pipe(base)).tobytes()
    assert paint_as(rack, pipe, "eye@plain").tobytes() == plain
    assert paint_as(rack, pipe, "eye@1").tobytes() != plain
    assert paint_as(rack, pipe, "eye@plain").tobytes() == plain


def test_versions_without_adapters_leave_the_denoiser_alone(base: Path, pipe: Any) -> None:
    rack = make_rack(pipe, {"eye@plain": None})
    assert paint_as(rack, pipe, "eye@plain").tobytes() == paint(load_pipe(base)).tobytes()
    assert not hasattr(pipe.transformer, "peft_config")
    assert rack.bytes_by_version() == {}
    assert rack.slot_bytes == 0


def test_adapters_of_other_layers_ranks_and_alphas_take_turns(
    base: Path, pipe: Any, tmp_path: Path
) -> None:
    adapters = {
        "eye@1": build_klein_lora(tmp_path / "eye", seed=1, rank=2, alpha=3.0),
        "top@1": build_klein_lora(
            tmp_path / "top", seed=2, rank=16, targets=("ff.linear_in", SINGLE)
        ),
        "bg@1": build_klein_lora(
            tmp_path / "bg", seed=3, targets=("to_q", SINGLE), ranks={SINGLE: 7}
        ),
    }
    rack = make_rack(pipe, adapters)
    for version in ("eye@1", "top@1", "bg@1", "eye@1"):
        alone = paint_alone(base, adapters[version])
        # Zeros that fill a rank up add nothing, yet a longer sum may be added in another order.
        assert np.abs(paint_as(rack, pipe, version) - alone).max() < 1e-5


def test_the_slot_takes_at_each_layer_the_largest_rank_wanted_there(
    pipe: Any, tmp_path: Path
) -> None:
    adapters: dict[str, Path | None] = {
        "eye@1": build_klein_lora(tmp_path / "eye", seed=1, rank=2),
        "top@1": build_klein_lora(tmp_path / "top", seed=2, rank=16, targets=(SINGLE,)),
    }
    rack = make_rack(pipe, adapters)
    ranks = {
        name.removesuffix(".lora_A.slot"): module.weight.shape[0]
        for name, module in pipe.transformer.named_modules()
        if name.endswith(".lora_A.slot")
    }
    attention = "transformer_blocks.0.attn"
    assert ranks == {
        **{f"{attention}.{name}": 2 for name in ("to_q", "to_k", "to_v", "to_out.0")},
        SINGLE: 16,
    }
    assert rack.slot_bytes == sum(rack.bytes_by_version().values())


def test_a_layer_whose_name_ends_like_anothers_keeps_its_own_rank(tmp_path: Path) -> None:
    transformer = build_flux_transformer(FILL_CHANNELS)
    ranks = {"^proj_out": 3, "single_transformer_blocks.0.proj_out": 5}
    transformer.add_adapter(
        LoraConfig(target_modules=["proj_out"], rank_pattern=ranks, init_lora_weights=False)
    )
    layers = get_peft_model_state_dict(transformer)
    FluxFillPipeline.save_lora_weights(tmp_path / "lora", transformer_lora_layers=layers)
    pipe = FluxFillPipeline.from_pretrained(build_flux_fill(tmp_path / "fill"))
    rack = make_rack(pipe, {"top@1": tmp_path / "lora"})
    with rack.use("top@1"):
        outer = pipe.transformer.proj_out.lora_A["slot"].weight
        inner = pipe.transformer.single_transformer_blocks[0].proj_out.lora_A["slot"].weight
    assert (outer.shape[0], inner.shape[0]) == (3, 5)


def test_an_adapter_that_overflows_spoils_nobody_else(
    base: Path, pipe: Any, tmp_path: Path
) -> None:
    broken = build_klein_lora(tmp_path, seed=1)
    state = {key: torch.full_like(half, 3e38) for key, half in load_file(broken / WEIGHTS).items()}
    save_file(state, broken / WEIGHTS)
    rack = make_rack(pipe, {"eye@1": broken, "eye@plain": None})
    with rack.use("eye@1"):
        pass
    assert paint_as(rack, pipe, "eye@plain").tobytes() == paint(load_pipe(base)).tobytes()


def test_the_adapters_scale_is_honoured(base: Path, pipe: Any, tmp_path: Path) -> None:
    adapter = build_klein_lora(tmp_path, seed=1, alpha=6.0)
    bundles = (make_bundle("eye@1", adapter, scale=0.3), make_bundle("eye@full", adapter))
    rack = AdapterRack(pipe, "transformer", bundles, locate, PLENTY_BYTES)
    rack.load()
    weak, full = paint_as(rack, pipe, "eye@1"), paint_as(rack, pipe, "eye@full")
    assert np.abs(weak - paint_alone(base, adapter, 0.3)).max() < 1e-5
    assert np.abs(full - paint_alone(base, adapter)).max() < 1e-5
    assert np.abs(full - weak).max() > 1e-3


def test_adapters_that_do_not_fit_the_budget_are_read_again_for_each_turn(
    pipe: Any, tmp_path: Path
) -> None:
    adapters = {
        "eye@1": build_klein_lora(tmp_path / "eye", seed=1),
        "top@1": build_klein_lora(tmp_path / "top", seed=2),
    }
    rack = make_rack(pipe, adapters, budget_bytes=1)
    first = paint_as(rack, pipe, "eye@1")
    assert rack.host_bytes == 0
    paint_as(rack, pipe, "top@1")
    assert paint_as(rack, pipe, "eye@1").tobytes() == first.tobytes()


def test_an_adapter_that_grew_on_disk_is_refused_and_the_next_turn_is_whole(
    pipe: Any, tmp_path: Path
) -> None:
    adapters = {
        "eye@1": build_klein_lora(tmp_path / "eye", seed=1),
        "top@1": build_klein_lora(tmp_path / "top", seed=2),
    }
    rack = make_rack(pipe, adapters, budget_bytes=1)
    first = paint_as(rack, pipe, "eye@1")
    build_klein_lora(tmp_path / "top", seed=2, rank=32)
    with pytest.raises(BundleInvalid, match="has changed since this replica started"):
        paint_as(rack, pipe, "top@1")
    assert paint_as(rack, pipe, "eye@1").tobytes() == first.tobytes()


def test_a_swap_that_broke_off_is_not_mistaken_for_a_whole_one(
    base: Path, pipe: Any, tmp_path: Path
) -> None:
    adapters = {
        "eye@1": build_klein_lora(tmp_path / "eye", seed=1),
        "top@1": build_klein_lora(tmp_path / "top", seed=2),
    }
    rack = make_rack(pipe, adapters)
    first = paint_as(rack, pipe, "eye@1")
    last_layer = pipe.transformer.transformer_blocks[0].attn.to_v.lora_B["slot"]
    copied, last_layer.weight.data = last_layer.weight.data, torch.zeros(1, 4)
    with pytest.raises(RuntimeError):
        paint_as(rack, pipe, "top@1")
    last_layer.weight.data = copied
    assert paint_as(rack, pipe, "eye@1").tobytes() == first.tobytes()


def count_bytes(*modules: torch.nn.Module) -> int:
    return sum(tensor.nbytes for module in modules for tensor in module.state_dict().values())


def modules_of(pipe: Any) -> Iterator[torch.nn.Module]:
    return (part for part in pipe.components.values() if isinstance(part, torch.nn.Module))


def test_seven_experts_cost_one_base_and_seven_small_adapters(
    base: Path, pipe: Any, tmp_path: Path
) -> None:
    adapters = {
        f"{expert}@1": build_klein_lora(tmp_path / expert, seed=seed)
        for seed, expert in enumerate(EXPERTS)
    }
    base_bytes = count_bytes(*modules_of(pipe))
    rack = make_rack(pipe, adapters)
    for version in adapters:
        with rack.use(version):
            pass
    adapter_bytes = rack.bytes_by_version()
    shared_bytes = count_bytes(*modules_of(pipe)) + rack.host_bytes
    assert shared_bytes == base_bytes + rack.slot_bytes + sum(adapter_bytes.values())
    assert rack.slot_bytes == max(adapter_bytes.values())

    separate_bytes = 0
    for adapter in adapters.values():
        alone = load_pipe(base)
        alone.load_lora_weights(str(adapter))
        separate_bytes += count_bytes(*modules_of(alone))
        del alone
        gc.collect()
    assert separate_bytes == 7 * base_bytes + sum(adapter_bytes.values())


def test_swaps_can_be_timed(pipe: Any, tmp_path: Path) -> None:
    adapters = {
        "eye@1": build_klein_lora(tmp_path / "eye", seed=1),
        "top@1": build_klein_lora(tmp_path / "top", seed=2),
    }
    times_s = time_swaps(make_rack(pipe, adapters), list(adapters), 5)
    assert len(times_s) == 5
    assert all(time_s > 0 for time_s in times_s)


def test_a_unets_versions_take_turns(tmp_path: Path) -> None:
    unet = build_sd_unet().eval()
    pipe = StableDiffusionInpaintPipeline.from_pretrained(build_sd_inpaint(tmp_path / "sd"))
    pipe.register_modules(unet=unet)
    adapters = {
        "eye@1": build_unet_lora(tmp_path / "eye", build_sd_unet(), seed=1),
        "top@1": build_unet_lora(tmp_path / "top", build_sd_unet(), seed=2, rank=8),
        "eye@plain": None,
    }
    plain = predict_noise(unet)
    bundles = tuple(make_bundle(version, adapter) for version, adapter in adapters.items())
    rack = AdapterRack(pipe, "unet", bundles, locate, PLENTY_BYTES)
    rack.load()
    seen = []
    for version in ("eye@1", "top@1", "eye@plain", "eye@1"):
        with rack.use(version):
            seen.append(predict_noise(unet))
    assert seen[0] == seen[3]
    assert seen[2] == plain
    assert len({plain, *seen}) == 3


def predict_noise(unet: Any) -> bytes:
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        noise = unet(
            torch.randn(1, 9, 16, 16, generator=rng),
            torch.tensor(500),
            torch.randn(1, 7, TEXT_WIDTH, generator=rng),
        ).sample
    return bytes(noise.numpy().tobytes())


def test_unload_gives_host_memory_back_and_can_be_repeated(pipe: Any, tmp_path: Path) -> None:
    rack = make_rack(pipe, {"eye@1": build_klein_lora(tmp_path, seed=1)})
    assert rack.host_bytes > 0
    rack.unload()
    rack.unload()
    assert rack.host_bytes == 0


def test_a_refused_adapter_leaves_the_denoiser_alone(pipe: Any, tmp_path: Path) -> None:
    adapter = build_klein_lora(tmp_path, seed=1)
    (adapter / WEIGHTS).write_bytes(b"")
    with pytest.raises(BundleInvalid, match=WEIGHTS):
        make_rack(pipe, {"eye@1": adapter})
    assert not hasattr(pipe.transformer, "peft_config")
