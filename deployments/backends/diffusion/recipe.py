"""What a pipeline family has to say for itself; the engine does everything else."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from deployments.recipes import Prompt
from serve.messages import UInt8Array

Encoded = Mapping[str, torch.Tensor]
"""Named tensors on the engine's device; what they mean is the recipe's own business."""

StepCallback = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]
"""diffusers' `callback_on_step_end(pipe, step_index, timestep, kwargs) -> kwargs`."""


@dataclass(frozen=True, slots=True)
class Row:
    """One picture to paint; a request for n pictures becomes n rows."""

    crop_hwc: UInt8Array
    """(H, W, 3) sRGB."""
    region_hw: UInt8Array
    """(H, W): 255 where it may paint, else 0."""
    product_hwc: UInt8Array
    """(h, w, 3): the product's canvas, opaque."""
    product: Encoded | None
    """What `encode_product` made of it, maybe in an earlier request."""
    generator: torch.Generator
    """On the CPU and this row's own: neither device nor neighbours change the noise."""


@dataclass(frozen=True, slots=True)
class Paint:
    """What all rows of one pass share."""

    prompt: Encoded
    num_steps: int
    guidance: float
    on_step_end: StepCallback


class Recipe(Protocol):
    """How one pipeline family is told about person, region and product. Keeps no state: the same
    instance serves every request of every version on its base."""

    text_encoders: tuple[str, ...]
    """Components that only `encode_prompt` needs, freed afterwards where the bundle says so."""
    denoiser: str
    """The component that steps: `transformer` or `unet`."""
    num_panels: int
    """Crops side by side in what the VAE decodes: 2 for a diptych."""

    def pipeline_class(self) -> Any:
        """The diffusers class; imported here, so that a bundle's other families cost nothing."""

    def prepare(self, pipe: Any, locate: Callable[[Any], str]) -> None:
        """What the pipeline needs once after loading, such as an IP-Adapter.

        Args:
            locate: turns a ModelSource into a local directory of verified safetensors: its root,
                whose subfolder the recipe enters itself.
        """

    def encode_prompt(self, pipe: Any, prompt: Prompt, guidance: float) -> Encoded:
        """Embeddings for one row, batch dimension 1, negative ones included where guidance needs
        them."""

    def encode_product(
        self, pipe: Any, product_hwc: UInt8Array, width_px: int, height_px: int
    ) -> Encoded | None:
        """What of the product does not depend on the person; None where nothing does not.

        Args:
            width_px, height_px: of the crop it will be painted into; part of the cache key.
        """

    def paint(self, pipe: Any, rows: Sequence[Row], paint: Paint) -> UInt8Array:
        """Run the pipeline once.

        Args:
            rows: of one size; row i's noise comes from rows[i].generator alone.

        Returns:
            (len(rows), H, W, 3), the crops' own size.
        """
