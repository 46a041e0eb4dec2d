"""The stages of a request, named once, and the clock that times them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

STAGES: dict[str, str] = {
    "read": "read and parse the request body",
    "fetch": "fetch the pictures that are given by URL",
    "decode": "decode and hash person and product, prepare the copies",
    "segment": "find the region (segmenter replica, transfer included)",
    "plan": "crop plan and the crop at the expert's size",
    "queue": "wait for a permit to ask the expert, in fair order",
    "expert": "paint (expert replica, transfer included)",
    "paste": "paste back at the original size",
    "encode": "encode the answer",
    "prove": "decode the answer and compare every pixel outside the region",
    "settle": "write down what the work took, in the ledger",
}


class Stopwatch:
    """Milliseconds per stage of one request; a stage entered twice adds up."""

    def __init__(self) -> None:
        self._started_s = time.perf_counter()
        self._stages_ms: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        if name not in STAGES:
            raise KeyError(name)
        started_s = time.perf_counter()
        try:
            yield
        finally:
            elapsed_ms = (time.perf_counter() - started_s) * 1e3
            self._stages_ms[name] = self._stages_ms.get(name, 0.0) + elapsed_ms

    @property
    def stages_ms(self) -> dict[str, float]:
        return {name: round(value, 3) for name, value in self._stages_ms.items()}

    @property
    def total_ms(self) -> float:
        return round((time.perf_counter() - self._started_s) * 1e3, 3)

    def server_timing(self) -> str:
        """The `Server-Timing` header's value (W3C Server Timing, 2023-04)."""
        entries = [f"{name};dur={value:.1f}" for name, value in self._stages_ms.items()]
        return ", ".join([*entries, f"total;dur={self.total_ms:.1f}"])
