"""FLUX.2 klein inpainting: the product is the reference picture, encoded once per content."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from deployments.backends.diffusion.diptych import letterbox
from deployments.backends.diffusion.recipe import Encoded, Paint, Row
from deployments.backends.diffusion.tensors import cover_cells, to_mask, to_nchw, to_nhwc
from deployments.recipes import Flux2KleinInpaint, Prompt
from serve.errors import BundleInvalid
from serve.messages import UInt8Array


class Flux2KleinInpaintRecipe:
    """Person and product reach the pipeline as latents.

    As pictures both would be shrunk to a megapixel, and the painted crop would come back smaller.
    References of the batch's size are one per row; a list of them would be several for each row.
    """

    text_encoders: tuple[str, ...] = ("text_encoder",)
    denoiser = "transformer"
    num_panels = 1

    def __init__(self, config: Flux2KleinInpaint):
        self._config = config

    def pipeline_class(self) -> Any:
        from diffusers import Flux2KleinInpaintPipeline

        return Flux2KleinInpaintPipeline

    def prepare(self, pipe: Any, locate: Callable[[Any], str]) -> None: ...

    def encode_prompt(self, pipe: Any, prompt: Prompt, guidance: float) -> Encoded:
        encoded = {"prompt_embeds": _embed(pipe, prompt.text, prompt.max_tokens)}
        if _effective_guidance(pipe, guidance) > 1:
            negative = _embed(pipe, prompt.negative, prompt.max_tokens)
            return {**encoded, "negative_prompt_embeds": negative}
        if prompt.negative:
            raise BundleInvalid(
                "prompt.negative would not be read: the base is distilled or guidance is below 1",
                remedy="remove prompt.negative, or set guidance above 1 on an undistilled base",
            )
        return encoded

    def encode_product(
        self, pipe: Any, product_hwc: UInt8Array, width_px: int, height_px: int
    ) -> Encoded:
        return {"latents": _encode_pictures(pipe, [_fit_reference(pipe, product_hwc)])}

    def paint(self, pipe: Any, rows: Sequence[Row], paint: Paint) -> UInt8Array:
        height_px, width_px = rows[0].region_hw.shape
        _check_size(pipe, width_px, height_px)
        products = [
            row.product or self.encode_product(pipe, row.product_hwc, width_px, height_px)
            for row in rows
        ]
        prompt = {
            name: embeds.repeat_interleave(len(rows), dim=0)
            for name, embeds in paint.prompt.items()
        }
        mask = to_mask([row.region_hw for row in rows])
        painted = pipe(
            **prompt,
            image=_encode_pictures(pipe, [row.crop_hwc for row in rows]),
            mask_image=cover_cells(mask, _cell_px(pipe)),
            image_reference=torch.cat([product["latents"] for product in products]),
            strength=self._config.strength,
            num_inference_steps=paint.num_steps,
            guidance_scale=_effective_guidance(pipe, paint.guidance),
            generator=[row.generator for row in rows],
            callback_on_step_end=paint.on_step_end,
            output_type="pt",
        )
        return to_nhwc(painted.images)


def _embed(pipe: Any, text: str, max_tokens: int) -> torch.Tensor:
    with torch.no_grad():
        embeds, _ = pipe.encode_prompt(text, max_sequence_length=max_tokens)
    return embeds


def _effective_guidance(pipe: Any, guidance: float) -> float:
    # The pipeline ignores it as well, and says so in the log at every request.
    return 1.0 if pipe.config.is_distilled else guidance


def _encode_pictures(pipe: Any, pictures: Sequence[UInt8Array]) -> torch.Tensor:
    """(N, 4 * latent channels, H / 16, W / 16), as the pipeline takes latents: not normalised."""
    images = (to_nchw(pictures) * 2 - 1).to(pipe.vae.device, pipe.vae.dtype)
    with torch.no_grad():
        # The posterior's mode, which needs no generator: the same for every request.
        latents = pipe.vae.encode(images).latent_dist.mode()
        return pipe._patchify_latents(latents)


def _cell_px(pipe: Any) -> int:
    """Pixels per side of one token: latents in patches of 2 x 2."""
    return 2 * int(pipe.vae_scale_factor)


def _fit_reference(pipe: Any, product_hwc: UInt8Array) -> UInt8Array:
    """At a size of whole tokens."""
    cell_px = _cell_px(pipe)
    height_px, width_px = (-(-side_px // cell_px) * cell_px for side_px in product_hwc.shape[:2])
    return letterbox(product_hwc, width_px, height_px)


def _check_size(pipe: Any, width_px: int, height_px: int) -> None:
    cell_px = _cell_px(pipe)
    if width_px % cell_px or height_px % cell_px:
        raise BundleInvalid(
            f"FLUX.2 cannot paint {width_px} x {height_px}: sides must be multiples of {cell_px}",
            remedy=f"set crop.multiple_of to {cell_px} and crop.sizes accordingly",
        )
