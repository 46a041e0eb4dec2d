"""The stock Stable Diffusion inpainting pipelines, with one product per row of a batch.

Imported only when such a pipeline is loaded: it costs seconds.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionInpaintPipeline, StableDiffusionXLInpaintPipeline


class SdInpaintPipeline(StableDiffusionInpaintPipeline):  # type: ignore[misc]
    """SD 1.5 and 2."""

    def prepare_ip_adapter_image_embeds(
        self, picture: Any, embeds: list[torch.Tensor] | None, device: Any, *counts: Any
    ) -> list[torch.Tensor]:
        if embeds is not None:
            return _as_given(embeds, device)
        stock: list[torch.Tensor] = super().prepare_ip_adapter_image_embeds(
            picture, None, device, *counts
        )
        return stock


class SdxlInpaintPipeline(StableDiffusionXLInpaintPipeline):  # type: ignore[misc]
    """Without the watermark, which would be drawn where the crop's border is pasted back."""

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs: Any) -> Any:
        return super().from_pretrained(folder, add_watermarker=False, **kwargs)

    def prepare_ip_adapter_image_embeds(
        self, picture: Any, embeds: list[torch.Tensor] | None, device: Any, *counts: Any
    ) -> list[torch.Tensor]:
        if embeds is not None:
            return _as_given(embeds, device)
        stock: list[torch.Tensor] = super().prepare_ip_adapter_image_embeds(
            picture, None, device, *counts
        )
        return stock


def _as_given(embeds: list[torch.Tensor], device: Any) -> list[torch.Tensor]:
    # The stock method repeats them once per row, as if one product belonged to the whole batch
    # (diffusers 0.42.1); the recipe gives a line per row, and per guided half of it, itself.
    return [each.to(device) for each in embeds]
