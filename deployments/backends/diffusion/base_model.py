"""The base: a diffusers pipeline in memory as its bundle pins it, before any adapter."""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from deployments.backends.diffusion.device import is_out_of_memory
from deployments.backends.diffusion.recipe import Recipe
from deployments.recipes import DiffusionConfig
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
    config: DiffusionConfig,
    weights: WeightStore,
    dtype: torch.dtype,
) -> Any:
    """Load the pipeline into host memory.

    Raises:
        BundleInvalid: the weights cannot be found, are incomplete or do not fit the recipe.
    """
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    pipeline_class = recipe.pipeline_class()
    folder = weights.locate_pipeline(config.model)
    classes = _component_classes(config.model, Path(folder))
    if not {"vae", recipe.denoiser} <= set(classes):
        lacking = LookupError(f"it has {', '.join(sorted(classes))}")
        raise _refusal(config.model, config.recipe.pipeline, lacking)
    parts = {
        **_omitted_parts(pipeline_class),
        "vae": _load_part(config.model, Path(folder) / "vae", classes["vae"], dtype),
        recipe.denoiser: _load_denoiser(
            config, weights, Path(folder) / recipe.denoiser, classes[recipe.denoiser], dtype
        ),
    }
    try:
        pipe = pipeline_class.from_pretrained(folder, dtype=dtype, **READ_OPTIONS, **parts)
    except UNLOADABLE as exc:
        raise _refusal(config.model, config.recipe.pipeline, exc) from exc
    pipe.set_progress_bar_config(disable=True)
    # One picture at a time: a batch changes neither what the VAE makes of one nor its peak memory.
    pipe.vae.enable_slicing()
    return pipe


def _component_classes(source: ModelSource, folder: Path) -> Mapping[str, str]:
    """diffusers' class by component, as the pipeline was saved.

    Raises:
        BundleInvalid: not a whole pipeline.
    """
    try:
        index = json.loads((folder / "model_index.json").read_text())
        return {name: value[1] for name, value in index.items() if isinstance(value, list)}
    except (OSError, ValueError, LookupError) as exc:
        raise BundleInvalid(
            f"{source.label} is no diffusers pipeline: {exc}",
            remedy="model is a folder with model_index.json, as save_pretrained writes it",
        ) from exc


def _load_denoiser(
    config: DiffusionConfig, weights: WeightStore, own: Path, class_name: str, dtype: torch.dtype
) -> Any:
    """The fine-tuned one, where the bundle has one; else the base's own."""
    if config.transformer is None:
        return _load_part(config.model, own, class_name, dtype)
    tuned = Path(weights.locate(config.transformer))
    return _load_part(config.transformer, tuned, class_name, dtype, is_exact=True)


def _load_part(
    source: ModelSource, folder: Path, class_name: str, dtype: torch.dtype, is_exact: bool = False
) -> Any:
    """One component with every weight it needs: diffusers starts missing ones at random.

    Args:
        is_exact: refuse keys it does not know, too; a base may carry some of an older class.
    """
    try:
        model, report = getattr(diffusers, class_name).from_pretrained(
            folder, dtype=dtype, output_loading_info=True, **READ_OPTIONS
        )
    except UNLOADABLE as exc:
        raise _refusal(source, class_name, exc) from exc
    wrong = [*report["missing_keys"], *(report["unexpected_keys"] if is_exact else ())]
    if wrong:
        raise BundleInvalid(
            f"{source.label}: {class_name}: {len(wrong)} keys missing or unknown: "
            f"{', '.join(wrong[:5])}",
            remedy="save it whole with save_pretrained",
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


def ready_vae(vae: Any, dtype: torch.dtype, in_tiles: bool) -> None:
    """Set it up for one batch.

    Args:
        dtype: the one it was loaded in. SDXL's pipeline raises it for the time of a decode, and
            one that fails there leaves it so.
    """
    if vae.dtype != dtype:
        vae.to(dtype)
    if in_tiles:
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
