"""The base: a diffusers pipeline in memory as its bundle pins it, before any adapter."""

import inspect
from typing import Any

import torch
from diffusers import AutoModel
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from deployments.backends.diffusion.device import is_out_of_memory
from deployments.backends.diffusion.recipe import Recipe
from deployments.weights import WeightStore
from deployments.recipes import Diffusion
from deployments.sources import ModelSource
from serve.errors import BundleInvalid, OutOfDeviceMemory

# What from_pretrained raises on files that are missing, damaged or of another architecture.
UNLOADABLE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    ImportError,
)
READ_OPTIONS = {"local_files_only": True, "use_safetensors": True}


def load_base(
    recipe: Recipe,
    config: Diffusion,
    weights: WeightStore,
    device: torch.device,
    dtype: torch.dtype,
) -> Any:
    """Load the pipeline and what its family needs besides.

    Raises:
        BundleInvalid: the weights cannot be found or do not fit the recipe.
        OutOfDeviceMemory: the device is too small for it.
    """
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    pipeline_class = recipe.pipeline_class()
    folder = weights.locate_pipeline(config.model)
    parts = _own_parts(recipe, config, weights, dtype)
    try:
        pipe = pipeline_class.from_pretrained(
            folder, dtype=dtype, **READ_OPTIONS, **parts, **_omitted_parts(pipeline_class)
        ).to(device)
    except UNLOADABLE as exc:
        raise _refusal(config.model, pipeline_class.__name__, exc) from exc
    pipe.set_progress_bar_config(disable=True)
    _set_up_vae(pipe.vae, config)
    recipe.prepare(pipe, weights.locate_root)
    return pipe


def _own_parts(
    recipe: Recipe, config: Diffusion, weights: WeightStore, dtype: torch.dtype
) -> dict[str, Any]:
    """The fine-tuned denoiser, where the bundle has one."""
    source = config.transformer
    if source is None:
        return {}
    folder = weights.locate(source)
    try:
        model, report = AutoModel.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, **READ_OPTIONS
        )
    except UNLOADABLE as exc:
        raise _refusal(source, recipe.denoiser, exc) from exc
    # diffusers starts such weights at random and goes on.
    wrong = [*report["missing_keys"], *report["unexpected_keys"]]
    if wrong:
        raise BundleInvalid(
            f"{source.label}: {len(wrong)} keys missing or unknown: {', '.join(wrong[:5])}",
            remedy="save the whole denoiser with save_pretrained",
        )
    return {recipe.denoiser: model}


def _omitted_parts(pipeline_class: Any) -> dict[str, Any]:
    # It blacks out pictures it misjudges; what may be painted is decided before a request is here.
    if "requires_safety_checker" not in inspect.signature(pipeline_class.__init__).parameters:
        return {}
    return {"safety_checker": None, "requires_safety_checker": False}


def _refusal(source: ModelSource, what: str, exc: Exception) -> BundleInvalid | OutOfDeviceMemory:
    if is_out_of_memory(exc):
        return OutOfDeviceMemory(f"no room for {source.label}: {exc}")
    return BundleInvalid(
        f"{source.label} does not load as {what}: {type(exc).__name__}: {exc}",
        remedy="check that recipe.pipeline is the one these weights were saved from",
    )


def _set_up_vae(vae: torch.nn.Module, config: Diffusion) -> None:
    # One picture at a time: a batch changes neither what the VAE makes of one nor its peak memory.
    vae.enable_slicing()
    has_3d = any(parameter.dim() == 5 for parameter in vae.parameters())
    if config.speed.channels_last_vae and not has_3d:
        vae.to(memory_format=torch.channels_last)


def tile_vae(vae: Any, width_px: int, height_px: int, above_megapixels: float) -> None:
    """Decode in tiles from here on if a crop of that size is above the limit, else whole."""
    if width_px * height_px > above_megapixels * 1e6:
        vae.enable_tiling()
    else:
        vae.disable_tiling()


def count_weight_bytes(pipe: Any) -> int:
    """What all components hold, adapters left out."""
    return sum(
        tensor.nbytes
        for part in pipe.components.values()
        if isinstance(part, torch.nn.Module)
        for name, tensor in part.state_dict().items()
        if "lora_" not in name
    )
