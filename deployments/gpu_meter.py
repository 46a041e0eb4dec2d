"""What NVML says of the GPUs that a process may use; nothing where there is no driver."""

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

from serve.observing.meter import Meter


class Nvml(Protocol):
    """The part of NVML that is used. Source: nvidia-ml-py 13, `pynvml`."""

    NVMLError: type[Exception]

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetCount(self) -> int: ...

    def nvmlDeviceGetHandleByIndex(self, index: int, /) -> Any: ...

    def nvmlDeviceGetHandleByUUID(self, uuid: str, /) -> Any: ...

    def nvmlDeviceGetUUID(self, handle: Any, /) -> str: ...

    def nvmlDeviceGetMemoryInfo(self, handle: Any, /) -> Any:
        """`used` and `total`, in bytes."""

    def nvmlDeviceGetUtilizationRates(self, handle: Any, /) -> Any:
        """`gpu`: percent of the last sampling period with a kernel running."""


def find_nvml() -> Nvml | None:
    """The driver's library, ready to be asked; None where there is none."""
    import pynvml  # loads libnvidia-ml.so.1 when it is initialised, not before

    nvml: Any = pynvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    return nvml  # type: ignore[no-any-return]  # a module that has what the protocol names


class GpuMeter:
    """Gauges of the GPUs that this process sees, by their UUIDs: the same GPU has one name in every
    replica on it."""

    def __init__(self, meter: Meter, nvml: Nvml | None, visible: str | None):
        """
        Args:
            visible: `CUDA_VISIBLE_DEVICES`: indices or UUIDs with commas between; all when None.
        """
        self._meter = meter
        self._nvml = nvml
        self._gpus: dict[str, Any] = {} if nvml is None else dict(_find_gpus(nvml, visible))

    def look(self) -> None:
        """Costs about a millisecond for each GPU."""
        nvml = self._nvml
        if nvml is None:
            return
        for uuid, handle in self._gpus.items():
            with contextlib.suppress(nvml.NVMLError):
                memory = nvml.nvmlDeviceGetMemoryInfo(handle)
                self._meter.set("sm4ll_gpu_memory_used_bytes", memory.used, gpu=uuid)
                self._meter.set("sm4ll_gpu_memory_total_bytes", memory.total, gpu=uuid)
            # Apart: a slice of a GPU (MIG) has memory of its own and no such rate.
            with contextlib.suppress(nvml.NVMLError):
                rates = nvml.nvmlDeviceGetUtilizationRates(handle)
                self._meter.set("sm4ll_gpu_utilization_ratio", rates.gpu / 100, gpu=uuid)


def _find_gpus(nvml: Nvml, visible: str | None) -> Iterator[tuple[str, Any]]:
    if visible is None:
        names = [str(index) for index in range(nvml.nvmlDeviceGetCount())]
    else:
        names = [name.strip() for name in visible.split(",") if name.strip()]
    for name in names:
        # CUDA ignores what it does not know and all behind it; here only that one is missing.
        with contextlib.suppress(nvml.NVMLError):
            if name.isdecimal():
                handle = nvml.nvmlDeviceGetHandleByIndex(int(name))
            else:
                handle = nvml.nvmlDeviceGetHandleByUUID(name)
            yield nvml.nvmlDeviceGetUUID(handle), handle
