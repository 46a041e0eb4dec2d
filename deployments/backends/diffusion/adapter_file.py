"""Reads LoRA files for one denoiser and refuses, key by key, what does not fit it.

Changes nothing in the pipeline.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.loaders import StableDiffusionXLLoraLoaderMixin
from diffusers.utils import convert_unet_state_dict_to_peft
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open

from serve.errors import BundleInvalid

MAX_KEYS_NAMED = 5

# Parts of keys that say an adapter is something else than a LoRA; diffusers drops the first unsaid.
OTHER_KINDS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lokr_": "LoKr",
    "hada_": "LoHa",
}
LORA_KEY = re.compile(r"(?P<layer>.+)\.lora_(?P<side>[AB])\.weight")
A_SUFFIX, B_SUFFIX = ".lora_A.weight", ".lora_B.weight"

# What diffusers' converters raise on keys they do not know.
UNREADABLE = (
    SafetensorError,
    OSError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    RuntimeError,
)


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """Which file at which strength: what the cache knows an adapter by."""

    folder: Path
    weight_name: str
    scale: float = 1.0

    @property
    def path(self) -> Path:
        return self.folder / self.weight_name


class LayerWeights(NamedTuple):
    """The layer adds `b @ a @ x`; alpha and scale are in `b` already."""

    a: torch.Tensor
    """(rank, *inputs)"""
    b: torch.Tensor
    """(outputs, rank), with two ones behind for a convolution."""

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])


@dataclass(frozen=True)
class AdapterWeights:
    """One adapter in host memory, by layer, in each layer's own dtype."""

    layers: Mapping[str, LayerWeights]

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes + b.nbytes for a, b in self.layers.values())


class AdapterReader:
    """Remembers the denoiser's layers as they were before any adapter was put on them."""

    def __init__(self, pipe: Any, denoiser_name: str) -> None:
        self._pipe = pipe
        self._denoiser_name = denoiser_name
        denoiser = getattr(pipe, denoiser_name)
        self._layers = {
            name: module.weight.to("meta")
            for name, module in denoiser.named_modules()
            if _takes_lora(module)
        }
        # Only pinned memory is copied to a GPU without stopping for it.
        self._pins = denoiser.device.type == "cuda"

    def read(self, file: AdapterFile) -> AdapterWeights:
        """Read one file, in any format that the pipeline's own loader knows.

        Raises:
            BundleInvalid: not there, not safetensors, not a LoRA, or not for this denoiser; names
                file and keys.
        """
        _check_kind(file)
        state, alphas, metadata = self._convert(file)
        pairs = self._pair(file, state)
        layers = {}
        for name, (a, b) in pairs.items():
            strength = _scaling(name, a.shape[0], alphas, metadata) * file.scale
            dtype = self._layers[name].dtype
            folded = b if strength == 1.0 else b.float() * strength
            layers[name] = LayerWeights(self._own(a, dtype), self._own(folded, dtype))
        return AdapterWeights(layers)

    def _own(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        # A copy: what safetensors gives may be the file itself, mapped.
        copy = tensor.to(dtype, copy=True).contiguous()
        return copy.pin_memory() if self._pins else copy

    def _convert(
        self, file: AdapterFile
    ) -> tuple[dict[str, torch.Tensor], dict[str, float], dict[str, Any]]:
        """Weights, alphas by layer and LoraConfig's fields, as far as the file says them."""
        options: dict[str, Any] = {}
        if isinstance(self._pipe, StableDiffusionXLLoraLoaderMixin):
            options["unet_config"] = self._pipe.unet.config
        try:
            state, *alphas, metadata = self._pipe.lora_state_dict(
                str(file.folder),
                weight_name=file.weight_name,
                use_safetensors=True,
                local_files_only=True,
                return_alphas=True,
                return_lora_metadata=True,
                **options,
            )
            named_alphas = _first(alphas)
            if not any(LORA_KEY.fullmatch(key) for key in state):
                state = convert_unet_state_dict_to_peft(state)
                # Named after a weight here and there, which diffusers then fails to find again.
                named_alphas = convert_unet_state_dict_to_peft(
                    {key.removesuffix(".alpha"): alpha for key, alpha in named_alphas.items()}
                )
        except UNREADABLE as exc:
            raise BundleInvalid(
                f"{file.path}: {type(exc).__name__}: {exc}",
                remedy=f"save it with {type(self._pipe).__name__}.save_lora_weights",
            ) from exc
        by_layer = {
            key.removesuffix(".alpha").removesuffix(A_SUFFIX): alpha
            for key, alpha in named_alphas.items()
        }
        return state, self._inside(by_layer), self._inside(metadata or {})

    def _inside(self, named: Mapping[str, Any]) -> dict[str, Any]:
        prefix = f"{self._denoiser_name}."
        return {
            name.removeprefix(prefix): value
            for name, value in named.items()
            if name.startswith(prefix)
        }

    def _pair(
        self, file: AdapterFile, state: Mapping[str, torch.Tensor]
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """A and B of every layer, all shapes checked."""
        problems = [problem for key in state if (problem := self._misfit(key, state))]
        if not state or problems:
            base = f"{type(self._pipe).__name__}'s {self._denoiser_name}"
            raise BundleInvalid(
                f"{file.path}: {len(problems)} of {len(state)} keys do not fit {base}: "
                + (_shorten(problems) or "there is not one LoRA key in it"),
                remedy="name the base it was trained on, for its denoiser alone, in the bundle",
            )
        halves = self._inside(state)
        layers = [key.removesuffix(A_SUFFIX) for key in halves if key.endswith(A_SUFFIX)]
        return {layer: (halves[layer + A_SUFFIX], halves[layer + B_SUFFIX]) for layer in layers}

    def _misfit(self, key: str, state: Mapping[str, torch.Tensor]) -> str | None:
        """What is wrong with one key, or nothing."""
        component, _, inside = key.partition(".")
        if component != self._denoiser_name:
            if component in self._pipe.components:
                return f"{key} (adapters change the {self._denoiser_name} alone)"
            return f"{key} (does not begin with {self._denoiser_name})"
        match = LORA_KEY.fullmatch(inside)
        if match is None:
            return f"{key} (not a LoRA weight)"
        layer = self._layers.get(match["layer"])
        if layer is None:
            return f"{key} (no such layer)"
        is_a = match["side"] == "A"
        other = state.get(f"{component}.{match['layer']}.lora_{'B' if is_a else 'A'}.weight")
        if other is None:
            return f"{key} (its other half is missing)"
        rank = (state[key] if is_a else other).shape[:1]
        wanted = (*rank, *layer.shape[1:]) if is_a else (layer.shape[0], *rank, *layer.shape[2:])
        if not is_a:
            wanted = (*wanted[:2], *(1 for _ in wanted[2:]))  # the second convolution is 1 x 1
        given = tuple(state[key].shape)
        if given != wanted or not all(given):
            return f"{key} (has {given}, the layer takes {wanted})"
        return None if state[key].is_floating_point() else f"{key} (is {state[key].dtype})"


def _takes_lora(module: torch.nn.Module) -> bool:
    if isinstance(module, torch.nn.Conv2d):
        return bool(module.groups == 1)
    return isinstance(module, torch.nn.Linear)


def _check_kind(file: AdapterFile) -> None:
    """Refuse what is no safetensors LoRA before anything is read into memory."""
    if file.path.suffix != ".safetensors":
        raise BundleInvalid(
            f"{file.path} is not safetensors: a pickle can run code and is never loaded",
            remedy="convert it with safetensors.torch.save_file",
        )
    if not file.path.is_file():
        present = sorted(path.name for path in file.folder.glob("*.safetensors"))
        raise BundleInvalid(
            f"{file.path}: no such file",
            remedy=f"set backend.adapter.weight_name to one of: {', '.join(present) or 'none'}",
        )
    try:
        with safe_open(file.path, framework="pt") as opened:
            keys = list(opened.keys())
    except SafetensorError as exc:
        raise BundleInvalid(f"{file.path}: damaged: {exc}", remedy="copy it again") from exc
    for part, kind in OTHER_KINDS.items():
        offending = [key for key in keys if part in key]
        if offending:
            raise BundleInvalid(
                f"{file.path} is a {kind}, not a LoRA: {_shorten(offending)}",
                remedy="merge it into the base and name that in backend.transformer",
            )


def _scaling(
    layer: str, rank: int, alphas: Mapping[str, Any], metadata: Mapping[str, Any]
) -> float:
    """alpha / rank of one layer, from wherever the file says alpha; 1 where it does not."""
    if not metadata:
        return float(alphas.get(layer, rank)) / rank
    patterns = metadata.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(patterns, layer), metadata.get("lora_alpha", rank))
    return float(alpha) / (math.sqrt(rank) if metadata.get("use_rslora") else rank)


def _first(found: list[dict[str, Any] | None]) -> dict[str, Any]:
    return (found[0] if found else None) or {}


def _shorten(names: Iterable[str]) -> str:
    named = list(names)
    more = len(named) - MAX_KEYS_NAMED
    return ", ".join(named[:MAX_KEYS_NAMED]) + (f" and {more} more" if more > 0 else "")
