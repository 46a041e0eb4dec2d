"""What one replica's share of a device allows, from measurements alone: before anything reaches it.

Fractions of a GPU are bookkeeping to Ray; this refuses by name what the cap would fail later.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from deployments.backends.base import Memory
from deployments.bundle import Bundle
from deployments.measured import Footprint, find_footprint, load_footprints
from deployments.recipes import Diffusion
from serve.config import VersionId
from serve.errors import OutOfDeviceMemory
from serve.messages import ExpertRequest


@dataclass(frozen=True, slots=True)
class MemoryGuard:
    """Admits one version's requests to one device."""

    max_rows: int
    """The bundle's limit of pictures in one pass; a request for more takes several."""
    footprint: Footprint | None
    """What was measured of the version on this device; None: not measured, so nothing is known."""
    cap_gib: float | None
    """Most that this process may hold there; None where it is all its own."""

    def check(self, request: ExpertRequest) -> None:
        """Refuse what cannot fit, however little else runs.

        Raises:
            OutOfDeviceMemory: the predicted peak is above the cap; says both.
        """
        num_rows = min(request.num_images, self.max_rows)
        peak_gib = self._predict_gib(request, num_rows)
        if peak_gib is None or peak_gib <= self._room_gib:
            return
        height_px, width_px = request.region_hw.shape
        raise OutOfDeviceMemory(
            f"{request.version}: {num_rows} x {width_px}x{height_px} px needs {peak_gib:.2f} GiB, "
            f"and this replica may hold {self._room_gib:.2f} GiB",
            remedy="a smaller crop size or num_images, or a larger share of the GPU (num_gpus)",
        )

    def best_rows(self, request: ExpertRequest) -> int:
        """Most pictures that a pass with this request may have: what was measured to pay, and fits.

        One where nothing was measured.
        """
        if self.footprint is None:
            return 1
        height_px, width_px = request.region_hw.shape
        num_rows = self.footprint.best_batch(width_px, height_px, request.num_steps, self.max_rows)
        while num_rows > 1 and not self._fits(request, num_rows):
            num_rows -= 1
        return num_rows

    def _fits(self, request: ExpertRequest, num_rows: int) -> bool:
        peak_gib = self._predict_gib(request, num_rows)
        return peak_gib is not None and peak_gib <= self._room_gib

    def _predict_gib(self, request: ExpertRequest, num_rows: int) -> float | None:
        if self.footprint is None:
            return None
        height_px, width_px = request.region_hw.shape
        return self.footprint.predict_peak_gib(width_px, height_px, num_rows)

    @property
    def _room_gib(self) -> float:
        if self.cap_gib is not None:
            return self.cap_gib
        assert self.footprint is not None, "asked only about what was measured"
        return self.footprint.device_gib


def build_guards(bundles: Iterable[Bundle], memory: Memory) -> dict[VersionId, MemoryGuard]:
    """One guard per version that runs on a device of its own choosing; others need none.

    Raises:
        ConfigError: a footprint file cannot be used.
    """
    return {
        bundle.version: MemoryGuard(
            max_rows=bundle.backend.max_batch_size,
            footprint=find_footprint(load_footprints(bundle), memory.device),
            cap_gib=memory.cap_gib,
        )
        for bundle in bundles
        if isinstance(bundle.backend, Diffusion)
    }
