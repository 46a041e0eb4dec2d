"""The base: a diffusers pipeline in memory as its bundle pins it, before any adapter."""

import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from deployments.backends.diffusion.device import is_out_of_memory
from deployments.backends.diffusion.recipe import Recipe
from deployments.recipes import Diffusion
from deployments.sources import ModelSource
from deployments.weights import WeightStore
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
    parts = _omitted_parts(pipeline_class)
    if config.transformer is not None:
        own = _own_denoiser(config.transformer, recipe.denoiser, Path(folder), weights, dtype)
        parts[recipe.denoiser] = own
    try:
        pipe = pipeline_class.from_pretrained(folder, dtype=dtype, **READ_OPTIONS, **parts).to(
            device
        )
    except UNLOADABLE as exc:
        raise _refusal(config.model, pipeline_class.__name__, exc) from exc
    pipe.set_progress_bar_config(disable=True)
    # One picture at a time: a batch changes neither what the VAE makes of one nor its peak memory.
    pipe.vae.enable_slicing()
    recipe.prepare(pipe, weights.locate_root)
    return pipe


def _own_denoiser(
    source: ModelSource, name: str, base: Path, weights: WeightStore, dtype: torch.dtype
) -> Any:
    """A fine-tune of the base's denoiser, complete to the last key."""
    folder = weights.locate(source)
    try:
        _, class_name = json.loads((base / "model_index.json").read_text())[name]
        model, report = getattr(diffusers, class_name).from_pretrained(
            folder, dtype=dtype, output_loading_info=True, **READ_OPTIONS
        )
    except UNLOADABLE as exc:
        raise _refusal(source, name, exc) from exc
    # diffusers starts such weights at random and goes on.
    wrong = [*report["missing_keys"], *report["unexpected_keys"]]
    if wrong:
        raise BundleInvalid(
            f"{source.label}: {len(wrong)} keys missing or unknown: {', '.join(wrong[:5])}",
            remedy=f"save the whole {name} with save_pretrained",
        )
    return model


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


def ready_vae(
    vae: Any, dtype: torch.dtype, width_px: int, height_px: int, above_megapixels: float
) -> None:
    """Set it up for one batch: in tiles if the crop is above the limit, else whole.

    Args:
        dtype: the one it was loaded in. SDXL's pipeline raises it for the time of a decode, and
            one that fails there leaves it so.
    """
    if vae.dtype != dtype:
        vae.to(dtype)
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
