"""Runs expert versions on one diffusers pipeline: the engine behind inpaint, diptych and kontext.

What a pipeline family has to say for itself is its recipe's.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from deployments.backends.base import Memory, OnStep
from deployments.backends.diffusion.base_model import count_weight_bytes, load_base, tile_vae
from deployments.backends.diffusion.device import (
    choose_device,
    choose_dtype,
    free_memory,
    map_torch_errors,
)
from deployments.backends.diffusion.passes import Steps, fork_pipe
from deployments.backends.diffusion.products import EncodedProducts, flatten_product
from deployments.backends.diffusion.prompts import EncodedPrompts
from deployments.backends.diffusion.recipe import Paint, Row
from deployments.backends.diffusion.registry import create_recipe
from deployments.weights import WeightStore
from deployments.bundle import Bundle
from deployments.recipes import DiffusionConfig, Speed
from serve.config import ReplicaPlan
from serve.errors import GenerationFailed
from serve.messages import ExpertReply, ExpertRequest, UInt8Array

MIB = 2**20


class DiffusionBackend:
    """One base, and the versions that differ from it in adapter and prompt.

    A pass leaves nothing behind on the pipeline, however it ends.
    """

    is_preview = False

    def __init__(self, bundles: tuple[Bundle, ...], plan: ReplicaPlan):
        config: Any = bundles[0].backend
        self._config: DiffusionConfig = config
        self.kind: str = config.kind
        self._bundles = {bundle.version: bundle for bundle in bundles}
        self._weights = WeightStore(bundles[0].home, plan.weights)
        self._recipe = create_recipe(config.recipe)
        self._pipe: Any = None
        self._prompts: EncodedPrompts
        self._products: EncodedProducts
        self._adapters: Any = None

    def load(self) -> None:
        config, device = self._config, choose_device()
        dtype = choose_dtype(config.dtype, device)
        self._pipe = load_base(self._recipe, config, self._weights, device, dtype)
        self._products = EncodedProducts(self._recipe, config.product_cache_mib * MIB)
        self._load_prompts()
        self._load_adapters()
        if config.speed != Speed():
            from deployments.backends.diffusion.speed import apply_speed

            apply_speed(self._pipe, self._recipe, config.speed, device)

    def _load_prompts(self) -> None:
        prompts = EncodedPrompts(self._recipe, self._pipe)
        bundles = self._bundles.values()
        for bundle in bundles:
            prompts.get(_prompt_of(bundle), bundle.guidance)
        if all(_prompt_of(bundle).drop_text_encoders for bundle in bundles):
            prompts.drop_encoders()
        self._prompts = prompts

    def _load_adapters(self) -> None:
        bundles = tuple(self._bundles.values())
        if all(getattr(bundle.backend, "adapter", None) is None for bundle in bundles):
            return
        from deployments.backends.diffusion.adapters import AdapterRack

        budget_bytes = self._config.adapter_cache_mib * MIB
        rack = AdapterRack(
            self._pipe, self._recipe.denoiser, bundles, self._weights.locate, budget_bytes
        )
        rack.load()
        self._adapters = rack

    def generate(self, batch: Sequence[ExpertRequest], on_step: OnStep) -> list[ExpertReply]:
        started_s = time.perf_counter()
        _require_alike(batch, self._bundles)
        num_rows = sum(request.num_images for request in batch)
        max_rows = self._config.max_batch_size
        steps = Steps(on_step, num_passes=-(-num_rows // max_rows))
        with map_torch_errors(passes=steps.has_raised), self._acting_as(batch[0].version):
            rows = self._build_rows(batch)
            paint = self._paint_of(batch[0], steps)
            painted = [
                self._recipe.paint(fork_pipe(self._pipe), rows[first : first + max_rows], paint)
                for first in range(0, num_rows, max_rows)
            ]
        generate_ms = (time.perf_counter() - started_s) * 1000
        return _split(np.concatenate(painted), batch, generate_ms)

    @contextlib.contextmanager
    def _acting_as(self, version: str) -> Iterator[None]:
        adapters = self._adapters
        with (
            adapters.use(version) if adapters else contextlib.nullcontext(),
            torch.inference_mode(),
        ):
            yield

    def _paint_of(self, request: ExpertRequest, steps: Steps) -> Paint:
        prompt = self._prompts.get(_prompt_of(self._bundles[request.version]), request.guidance)
        return Paint(prompt, request.num_steps, request.guidance, steps)

    def _build_rows(self, batch: Sequence[ExpertRequest]) -> list[Row]:
        height_px, width_px = batch[0].region_hw.shape
        above = self._config.speed.vae_tiling_above_megapixels
        # Before the products are encoded: what they become follows from the crop's size, too.
        tile_vae(self._pipe.vae, width_px, height_px, above)
        return [row for request in batch for row in self._rows_of(request)]

    def _rows_of(self, request: ExpertRequest) -> Iterator[Row]:
        bundle = self._bundles[request.version]
        canvas = bundle.product.canvas
        background = (255, 255, 255) if canvas is None else canvas.background
        product_hwc = flatten_product(request.product_hwc, background)
        height_px, width_px = request.region_hw.shape
        product = self._products.get(self._pipe, request.version, product_hwc, width_px, height_px)
        for index in range(request.num_images):
            generator = torch.Generator("cpu").manual_seed(request.seed + index)
            yield Row(request.crop_hwc, request.region_hw, product_hwc, product, generator)

    def unload(self) -> None:
        if self._adapters is not None:
            self._adapters.unload()
        self._pipe = self._adapters = None
        if hasattr(self, "_prompts"):
            del self._prompts, self._products
        free_memory()

    def memory(self) -> Memory:
        if self._pipe is None:
            return Memory()
        by_version: Mapping[str, int] = self._adapters.bytes_by_version() if self._adapters else {}
        return Memory(count_weight_bytes(self._pipe), by_version)


def _prompt_of(bundle: Bundle) -> Any:
    return bundle.backend.prompt  # type: ignore[union-attr]  # the registry sends no other kind


def _require_alike(batch: Sequence[ExpertRequest], served: Mapping[str, Bundle]) -> None:
    if batch[0].version not in served:
        raise GenerationFailed(f"{batch[0].version} is not here, only {', '.join(served)}")
    kinds = {(r.version, r.crop_hwc.shape, r.num_steps, r.guidance) for r in batch}
    if len(kinds) != 1:
        raise GenerationFailed(
            f"one batch must agree on version, size, steps and guidance, got {sorted(kinds)}"
        )


def _split(
    images_nhwc: UInt8Array, batch: Sequence[ExpertRequest], generate_ms: float
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
        )
        replies.append(reply)
        first += request.num_images
    return replies
