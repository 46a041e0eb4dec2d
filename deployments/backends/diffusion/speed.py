"""The bundle's speed switches, put on a loaded pipeline once; measures nothing."""

import shutil
from typing import Any

import torch

from deployments.backends.diffusion.recipe import Recipe
from deployments.recipes import Speed
from serve.errors import BundleInvalid

# Sizes and batches of one block that may be compiled for. Above it a call would fail, as blocks
# are compiled whole; torch's own limit of 8 is reached by two kinds of block at four sizes.
MAX_VARIANTS = 64

FLASH_CAPABILITY = (8, 0)
FP8_CAPABILITY = (8, 9)  # Ada and Hopper on; torchao asserts the same

# cuBLASLt's 8-bit products want both sides in sixteens: docs.nvidia.com/cuda/cublas, 2.1.
FP8_MULTIPLE = 16


def apply_speed(pipe: Any, recipe: Recipe, speed: Speed, device: torch.device) -> tuple[str, ...]:
    """Put the switches on.

    Call it once, after the pipeline is on `device` and its adapters' slot is on the denoiser:
    what is compiled or quantised afterwards would be compiled again.

    Returns:
        Switches that this device cannot honour, each with the reason; the pipeline runs without.

    Raises:
        BundleInvalid: a switch contradicts the pipeline, or its library is not installed.
    """
    denoiser = getattr(pipe, recipe.denoiser)
    skipped = [
        _set_attention(denoiser, speed, device),
        _quantise(denoiser, speed, device),
        _set_vae_layout(pipe.vae, speed),
        *_compile(denoiser, speed, device),
    ]
    return tuple(reason for reason in skipped if reason is not None)


def _set_attention(denoiser: Any, speed: Speed, device: torch.device) -> str | None:
    if speed.attention == "auto":
        return None  # torch's own choice, flash included where it fits
    if speed.attention == "sdpa":
        denoiser.set_attention_backend("native")
        return None
    if not _has_capability(device, FLASH_CAPABILITY):
        return f"attention: flash needs compute capability 8.0; {device} is below"
    if not _lets_attention_be_chosen(denoiser):
        raise BundleInvalid(
            f"{type(denoiser).__name__} leaves attention to torch, which cannot be told to use "
            "flash",
            remedy="set speed.attention to auto: torch takes flash by itself where it fits",
        )
    try:
        denoiser.set_attention_backend("flash")  # the flash-attn package, where it is installed
    except RuntimeError:
        denoiser.set_attention_backend("_native_flash")
    return None


def _lets_attention_be_chosen(denoiser: Any) -> bool:
    return any(
        hasattr(getattr(module, "processor", None), "_attention_backend")
        for module in denoiser.modules()
    )


def _quantise(denoiser: Any, speed: Speed, device: torch.device) -> str | None:
    if not speed.fp8:
        return None
    if not _has_capability(device, FP8_CAPABILITY):
        return f"fp8 needs compute capability 8.9; {device} is below"
    if denoiser.dtype != torch.bfloat16:
        raise BundleInvalid(
            f"fp8 needs a base in bf16, not {denoiser.dtype}", remedy="set dtype to bf16 or auto"
        )
    quantise_fp8(denoiser)
    return None


def quantise_fp8(denoiser: Any) -> None:
    """Turn weights and activations of the blocks' matrix products into float8, one scale per row.

    Adapters keep their dtype: their weights change under way, and are small.

    Raises:
        BundleInvalid: torchao is not installed.
    """
    try:
        from torchao.quantization import (
            Float8DynamicActivationFloat8WeightConfig,
            PerRow,
            quantize_,
        )
    except ImportError as exc:
        raise BundleInvalid(
            "speed.fp8 needs torchao, which is not installed",
            remedy="pip install 'sm4ll-serve[fp8]', or set speed.fp8 to false",
        ) from exc
    names = fp8_layers(denoiser)
    config = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())
    quantize_(denoiser, config, filter_fn=lambda _, name: name in names)


def fp8_layers(denoiser: Any) -> frozenset[str]:
    """The layers that fp8 changes: large products of the repeated blocks.

    Embeddings, modulations and the last projection are a hundredth of the work and carry most of
    the error; they and adapters stay as they are.
    """
    blocks = tuple(
        f"{name}."
        for name, module in denoiser.named_modules()
        if type(module).__name__ in denoiser._repeated_blocks
    )
    return frozenset(
        name
        for name, module in denoiser.named_modules()
        if isinstance(module, torch.nn.Linear)
        and name.startswith(blocks)
        and not any(part in name for part in (".lora_", ".norm"))
        and module.in_features % FP8_MULTIPLE == 0
        and module.out_features % FP8_MULTIPLE == 0
    )


def _set_vae_layout(vae: Any, speed: Speed) -> str | None:
    if not speed.channels_last_vae:
        return None
    if any(parameter.dim() == 5 for parameter in vae.parameters()):
        return f"channels_last_vae: the convolutions of {type(vae).__name__} have three dimensions"
    vae.to(memory_format=torch.channels_last)
    return None


def _compile(denoiser: Any, speed: Speed, device: torch.device) -> list[str | None]:
    if not speed.compile:
        return []
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        return ["compile: there is no C compiler on this machine"]
    uses_graphs = speed.cuda_graphs and device.type == "cuda"
    denoiser.compile_repeated_blocks(
        fullgraph=True,  # a block that cannot be compiled whole fails in warm-up, not in silence
        # None: the first size gets kernels of its own, the second makes size a variable and that
        # serves all others; the same for batches. A recorded graph has one size whatever happens.
        dynamic=False if uses_graphs else None,
        mode="reduce-overhead" if uses_graphs else None,
        recompile_limit=MAX_VARIANTS,
    )
    if uses_graphs:
        # Graphs write into memory of their own: without this, a step may overwrite what the
        # blocks of the step before it gave out.
        denoiser.register_forward_pre_hook(_begin_step)
    if speed.cuda_graphs and not uses_graphs:
        return [f"cuda_graphs: {device} is no CUDA device"]
    return []


def _begin_step(*_: object) -> None:
    torch.compiler.cudagraph_mark_step_begin()


def _has_capability(device: torch.device, least: tuple[int, int]) -> bool:
    return device.type == "cuda" and bool(torch.cuda.get_device_capability(device) >= least)
