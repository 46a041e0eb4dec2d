"""How much of a device this process may hold."""

from collections.abc import Iterable

import torch

from deployments.bundle import Bundle
from deployments.measured import find_footprint, load_footprints

GIB = 2**30


def cap_device_memory(num_gpus: float, context_gib: float = 0.0) -> float | None:
    """Keep torch within this process' share of the first GPU, so that neighbours keep theirs.

    Args:
        num_gpus: the share; 1 and above, and 0, cap nothing.
        context_gib: part of the share that CUDA itself takes, which torch's allocator knows
            nothing of.

    Returns:
        What tensors may hold, in GiB; None where nothing is capped.
    """
    if not torch.cuda.is_available() or not 0 < num_gpus < 1:
        return None
    device_gib: float = torch.cuda.get_device_properties(0).total_memory / GIB
    cap_gib = max(0.0, num_gpus * device_gib - context_gib)
    torch.cuda.set_per_process_memory_fraction(cap_gib / device_gib, 0)
    return cap_gib


def name_device() -> str:
    """As footprints name it: the GPU's name, or `cpu`."""
    name: str = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
    return name


def measured_context_gib(bundles: Iterable[Bundle]) -> float:
    """What CUDA took beside these versions where they were measured on this device; else 0."""
    device = name_device()
    known = (find_footprint(load_footprints(bundle), device) for bundle in bundles)
    return max((footprint.context_gib for footprint in known if footprint), default=0.0)
