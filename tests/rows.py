"""Rows to paint, and a pipeline loaded with its recipe as the engine holds them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deployments.backends.diffusion.passes import fork_pipe
from deployments.backends.diffusion.recipe import Paint, Recipe, Row, StepCallback
from deployments.recipes import Prompt
from deployments.sources import ModelSource
from serve.messages import UInt8Array
from tests.pictures import photo

WIDTH_PX, HEIGHT_PX = 128, 192
PROMPT = Prompt(text="the person wears the sunglasses", max_tokens=32)


class Loaded:
    """A pipeline with its recipe and one prompt."""

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        *,
        prompt: Prompt = PROMPT,
        guidance: float = 3.0,
        num_steps: int = 4,
        dtype: torch.dtype = torch.float32,
    ):
        self.recipe = recipe
        self.pipe = load(folder, recipe, dtype)
        recipe.prepare(self.pipe, locate)
        self.guidance = guidance
        self.num_steps = num_steps
        self.prompt = recipe.encode_prompt(self.pipe, prompt, guidance)

    def paint(
        self, rows: Sequence[Row], on_step_end: StepCallback = lambda pipe, step, t, kwargs: kwargs
    ) -> UInt8Array:
        paint = Paint(self.prompt, self.num_steps, self.guidance, on_step_end)
        with torch.inference_mode():
            return self.recipe.paint(fork_pipe(self.pipe), rows, paint)

    def row(self, index: int, product_index: int | None = None, **changes: Any) -> Row:
        product_hwc = product(index if product_index is None else product_index)
        fields = {
            "crop_hwc": photo(WIDTH_PX, HEIGHT_PX, seed=index),
            "region_hw": region(index),
            "product_hwc": product_hwc,
            "product": self.recipe.encode_product(self.pipe, product_hwc, WIDTH_PX, HEIGHT_PX),
            "generator": torch.Generator().manual_seed(index),
        }
        return Row(**{**fields, **changes})

    def drop_text_encoders(self) -> None:
        for name in self.recipe.text_encoders:
            setattr(self.pipe, name, None)


def load(folder: Path, recipe: Recipe, dtype: torch.dtype = torch.float32) -> Any:
    """The recipe's pipeline as it is stored, quiet."""
    pipe = recipe.pipeline_class().from_pretrained(folder, local_files_only=True, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def locate(source: ModelSource) -> str:
    return str(source.path)


def region(index: int) -> UInt8Array:
    region_hw = np.zeros((HEIGHT_PX, WIDTH_PX), np.uint8)
    region_hw[32 + 16 * index : 144, 32:96] = 255
    return region_hw


def product(index: int) -> UInt8Array:
    """(160, 128, 3): something in strong colours on white."""
    product_hwc = np.full((160, 128, 3), 255, np.uint8)
    rng = np.random.default_rng(index)
    product_hwc[30:130, 20:108] = rng.integers(0, 255, 3)
    product_hwc[30 + 10 * index : 80, 20:64] = rng.integers(0, 255, 3)
    return product_hwc


def levels_apart(a: UInt8Array, b: UInt8Array) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


class Stop(Exception):
    """What a step callback raises in tests."""


def stop_at(last_step: int) -> StepCallback:
    def on_step_end(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == last_step:
            raise Stop
        return kwargs

    return on_step_end
