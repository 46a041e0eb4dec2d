"""Stable Diffusion inpainting, SD 1.5 to SDXL: the product by IP-Adapter or as a diptych half."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from deployments.backends.diffusion.diptych import compose_diptych, letterbox, take_right_half
from deployments.backends.diffusion.recipe import Encoded, Paint, Row
from deployments.backends.diffusion.tensors import cover_cells, to_mask, to_nchw, to_nhwc
from deployments.recipes import (
    ProductAsIpAdapter,
    Prompt,
    StableDiffusionInpaint,
    StableDiffusionXLInpaint,
)
from serve.errors import BundleInvalid, GenerationFailed
from serve.messages import UInt8Array

UNET_CHANNELS = (4, 9)
"""Noise alone, blended with the old picture at each step; or noise, mask and masked picture."""


class _StableDiffusion:
    """What both families do alike; they differ in text encoders and pipeline class."""

    text_encoders: tuple[str, ...]
    denoiser = "unet"

    def __init__(self, config: StableDiffusionInpaint | StableDiffusionXLInpaint):
        self._strength = config.strength
        self._adapter = config.product if isinstance(config.product, ProductAsIpAdapter) else None
        self.num_panels = 2 if self._adapter is None else 1

    def prepare(self, pipe: Any, locate: Callable[[Any], str]) -> None:
        num_channels = pipe.unet.config.in_channels
        if num_channels not in UNET_CHANNELS:
            raise BundleInvalid(
                f"the UNet takes {num_channels} channels: no inpainting one, those take 4 or 9",
                remedy="name an inpainting base in backend.model, or its UNet in transformer",
            )
        if self._adapter is not None:
            _load_ip_adapter(pipe, self._adapter, Path(locate(self._adapter.source)))

    def encode_product(
        self, pipe: Any, product_hwc: UInt8Array, width_px: int, height_px: int
    ) -> Encoded | None:
        if self._adapter is None:
            return None  # its half shares a picture, and so the VAE's statistics, with the person
        # CLIP's processor crops the middle out of what is not square.
        side_px = max(product_hwc.shape[:2])
        picture = Image.fromarray(letterbox(product_hwc, side_px, side_px))
        # Both halves always: which guidance a later request wants is not known here.
        with torch.no_grad():
            (embeds,) = pipe.prepare_ip_adapter_image_embeds(picture, None, pipe.device, 1, True)
        without, with_product = embeds.chunk(2)
        return {"without": without, "with": with_product}

    def paint(self, pipe: Any, rows: Sequence[Row], paint: Paint) -> UInt8Array:
        self._check_steps(paint.num_steps)
        _check_size(pipe, rows[0])
        if self._adapter is None:
            pairs = [compose_diptych(row.crop_hwc, row.region_hw, row.product_hwc) for row in rows]
            return take_right_half(self._run(pipe, rows, paint, pairs))
        pairs = [(row.crop_hwc, row.region_hw) for row in rows]
        products = [self._product_of(pipe, row) for row in rows]
        return self._run(
            pipe, rows, paint, pairs, ip_adapter_image_embeds=_stack(pipe, products, paint.guidance)
        )

    def _run(
        self,
        pipe: Any,
        rows: Sequence[Row],
        paint: Paint,
        pairs: Sequence[tuple[UInt8Array, UInt8Array]],
        **product: Any,
    ) -> UInt8Array:
        """One pass over (picture, mask) pairs."""
        prompt = {
            name: embeds.repeat_interleave(len(rows), dim=0)
            for name, embeds in paint.prompt.items()
        }
        height_px, width_px = pairs[0][1].shape
        mask = to_mask([mask_hw for _, mask_hw in pairs])
        painted = pipe(
            **prompt,
            **product,
            image=to_nchw([picture_hwc for picture_hwc, _ in pairs]),
            mask_image=cover_cells(mask, pipe.vae_scale_factor),
            height=height_px,
            width=width_px,
            strength=self._strength,
            num_inference_steps=paint.num_steps,
            guidance_scale=paint.guidance,
            generator=[row.generator for row in rows],
            callback_on_step_end=paint.on_step_end,
            output_type="pt",
        )
        return to_nhwc(painted.images)

    def _product_of(self, pipe: Any, row: Row) -> Encoded:
        height_px, width_px = row.region_hw.shape
        product = row.product or self.encode_product(pipe, row.product_hwc, width_px, height_px)
        assert product is not None
        return product

    def _check_steps(self, num_steps: int) -> None:
        # Below strength 1 the pipelines skip the first steps, and then refuse to do none at all.
        if int(num_steps * self._strength) < 1:
            raise GenerationFailed(
                f"{num_steps} steps at strength {self._strength} leave none to do",
                remedy="more steps for this quality in the bundle's tiers, or strength 1.0",
            )


class StableDiffusionInpaintRecipe(_StableDiffusion):
    """SD 1.5 and 2 inpainting, nine-channel UNets and plain ones."""

    text_encoders: tuple[str, ...] = ("text_encoder",)

    def pipeline_class(self) -> Any:
        from deployments.backends.diffusion.stable_diffusion_pipelines import SdInpaintPipeline

        return SdInpaintPipeline

    def encode_prompt(self, pipe: Any, prompt: Prompt, guidance: float) -> Encoded:
        with torch.no_grad():
            embeds, negative = pipe.encode_prompt(
                prompt.text, pipe.device, 1, True, prompt.negative or None
            )
        return {"prompt_embeds": embeds, "negative_prompt_embeds": negative}


class StableDiffusionXLInpaintRecipe(_StableDiffusion):
    """SDXL inpainting.

    At strength 0.9999, diffusers' default, it starts from the old picture under almost full noise
    and skips the first step; 1.0 starts from noise alone and does them all.
    """

    text_encoders: tuple[str, ...] = ("text_encoder", "text_encoder_2")

    def pipeline_class(self) -> Any:
        from deployments.backends.diffusion.stable_diffusion_pipelines import SdxlInpaintPipeline

        return SdxlInpaintPipeline

    def encode_prompt(self, pipe: Any, prompt: Prompt, guidance: float) -> Encoded:
        with torch.no_grad():
            embeds, negative, pooled, negative_pooled = pipe.encode_prompt(
                prompt.text,
                device=pipe.device,
                do_classifier_free_guidance=True,
                # None, not an empty text, is what SDXL was trained with: zeros.
                negative_prompt=prompt.negative or None,
            )
        return {
            "prompt_embeds": embeds,
            "negative_prompt_embeds": negative,
            "pooled_prompt_embeds": pooled,
            "negative_pooled_prompt_embeds": negative_pooled,
        }


def _check_size(pipe: Any, row: Row) -> None:
    height_px, width_px = row.region_hw.shape
    multiple = pipe.vae_scale_factor
    if width_px % multiple or height_px % multiple:
        raise BundleInvalid(
            f"cannot paint {width_px} x {height_px}: sides must be multiples of {multiple}",
            remedy=f"set crop.multiple_of to {multiple} and crop.sizes accordingly",
        )


def _load_ip_adapter(pipe: Any, adapter: ProductAsIpAdapter, folder: Path) -> None:
    """Give the pipeline its adapter and the image encoder that belongs to it.

    Raises:
        BundleInvalid: not safetensors, missing, or made for another base.
    """
    name = adapter.weight_name
    if not name.endswith(".safetensors"):
        raise BundleInvalid(
            f"{name} of {adapter.source.label} is not safetensors: a pickle can run code",
            remedy="name the adapter's .safetensors file, or convert it",
        )
    subfolder, encoder = adapter.source.subfolder or "", adapter.image_encoder_folder
    # As load_ip_adapter reads it: a bare name lies beside the adapter, a path starts at the top.
    encoder_folder = folder / encoder if "/" in encoder else folder / subfolder / encoder
    if not any(encoder_folder.glob("*.safetensors")):
        raise BundleInvalid(
            f"{adapter.source.label}: no safetensors in {encoder}",
            remedy="name the folder of the adapter's image encoder in image_encoder_folder",
        )
    try:
        pipe.load_ip_adapter(
            str(folder),
            subfolder=subfolder,
            weight_name=name,
            image_encoder_folder=encoder,
            local_files_only=True,
        )
    except (OSError, KeyError, ValueError, RuntimeError) as exc:
        raise BundleInvalid(
            f"{name} of {adapter.source.label} does not load: {exc}",
            remedy="an IP-Adapter fits one family of bases only: is it this one's?",
        ) from exc
    pipe.set_ip_adapter_scale(adapter.scale)


def _stack(pipe: Any, products: Sequence[Encoded], guidance: float) -> list[torch.Tensor]:
    """One line per row, below one per row's unguided half where the pipeline guides."""
    with_product = torch.cat([product["with"] for product in products])
    if guidance <= 1 or pipe.unet.config.time_cond_proj_dim is not None:
        return [with_product]
    without = torch.cat([product["without"] for product in products])
    return [torch.cat([without, with_product])]
