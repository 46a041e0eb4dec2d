"""Speed switches change how fast a pipeline paints, not what, and never compile twice."""

import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLQwenImage,
    Flux2KleinInpaintPipeline,
    FluxTransformer2DModel,
    UNet2DConditionModel,
)
from numpy.typing import NDArray
from peft import LoraConfig
from pydantic import ValidationError
from torch._dynamo.utils import counters

from deployments.backends.diffusion.adapters import AdapterRack
from deployments.backends.diffusion.flux2_klein import Flux2KleinInpaintRecipe
from deployments.backends.diffusion.speed import apply_speed, fp8_layers, quantise_fp8
from deployments.bundle import Bundle
from deployments.recipes import Flux2KleinInpaint, Speed
from serve.errors import BundleInvalid
from tests.tiny.family import lora_bundle
from tests.tiny.flux import build_flux_transformer
from tests.tiny.klein import build_klein, build_klein_lora, build_transformer
from tests.tiny.stable_diffusion import build_sd_unet

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
RECIPE = Flux2KleinInpaintRecipe(Flux2KleinInpaint())
SINGLE = "single_transformer_blocks.0.attn.to_qkv_mlp_proj"
Painted = NDArray[np.float32]

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_klein(tmp_path_factory.mktemp("klein"))


@pytest.fixture
def pipe(base: Path) -> Any:
    pipe = Flux2KleinInpaintPipeline.from_pretrained(base, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    counters.clear()


def paint(pipe: Any, side_px: int = 64, num_images: int = 1) -> Painted:
    painted: Painted = pipe(
        prompt="the person wears the sunglasses",
        image=torch.full((1, 3, side_px, side_px), 0.4),
        mask_image=torch.ones(1, 1, side_px, side_px),
        height=side_px,
        width=side_px,
        num_inference_steps=2,
        strength=1.0,
        num_images_per_prompt=num_images,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images
    return painted


def make_rack(pipe: Any, folder: Path) -> AdapterRack:
    """eye has an adapter, top another with other layers and rank, bg none."""
    build_klein_lora(folder / "eye", seed=1, targets=(SINGLE,))
    build_klein_lora(folder / "top", seed=2, rank=8, targets=("ff.linear_in", SINGLE))
    bundles = []
    for expert in ("eye", "top", "bg"):
        fields: dict[str, Any] = lora_bundle(expert)
        if expert == "bg":
            del fields["backend"]["adapter"]
        bundles.append(Bundle.model_validate(fields))
    rack = AdapterRack(
        pipe,
        "transformer",
        tuple(bundles),
        lambda source: folder / (source.path or folder).name,
        budget_bytes=2**20,
    )
    rack.load()
    return rack


VERSIONS = ("eye@lora", "top@lora", "bg@lora")


def paint_all(rack: AdapterRack, pipe: Any) -> list[Painted]:
    painted = []
    for version in VERSIONS:
        with rack.use(version):
            painted.append(paint(pipe))
    return painted


@needs_compiler
@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_blocks_paint_what_plain_ones_do_for_every_adapter_without_compiling_again(
    pipe: Any, tmp_path: Path
) -> None:
    rack = make_rack(pipe, tmp_path)
    plain = paint_all(rack, pipe)
    assert apply_speed(pipe, RECIPE, Speed(compile=True, channels_last_vae=False), CPU) == ()
    with rack.use("bg@lora"):
        paint(pipe)
    assert counters["stats"]["unique_graphs"] == 2  # one per kind of block
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled = paint_all(rack, pipe)
    for ours, theirs in zip(compiled, plain, strict=True):
        assert np.abs(ours - theirs).max() < 1e-4
    assert np.abs(compiled[0] - compiled[1]).max() > 1e-3


def apply_without_codegen(pipe: Any) -> None:
    """All of torch.compile but the minutes that the code generator takes."""
    transformer = pipe.transformer
    transformer.compile_repeated_blocks = partial(
        transformer.compile_repeated_blocks, backend="eager"
    )
    assert apply_speed(pipe, RECIPE, Speed(compile=True, channels_last_vae=False), CPU) == ()


@pytest.mark.usefixtures("fresh_dynamo")
def test_after_two_sizes_and_two_batches_none_compiles_again(pipe: Any) -> None:
    apply_without_codegen(pipe)
    with torch._dynamo.config.patch(recompile_limit=1):  # the pipeline brings its own
        for side_px, num_images in ((64, 1), (96, 1), (96, 2)):
            paint(pipe, side_px, num_images)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for side_px, num_images in ((128, 1), (64, 3), (128, 4), (64, 1)):
            paint(pipe, side_px, num_images)


@pytest.mark.usefixtures("fresh_dynamo")
def test_blocks_of_one_kind_are_compiled_once(pipe: Any) -> None:
    transformer = type(pipe.transformer).from_config({**pipe.transformer.config, "num_layers": 3})
    pipe.register_modules(transformer=transformer.eval())
    apply_without_codegen(pipe)
    paint(pipe)
    assert counters["stats"]["unique_graphs"] == 2


def test_compile_is_skipped_and_said_where_there_is_no_c_compiler(
    pipe: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    skipped = apply_speed(pipe, RECIPE, Speed(compile=True, channels_last_vae=False), CPU)
    assert skipped == ("compile: there is no C compiler on this machine",)


def test_a_cpu_skips_what_only_gpus_have_and_says_so(pipe: Any) -> None:
    plain = paint(pipe)
    speed = Speed(fp8=True, attention="flash", channels_last_vae=False)
    fp8, flash = sorted(apply_speed(pipe, RECIPE, speed, CPU), reverse=True)
    assert "fp8" in fp8
    assert "flash" in flash
    assert paint(pipe).tobytes() == plain.tobytes()


@pytest.mark.usefixtures("fresh_dynamo")
def test_cuda_graphs_on_a_cpu_leave_compile_as_it_is(pipe: Any) -> None:
    speed = Speed(compile=True, cuda_graphs=True, channels_last_vae=False)
    assert apply_speed(pipe, RECIPE, speed, CPU) == ("cuda_graphs: cpu is no CUDA device",)
    assert not pipe.transformer._forward_pre_hooks


def test_cuda_graphs_without_compile_are_refused() -> None:
    with pytest.raises(ValidationError, match="cuda_graphs needs compile"):
        Speed(cuda_graphs=True)


def test_no_switch_changes_a_byte_of_what_is_painted(pipe: Any) -> None:
    plain = paint(pipe)
    assert apply_speed(pipe, RECIPE, Speed(attention="sdpa", channels_last_vae=False), CPU) == ()
    assert paint(pipe).tobytes() == plain.tobytes()


def test_channels_last_changes_the_vaes_layout_and_not_the_picture(pipe: Any) -> None:
    plain = paint(pipe)
    assert apply_speed(pipe, RECIPE, Speed(), CPU) == ()
    weight = pipe.vae.decoder.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert np.abs(paint(pipe) - plain).max() < 1e-5


def test_a_vae_of_three_dimensions_keeps_its_layout(pipe: Any) -> None:
    vae = AutoencoderKLQwenImage(base_dim=8, z_dim=4, dim_mult=[1, 1], num_res_blocks=1)
    pipe.vae = vae
    (reason,) = apply_speed(pipe, RECIPE, Speed(), CPU)
    assert "AutoencoderKLQwenImage" in reason


def test_flash_is_set_on_every_attention_of_a_gpu(
    pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_gpu(monkeypatch, (9, 0))
    try:
        assert apply_speed(pipe, RECIPE, Speed(attention="flash"), CUDA) == ()
        chosen = {
            module.processor._attention_backend.value
            for module in pipe.transformer.modules()
            if hasattr(module, "processor")
        }
        assert chosen in ({"_native_flash"}, {"flash"})
    finally:
        pipe.transformer.set_attention_backend("native")  # diffusers keeps it for the process


def test_a_unet_whose_attention_cannot_be_chosen_refuses_flash(
    pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_gpu(monkeypatch, (9, 0))
    pipe.register_modules(transformer=build_sd_unet())
    with pytest.raises(BundleInvalid, match="UNet2DConditionModel leaves attention to torch"):
        apply_speed(pipe, RECIPE, Speed(attention="flash"), CUDA)


def test_fp8_refuses_a_base_that_is_not_bf16(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, (8, 9))
    with pytest.raises(BundleInvalid, match=r"bf16, not torch\.float32"):
        apply_speed(pipe, RECIPE, Speed(fp8=True), CUDA)


def test_fp8_is_skipped_on_a_gpu_without_it(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, (8, 6))
    (reason,) = apply_speed(pipe, RECIPE, Speed(fp8=True), CUDA)
    assert reason.startswith("fp8 needs compute capability 8.9")


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


def test_fp8_changes_the_products_of_the_blocks_alone() -> None:
    transformer = build_transformer()
    transformer.add_adapter(LoraConfig(r=16, target_modules=["to_q"]))
    layers = fp8_layers(transformer)
    block = "transformer_blocks.0"
    assert f"{block}.attn.to_q.base_layer" in layers
    assert f"{block}.ff.linear_in" in layers
    assert "single_transformer_blocks.0.attn.to_out" in layers
    outside = ("lora_", "x_embedder", "context_embedder", "modulation", "norm_out", "proj_out")
    assert not [name for name in layers if any(part in name for part in outside)]


@pytest.mark.parametrize("build", [lambda: build_flux_transformer(64), build_sd_unet])
def test_fp8_finds_its_layers_in_every_family(build: Any) -> None:
    denoiser: FluxTransformer2DModel | UNet2DConditionModel = build()
    layers = fp8_layers(denoiser)
    assert any("attn" in name for name in layers)
    assert not any("norm" in name for name in layers)
    for name in layers:
        layer = denoiser.get_submodule(name)
        assert layer.in_features % 16 == layer.out_features % 16 == 0


def test_fp8_without_torchao_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(BundleInvalid, match="torchao") as caught:
        quantise_fp8(build_transformer())
    assert "fp8" in caught.value.remedy


def test_fp8_paints_nearly_the_same_and_adapters_still_swap(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quant_api = pytest.importorskip("torchao.quantization.quant_api")
    # torchao asks for a GPU first, though torch computes the same products on a CPU.
    monkeypatch.setattr(quant_api, "_check_hardware_support", lambda granularity: None)
    pipe = Flux2KleinInpaintPipeline.from_pretrained(base, torch_dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    rack = make_rack(pipe, tmp_path)
    plain = paint_all(rack, pipe)
    quantise_fp8(pipe.transformer)
    lossy = paint_all(rack, pipe)
    for ours, theirs in zip(lossy, plain, strict=True):
        assert 0 < np.abs(ours - theirs).mean() < 0.05
    assert np.abs(lossy[0] - lossy[1]).max() > 1e-2
    assert paint_all(rack, pipe)[0].tobytes() == lossy[0].tobytes()
