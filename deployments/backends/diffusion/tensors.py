"""Pictures and regions as the tensors that pipelines take and give."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from serve.messages import UInt8Array


def to_nchw(pictures: Sequence[UInt8Array]) -> torch.Tensor:
    """(H, W, 3) each, to (N, 3, H, W) float32 in [0, 1] as image processors take it."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def to_mask(regions: Sequence[UInt8Array]) -> torch.Tensor:
    """(H, W) each, to (N, 1, H, W) float32: 1 where it may be painted."""
    return torch.from_numpy(np.stack(regions) > 127)[:, None].float()


def cover_cells(mask_n1hw: torch.Tensor, cell_px: int) -> torch.Tensor:
    """Grow the mask to whole latents. Pipelines look at one pixel of each, so a region thinner
    than a latent, such as a spectacle's temple, would be missed."""
    cells = functional.max_pool2d(mask_n1hw, cell_px)
    return functional.interpolate(cells, scale_factor=cell_px)


def to_nhwc(images_nchw: torch.Tensor) -> UInt8Array:
    """(N, 3, H, W) in [0, 1] on any device, to (N, H, W, 3)."""
    levels = (images_nchw.float() * 255).round().clamp(0, 255).to(torch.uint8)
    array: UInt8Array = levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return array
