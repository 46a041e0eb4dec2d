"""What pictures depend on besides inputs and weights: the device, and the library on it."""

import platform
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Environment:
    """Where a backend paints."""

    device: str
    """GPU name, or `cpu` with its architecture."""
    torch: str | None = None
    """Its version; None for backends without it."""

    def __str__(self) -> str:
        return self.device if self.torch is None else f"{self.device} with torch {self.torch}"


def describe_environment(uses_torch: bool) -> Environment:
    """Where this process paints."""
    cpu = f"cpu {platform.machine()}"
    if not uses_torch:
        return Environment(cpu)
    import torch  # seconds and hundreds of MB, which backends without it shall not pay

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu
    return Environment(device, torch.__version__)
