"""Runs expert versions on one diffusers pipeline: the engine behind inpaint, diptych and kontext.

What a pipeline family has to say for itself is its recipe's.
"""

import contextlib
import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from deployments.backends.base import Memory, OnStep
from deployments.backends.diffusion.adapters import AdapterRack
from deployments.backends.diffusion.base_model import count_weight_bytes, load_base, ready_vae
from deployments.backends.diffusion.cap import (
    GIB,
    cap_device_memory,
    measured_context_gib,
    name_device,
)
from deployments.backends.diffusion.device import (
    choose_device,
    choose_dtype,
    free_memory,
    map_torch_errors,
    wait_for_device,
)
from deployments.backends.diffusion.passes import Steps, fork_pipe
from deployments.backends.diffusion.products import EncodedProducts, flatten_product
from deployments.backends.diffusion.prompts import EncodedPrompts
from deployments.backends.diffusion.recipe import Encoded, Paint, Row
from deployments.backends.diffusion.registry import create_recipe
from deployments.backends.diffusion.speed import apply_speed
from deployments.bundle import Bundle
from deployments.recipes import DiffusionConfig
from deployments.weights import WeightStore
from serve.config import ReplicaPlan
from serve.errors import GenerationFailed
from serve.messages import ExpertReply, ExpertRequest, UInt8Array
from serve.observing.meter import Meter

MIB = 2**20
WHITE = (255, 255, 255)


@dataclass(frozen=True, slots=True)
class _Loaded:
    pipe: Any
    vae_dtype: torch.dtype
    prompts: EncodedPrompts
    adapters: AdapterRack | None


@dataclass(frozen=True, slots=True)
class _Product:
    """One request's, as its rows have it."""

    flat_hwc: UInt8Array
    encoded: Encoded | None
    cached: bool | None


class DiffusionBackend:
    """One base, and the versions that differ from it in adapter and prompt.

    A pass leaves nothing behind on the pipeline, however it ends.
    """

    is_preview = False

    def __init__(self, bundles: tuple[Bundle, ...], plan: ReplicaPlan):
        config = _diffusion(bundles[0])
        self.kind: str = config.kind
        self._config = config
        self._bundles = {bundle.version: bundle for bundle in bundles}
        self._name = plan.name
        self._num_gpus = plan.num_gpus
        self._cap_gib: float | None = None
        self._context_gib = 0.0
        self._weights = WeightStore(bundles[0].home, plan.weights)
        self._recipe = create_recipe(config.recipe)
        self._products = EncodedProducts(self._recipe, config.product_cache_mib * MIB)
        self._logger = logging.getLogger(__name__)
        self._loaded: _Loaded | None = None

    def load(self) -> None:
        config, device = self._config, choose_device()
        self._context_gib = measured_context_gib(self._bundles.values())
        self._cap_gib = cap_device_memory(self._num_gpus, self._context_gib)
        with map_torch_errors():
            dtype = choose_dtype(config.dtype, device)
            pipe = load_base(self._recipe, config, self._weights, dtype)
            prompts = self._encode_prompts(pipe, device)
            pipe.to(device)
            self._recipe.prepare(pipe, self._weights.locate_root)
            adapters = self._load_adapters(pipe)
            # Last: it compiles and quantises what is there by then.
            missing = apply_speed(pipe, self._recipe, config.speed, device)
        for reason in missing:
            self._logger.warning("%s runs without %s", self._name, reason)
        self._loaded = _Loaded(pipe, pipe.vae.dtype, prompts, adapters)

    def _encode_prompts(self, pipe: Any, device: torch.device) -> EncodedPrompts:
        prompts = EncodedPrompts(self._recipe, pipe, device)
        for bundle in self._bundles.values():
            prompts.get(_diffusion(bundle).prompt, bundle.guidance)
        if all(_diffusion(b).prompt.drop_text_encoders for b in self._bundles.values()):
            prompts.drop_encoders()
        return prompts

    def _load_adapters(self, pipe: Any) -> AdapterRack | None:
        bundles = tuple(self._bundles.values())
        if all(_diffusion(bundle).adapter is None for bundle in bundles):
            return None
        budget_bytes = self._config.adapter_cache_mib * MIB
        rack = AdapterRack(pipe, self._recipe.denoiser, bundles, self._weights.locate, budget_bytes)
        rack.load()
        return rack

    def generate(self, batch: Sequence[ExpertRequest], on_step: OnStep) -> list[ExpertReply]:
        started_s = time.perf_counter()
        _require_alike(batch, self._bundles)
        assert self._loaded is not None, "load comes first"
        loaded, steps = self._loaded, Steps(on_step, wait_for_device, self._num_passes(batch))
        with (
            map_torch_errors(passes=steps.has_raised),
            _act_as(loaded.adapters, batch[0].version),
            torch.inference_mode(),
        ):
            images_nhwc, cached = self._paint(loaded, batch, steps)
        generate_ms = (time.perf_counter() - started_s) * 1000
        return _split(images_nhwc, batch, cached, generate_ms)

    def use_meter(self, meter: Meter) -> None:
        self._products.use_meter(meter)

    def forget(self, content_hashes: Collection[str]) -> int:
        """Drop the encoded products of these contents; says how many."""
        return self._products.forget(content_hashes)

    def _num_passes(self, batch: Sequence[ExpertRequest]) -> int:
        return -(-sum(request.num_images for request in batch) // self._config.max_batch_size)

    def _paint(
        self, loaded: _Loaded, batch: Sequence[ExpertRequest], steps: Steps
    ) -> tuple[UInt8Array, list[bool | None]]:
        """The pictures of the pass, and of every request whether its product was remembered."""
        first, max_rows = batch[0], self._config.max_batch_size
        height_px, width_px = first.region_hw.shape
        # Before the products are encoded: what they become follows from the crop's size, too.
        above_megapixels = self._config.speed.vae_tiling_above_megapixels
        picture_px = self._recipe.num_panels * width_px * height_px
        ready_vae(loaded.pipe.vae, loaded.vae_dtype, picture_px > above_megapixels * 1e6)
        prompt = loaded.prompts.get(_diffusion(self._bundles[first.version]).prompt, first.guidance)
        products = [self._encode(loaded, request) for request in batch]
        rows = [
            row
            for request, product in zip(batch, products, strict=True)
            for row in _build_rows(request, product)
        ]
        painted = []
        for index in range(self._num_passes(batch)):
            paint = Paint(prompt, first.num_steps, first.guidance, steps.in_pass(index))
            part = rows[index * max_rows : (index + 1) * max_rows]
            painted.append(self._recipe.paint(fork_pipe(loaded.pipe), part, paint))
        return np.concatenate(painted), [product.cached for product in products]

    def _encode(self, loaded: _Loaded, request: ExpertRequest) -> _Product:
        canvas = self._bundles[request.version].product.canvas
        background = WHITE if canvas is None else canvas.background
        product_hwc = flatten_product(request.product_hwc, background)
        encoded, cached = self._products.get(loaded.pipe, request, product_hwc)
        return _Product(product_hwc, encoded, cached)

    def unload(self) -> None:
        if self._loaded is not None and self._loaded.adapters is not None:
            self._loaded.adapters.unload()
        self._loaded = None
        free_memory()

    def held_bytes(self) -> int:
        """What the allocator has taken, and what CUDA was measured to take beside it."""
        if self._loaded is None or not torch.cuda.is_available():
            return 0
        reserved_bytes: int = torch.cuda.memory_reserved()
        return reserved_bytes + round(self._context_gib * GIB)

    def memory(self) -> Memory:
        if self._loaded is None:
            return Memory()
        adapters = self._loaded.adapters
        by_version = {} if adapters is None else adapters.bytes_by_version()
        held_bytes = count_weight_bytes(self._loaded.pipe)
        return Memory(held_bytes, by_version, name_device(), self._cap_gib)


def _diffusion(bundle: Bundle) -> DiffusionConfig:
    config: Any = bundle.backend  # the registry sends no other kind
    return config  # type: ignore[no-any-return]


def _act_as(adapters: AdapterRack | None, version: str) -> AbstractContextManager[None]:
    return contextlib.nullcontext() if adapters is None else adapters.use(version)


def _require_alike(batch: Sequence[ExpertRequest], served: Mapping[str, Bundle]) -> None:
    if batch[0].version not in served:
        raise GenerationFailed(f"{batch[0].version} is not here, only {', '.join(served)}")
    kinds = {(r.version, r.crop_hwc.shape, r.num_steps, r.guidance) for r in batch}
    if len(kinds) != 1:
        raise GenerationFailed(
            f"one batch must agree on version, size, steps and guidance, got {sorted(kinds)}"
        )


def _build_rows(request: ExpertRequest, product: _Product) -> Iterator[Row]:
    for index in range(request.num_images):
        generator = torch.Generator("cpu").manual_seed(request.seed + index)
        yield Row(request.crop_hwc, request.region_hw, product.flat_hwc, product.encoded, generator)


def _split(
    images_nhwc: UInt8Array,
    batch: Sequence[ExpertRequest],
    cached: Sequence[bool | None],
    generate_ms: float,
) -> list[ExpertReply]:
    replies, first = [], 0
    for index, request in enumerate(batch):
        reply = ExpertReply(
            images_nhwc=images_nhwc[first : first + request.num_images],
            alpha_nhw=None,
            version=request.version,
            batch_size=len(batch),
            batch_index=index,
            generate_ms=generate_ms,
            product_cached=cached[index],
        )
        replies.append(reply)
        first += request.num_images
    return replies
