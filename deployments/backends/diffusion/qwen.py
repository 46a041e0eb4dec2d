"""Qwen-Image-Edit: inpainting of a diptych, and the editor that is shown person and product.

The vision-language encoder reads the prompt together with the pictures of each request: there are
no prompt embeddings to keep, and the encoder is never dropped, whatever a bundle says.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from deployments.backends.diffusion.diptych import compose_diptych, take_right_half
from deployments.backends.diffusion.frame import Frame
from deployments.backends.diffusion.recipe import Encoded, Paint, Row, StepCallback
from deployments.backends.diffusion.tensors import cover_cells, to_mask, to_nhwc
from deployments.recipes import Prompt, QwenImageEditInpaint, QwenImageEditPlus
from serve.messages import UInt8Array

AREA_PX = 1024 * 1024
"""What the pipelines bring every picture to; VAE_IMAGE_SIZE in diffusers 0.42.1."""
MAX_ROUNDINGS = 8  # five were the most that any aspect ratio from 1:25 to 25:1 needed


class _Qwen:
    """What both pipelines do alike: the words are kept as they are until there are pictures."""

    text_encoders: tuple[str, ...] = ()
    denoiser = "transformer"
    num_panels = 1  # it brings whatever it is given to one megapixel

    def prepare(self, pipe: Any, locate: Callable[[Any], str]) -> None: ...

    def encode_prompt(self, pipe: Any, prompt: Prompt, guidance: float) -> Encoded:
        # A space, because the pipelines guide by any negative prompt but none at all.
        return {"text": _to_bytes(prompt.text), "negative": _to_bytes(prompt.negative or " ")}

    def encode_product(
        self, pipe: Any, product_hwc: UInt8Array, width_px: int, height_px: int
    ) -> None:
        # The encoder reads it together with the person.
        return None


class QwenImageEditInpaintRecipe(_Qwen):
    """The pipeline takes no reference, so the product is a diptych half."""

    def __init__(self, config: QwenImageEditInpaint):
        self._strength = config.strength

    def pipeline_class(self) -> Any:
        from deployments.backends.diffusion.qwen_pipelines import QwenInpaintPipeline

        return QwenInpaintPipeline

    def paint(self, pipe: Any, rows: Sequence[Row], paint: Paint) -> UInt8Array:
        height_px, width_px = rows[0].region_hw.shape
        pair_w_px, pair_h_px = settled_size(2 * width_px, height_px)
        frame = Frame.around((height_px, width_px), pair_w_px // 2, pair_h_px)
        pairs = [_compose(frame, row) for row in rows]
        mask = to_mask([mask_hw for _, mask_hw in pairs])
        painted = pipe(
            **_words(paint, len(rows)),
            # A list even of one: the pipeline then resizes nothing before its encoder looks.
            image=[Image.fromarray(picture_hwc) for picture_hwc, _ in pairs],
            mask_image=cover_cells(mask, pipe.vae_scale_factor),
            strength=self._strength,
            num_inference_steps=paint.num_steps,
            generator=[row.generator for row in rows],
            callback_on_step_end=paint.on_step_end,
            output_type="pt",
        )
        return frame.cut(take_right_half(to_nhwc(painted.images)), width_px, height_px)


class QwenImageEditPlusRecipe(_Qwen):
    """An instruction editor: picture 1 is the person, picture 2 the product.

    It paints at the size at which it is shown the person, not at the crop's: the transformer places
    both on one grid of patches around the centre, so at any other size the person would come out
    moved and zoomed, and could not be pasted back.
    """

    def __init__(self, config: QwenImageEditPlus):
        self._config = config

    def pipeline_class(self) -> Any:
        from deployments.backends.diffusion.qwen_pipelines import QwenEditPipeline

        return QwenEditPipeline

    def paint(self, pipe: Any, rows: Sequence[Row], paint: Paint) -> UInt8Array:
        # One by one: the pipeline refuses a batch (diffusers 0.42.1).
        return np.concatenate(
            [
                self._paint_one(pipe, row, paint, _share(paint, index, len(rows)))
                for index, row in enumerate(rows)
            ]
        )

    def _paint_one(
        self, pipe: Any, row: Row, paint: Paint, on_step_end: StepCallback
    ) -> UInt8Array:
        height_px, width_px = row.region_hw.shape
        frame = _frame_of(row.crop_hwc)
        painted = pipe(
            **_words(paint, 1),
            image=[
                Image.fromarray(frame.place(row.crop_hwc)),
                Image.fromarray(_frame_of(row.product_hwc).place(row.product_hwc)),
            ],
            width=frame.width_px,
            height=frame.height_px,
            num_inference_steps=paint.num_steps,
            generator=row.generator,
            callback_on_step_end=on_step_end,
            output_type="pt",
        )
        return frame.cut(to_nhwc(painted.images), width_px, height_px)


def settled_size(width_px: int, height_px: int) -> tuple[int, int]:
    """The size near that aspect ratio which the pipelines leave as it is.

    They bring pictures to AREA_PX in steps of 32 px, each side by itself, which stretches by up to
    5 %; a picture that has such a size already is not touched.
    """
    from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import calculate_dimensions

    size: tuple[int, int] = (width_px, height_px)
    for _ in range(MAX_ROUNDINGS):
        size = calculate_dimensions(AREA_PX, size[0] / size[1])
    return size


def _frame_of(picture_hwc: UInt8Array) -> Frame:
    height_px, width_px = picture_hwc.shape[:2]
    return Frame.around((height_px, width_px), *settled_size(width_px, height_px))


def _compose(frame: Frame, row: Row) -> tuple[UInt8Array, UInt8Array]:
    return compose_diptych(
        frame.place(row.crop_hwc), frame.place_region(row.region_hw), row.product_hwc
    )


def _words(paint: Paint, num_rows: int) -> dict[str, Any]:
    text, negative = (_to_text(paint.prompt[name]) for name in ("text", "negative"))
    guides = paint.guidance > 1
    return {
        "prompt": [text] * num_rows,
        "negative_prompt": [negative] * num_rows if guides else None,
        "true_cfg_scale": paint.guidance,
    }


def _share(paint: Paint, index: int, num_rows: int) -> StepCallback:
    """Row after row, yet one pass to who watches: every row's step may be the last one, and a step
    of the pass is done when as much work is done as one step for each row."""

    def on_step_end(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        of_pass = (index * paint.num_steps + step) // num_rows
        return paint.on_step_end(pipe, of_pass, timestep, kwargs)

    return on_step_end


def _to_bytes(text: str) -> torch.Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def _to_text(utf8: torch.Tensor) -> str:
    return bytes(utf8.tolist()).decode()
