"""One thread that looks every few seconds at what has a value at any time."""

import logging
import threading
from collections.abc import Callable, Sequence

from deployments.gpu_meter import GpuMeter, find_nvml
from serve.observing.meter import Meter, NoMeter
from serve.observing.sampling import read_resident_bytes
from serve.settings import Settings

PERIOD_S = 5.0

Look = Callable[[], None]
"""Sets its gauges."""


class Pulse:
    """Ends when it is closed: it holds what looks, never what owns it."""

    def __init__(self, looks: Sequence[Look], period_s: float = PERIOD_S):
        self._is_closed = threading.Event()
        if looks:
            arguments = tuple(looks), period_s, self._is_closed
            threading.Thread(target=_beat, args=arguments, name="pulse", daemon=True).start()

    def close(self) -> None:
        """It looks no more. Takes no lock that it could wait for: a destructor may call it."""
        self._is_closed.set()


def list_looks(meter: Meter) -> list[Look]:
    """What every process that computes is asked; nothing where nobody records it."""
    if isinstance(meter, NoMeter):
        return []

    def look_at_memory() -> None:
        meter.set("sm4ll_replica_memory_bytes", read_resident_bytes())

    return [look_at_memory, GpuMeter(meter, find_nvml(), Settings().visible_gpus).look]


def _beat(looks: tuple[Look, ...], period_s: float, is_closed: threading.Event) -> None:
    failed: set[Look] = set()
    while True:
        for look in looks:
            try:
                look()
            except Exception:
                if look not in failed:
                    failed.add(look)
                    logging.getLogger("ray.serve").exception("something is not measured")
        if is_closed.wait(period_s):
            return
