"""FLUX.1 Kontext: the inpainting pipeline with a reference, and the editor without a mask."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from deployments.backends.diffusion.diptych import letterbox
from deployments.backends.diffusion.flux_pass import (
    TEXT_ENCODERS,
    encode_flux_prompt,
    run_flux,
    size_multiple,
)
from deployments.backends.diffusion.recipe import Encoded, Paint, Row
from deployments.backends.diffusion.tensors import cover_cells, to_mask, to_nchw
from deployments.recipes import FluxKontext, FluxKontextInpaint, Prompt
from serve.messages import UInt8Array


class FluxKontextInpaintRecipe:
    """The product is the reference picture, encoded once per content.

    A request's guidance is the distilled one; `true_cfg` of the bundle is the classical one.
    """

    text_encoders: tuple[str, ...] = TEXT_ENCODERS
    denoiser = "transformer"
    num_panels = 1

    def __init__(self, config: FluxKontextInpaint):
        self._config = config

    def pipeline_class(self) -> Any:
        from diffusers import FluxKontextInpaintPipeline

        return FluxKontextInpaintPipeline

    def prepare(self, pipe: Any, locate: Callable[[Any], str]) -> None:
        pipe.image_processor = _LatentsPassThrough(pipe.image_processor)

    def encode_prompt(self, pipe: Any, prompt: Prompt, guidance: float) -> Encoded:
        return encode_flux_prompt(pipe, prompt, true_cfg=self._config.true_cfg)

    def encode_product(
        self, pipe: Any, product_hwc: UInt8Array, width_px: int, height_px: int
    ) -> Encoded:
        image = to_nchw([_fit_reference(pipe, product_hwc)]) * 2 - 1
        image = image.to(pipe.vae.device, pipe.vae.dtype)
        with torch.no_grad():
            # The posterior's mode, which needs no generator: the same for every request.
            return {"latents": pipe._encode_vae_image(image, generator=None)}

    def paint(self, pipe: Any, rows: Sequence[Row], paint: Paint) -> UInt8Array:
        height_px, width_px = rows[0].region_hw.shape
        products = [
            row.product or self.encode_product(pipe, row.product_hwc, width_px, height_px)
            for row in rows
        ]
        mask = to_mask([row.region_hw for row in rows])
        return run_flux(
            pipe,
            rows,
            paint,
            image=to_nchw([row.crop_hwc for row in rows]),
            mask_image=cover_cells(mask, pipe.vae_scale_factor),
            image_reference=_Latents(torch.cat([product["latents"] for product in products])),
            strength=self._config.strength,
            true_cfg_scale=self._config.true_cfg,
            **_exact_size(width_px, height_px),
        )


class FluxKontextRecipe:
    """Person left and product right in one conditioning picture, painted at the person's size.

    The person is left because tokens are placed by row and column, and Kontext was trained on
    conditioning pictures at the places of the painted one: so what it keeps, it keeps where it is.

    Source: arxiv.org/abs/2506.15742, the positions of context tokens.
    """

    text_encoders: tuple[str, ...] = TEXT_ENCODERS
    denoiser = "transformer"
    num_panels = 1

    def __init__(self, config: FluxKontext):
        self._config = config

    def pipeline_class(self) -> Any:
        from diffusers import FluxKontextPipeline

        return FluxKontextPipeline

    def prepare(self, pipe: Any, locate: Callable[[Any], str]) -> None: ...

    def encode_prompt(self, pipe: Any, prompt: Prompt, guidance: float) -> Encoded:
        return encode_flux_prompt(pipe, prompt, true_cfg=self._config.true_cfg)

    def encode_product(
        self, pipe: Any, product_hwc: UInt8Array, width_px: int, height_px: int
    ) -> None:
        # It shares a picture, and so the encoder's statistics, with the person.
        return None

    def paint(self, pipe: Any, rows: Sequence[Row], paint: Paint) -> UInt8Array:
        height_px, width_px = rows[0].region_hw.shape
        return run_flux(
            pipe,
            rows,
            paint,
            image=to_nchw([compose_condition(row.crop_hwc, row.product_hwc) for row in rows]),
            true_cfg_scale=self._config.true_cfg,
            **_exact_size(width_px, height_px),
        )


def compose_condition(crop_hwc: UInt8Array, product_hwc: UInt8Array) -> UInt8Array:
    """(H, 2W, 3): person left, product right with its aspect ratio kept."""
    height_px, width_px = crop_hwc.shape[:2]
    return np.concatenate([crop_hwc, letterbox(product_hwc, width_px, height_px)], axis=1)


def _exact_size(width_px: int, height_px: int) -> dict[str, Any]:
    # By default the pipelines scale to 1 MP and snap conditioning pictures to 17 sizes.
    area_px = width_px * height_px
    return {"width": width_px, "height": height_px, "max_area": area_px, "_auto_resize": False}


def _fit_reference(pipe: Any, product_hwc: UInt8Array) -> UInt8Array:
    """At a size that the pipeline does not round, which it would do by stretching."""
    multiple = size_multiple(pipe)
    height_px, width_px = (-(-side_px // multiple) * multiple for side_px in product_hwc.shape[:2])
    return letterbox(product_hwc, width_px, height_px)


class _Latents:
    """An encoded picture where the pipeline expects one that is not."""

    def __init__(self, latents_nchw: torch.Tensor):
        self.latents_nchw = latents_nchw


class _LatentsPassThrough:
    """The pipeline's image processor, letting encoded pictures through.

    FluxKontextInpaintPipeline documents latents as `image_reference` and then drops them (diffusers
    0.42.1: its `else: image_reference = None`); what its image processor returns it does use.
    """

    def __init__(self, processor: Any):
        self._processor = processor

    def get_default_height_width(self, image: Any, *args: Any, **kwargs: Any) -> tuple[int, int]:
        if isinstance(image, _Latents):
            height, width = image.latents_nchw.shape[2:]
        else:
            height, width = self._processor.get_default_height_width(image, *args, **kwargs)
        return height, width

    def resize(self, image: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(image, _Latents):
            return image
        return self._processor.resize(image, *args, **kwargs)

    def preprocess(self, image: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(image, _Latents):
            return image.latents_nchw
        return self._processor.preprocess(image, *args, **kwargs)

    def postprocess(self, *args: Any, **kwargs: Any) -> Any:
        return self._processor.postprocess(*args, **kwargs)
