"""What the FLUX.1 pipelines have in common: words in, one pass, pictures out."""

from collections.abc import Sequence
from typing import Any

import torch

from deployments.backends.diffusion.recipe import Encoded, Paint, Row
from deployments.backends.diffusion.tensors import to_nhwc
from deployments.recipes import Prompt
from serve.errors import BundleInvalid
from serve.messages import UInt8Array

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
"""CLIP's pooled embedding and T5's sequence; the pipelines run without both on embeddings."""

MAX_T5_TOKENS = 512  # every FLUX.1 pipeline of diffusers refuses more


def encode_flux_prompt(pipe: Any, prompt: Prompt, *, true_cfg: float = 1.0) -> Encoded:
    """Embeddings under the names the pipelines' arguments have.

    Args:
        true_cfg: above 1 the negative prompt is embedded too, be it empty.

    Raises:
        BundleInvalid: more tokens than FLUX.1 reads, or a negative prompt that nothing would read.
    """
    if prompt.max_tokens > MAX_T5_TOKENS:
        raise BundleInvalid(
            f"prompt.max_tokens is {prompt.max_tokens}: FLUX.1 reads {MAX_T5_TOKENS} at most",
            remedy=f"set prompt.max_tokens to {MAX_T5_TOKENS} or less",
        )
    if prompt.negative and true_cfg <= 1:
        raise BundleInvalid(
            f"prompt.negative would not be read: {type(pipe).__name__}'s guidance is distilled",
            remedy="remove prompt.negative, or set recipe.true_cfg above 1 where the recipe has it",
        )
    encoded = _embed(pipe, prompt.text, prompt.max_tokens)
    if true_cfg > 1:
        negative = _embed(pipe, prompt.negative, prompt.max_tokens)
        encoded |= {f"negative_{name}": embeds for name, embeds in negative.items()}
    return encoded


def _embed(pipe: Any, text: str, max_tokens: int) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        embeds, pooled, _ = pipe.encode_prompt(text, max_sequence_length=max_tokens)
    return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}


def run_flux(pipe: Any, rows: Sequence[Row], paint: Paint, **pictures: Any) -> UInt8Array:
    """One pass.

    Raises:
        BundleInvalid: the pipeline would round the crop's size.
    """
    _check_size(pipe, rows[0])
    prompt = {
        name: embeds.repeat_interleave(len(rows), dim=0) for name, embeds in paint.prompt.items()
    }
    painted = pipe(
        **prompt,
        **pictures,
        num_inference_steps=paint.num_steps,
        guidance_scale=paint.guidance,  # the distilled one: an input of the transformer
        generator=[row.generator for row in rows],
        callback_on_step_end=paint.on_step_end,
        output_type="pt",
    )
    return to_nhwc(painted.images)


def _check_size(pipe: Any, row: Row) -> None:
    height_px, width_px = row.region_hw.shape
    multiple = size_multiple(pipe)
    if width_px % multiple or height_px % multiple:
        raise BundleInvalid(
            f"FLUX.1 cannot paint {width_px} x {height_px}: sides must be multiples of {multiple}",
            remedy=f"set crop.multiple_of to {multiple} and crop.sizes accordingly",
        )


def size_multiple(pipe: Any) -> int:
    """Sides are cut into latents, and these into patches of 2 x 2."""
    return 2 * int(pipe.vae_scale_factor)
