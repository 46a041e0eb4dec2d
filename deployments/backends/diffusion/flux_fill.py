"""FLUX.1 Fill as CatVTON-Flux uses it: the person's half of a diptych is painted."""

from collections.abc import Callable, Sequence
from typing import Any

from deployments.backends.diffusion.diptych import compose_diptych, take_right_half
from deployments.backends.diffusion.flux_pass import (
    TEXT_ENCODERS,
    encode_flux_prompt,
    run_flux,
)
from deployments.backends.diffusion.recipe import Encoded, Paint, Row
from deployments.backends.diffusion.tensors import to_mask, to_nchw
from deployments.recipes import FluxFill, Prompt
from serve.messages import UInt8Array


class FluxFillRecipe:
    """Product | person in one picture twice as wide, at twice the tokens; the right half is kept.

    A request's guidance is the distilled one; FLUX.1 Fill was trained around 30.
    """

    text_encoders: tuple[str, ...] = TEXT_ENCODERS
    denoiser = "transformer"
    num_panels = 2

    def __init__(self, config: FluxFill):
        self._config = config

    def pipeline_class(self) -> Any:
        from diffusers import FluxFillPipeline

        return FluxFillPipeline

    def prepare(self, pipe: Any, locate: Callable[[Any], str]) -> None: ...

    def encode_prompt(self, pipe: Any, prompt: Prompt, guidance: float) -> Encoded:
        return encode_flux_prompt(pipe, prompt)

    def encode_product(
        self, pipe: Any, product_hwc: UInt8Array, width_px: int, height_px: int
    ) -> None:
        # It shares a picture, and so the encoder's statistics, with the person.
        return None

    def paint(self, pipe: Any, rows: Sequence[Row], paint: Paint) -> UInt8Array:
        height_px, width_px = rows[0].region_hw.shape
        diptychs = [compose_diptych(row.crop_hwc, row.region_hw, row.product_hwc) for row in rows]
        images_nhwc = run_flux(
            pipe,
            rows,
            paint,
            image=to_nchw([picture for picture, _ in diptychs]),
            mask_image=to_mask([mask for _, mask in diptychs]),
            width=2 * width_px,
            height=height_px,
            strength=1.0,
        )
        return take_right_half(images_nhwc)
