"""What was measured of one version on one kind of device; read from beside the bundle."""

import contextlib
import os
import tempfile
from bisect import bisect_left
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import yaml
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from serve.config import Config, load_yaml

FOOTPRINT_FILE = "footprint.yaml"
# A larger batch delays its first member: a gain below this is not worth it.
MIN_BATCH_GAIN = 0.05


class Measurable(Protocol):
    """What has a place for its measurements: a bundle."""

    @property
    def folder(self) -> Path: ...


class Shape(Config):
    """Pictures of one size in one pass."""

    width_px: PositiveInt
    height_px: PositiveInt
    batch: PositiveInt

    @property
    def num_pixels(self) -> int:
        return self.width_px * self.height_px * self.batch


class Peak(Shape):
    """Most device memory that one pass held, weights included."""

    peak_gib: PositiveFloat


class ServiceTime(Config):
    """How long one picture of a batch took."""

    width_px: PositiveInt
    height_px: PositiveInt
    num_steps: PositiveInt
    batch: PositiveInt
    s_per_image: PositiveFloat


class QualityDelta(Config):
    """What a lossy switch cost against the plain run, same inputs and seed."""

    switch: Literal["compile", "cuda_graphs", "fp8", "vae_tiling"]
    psnr_db: float
    """Infinite is written as 99."""
    ssim: float


class Footprint(Config):
    """One version on one kind of device."""

    device: str
    """GPU name, or `cpu`."""
    device_gib: PositiveFloat
    driver: str | None = None
    torch: str
    date: str
    weights_gib: NonNegativeFloat
    adapter_gib: NonNegativeFloat = 0.0
    context_gib: NonNegativeFloat = 0.0
    """What a process holds on the device besides its tensors: CUDA's context and libraries."""
    load_s: NonNegativeFloat
    load_peak_gib: NonNegativeFloat = 0.0
    """Most that loading held: text encoders that are dropped afterwards among it."""
    peaks: tuple[Peak, ...] = ()
    out_of_memory: tuple[Shape, ...] = ()
    """Passes that the device had no room for: the boundary, where it was reached."""
    times: tuple[ServiceTime, ...] = ()
    quality: tuple[QualityDelta, ...] = ()

    def predict_peak_gib(self, width_px: int, height_px: int, batch: int) -> float | None:
        """Memory that a pass needs at most, weights included; None where nothing was measured.

        Between measured passes it is what the next larger one needed. Beyond the largest it grows
        as steeply as it ever did, and a pass as large as one that failed needs the whole device.
        """
        if not self.peaks:
            return None
        num_pixels = width_px * height_px * batch
        fails = any(num_pixels >= shape.num_pixels for shape in self.out_of_memory)
        floor_gib = self.device_gib if fails else 0.0
        points = self._growth()
        at = bisect_left(points, num_pixels, key=lambda point: point[0])
        if at < len(points):
            return max(points[at][1], floor_gib)
        last_pixels, last_gib = points[-1]
        steepest = max(
            (last_gib - gib) / (last_pixels - pixels)
            for pixels, gib in [(0, min(self.weights_gib, points[0][1])), *points[:-1]]
        )
        return max(last_gib + steepest * (num_pixels - last_pixels), floor_gib)

    def _growth(self) -> list[tuple[int, float]]:
        """(pixels, GiB), ascending in both: a larger pass never counts as needing less."""
        highest: dict[int, float] = {}
        for peak in sorted(self.peaks, key=lambda peak: peak.num_pixels):
            so_far = max(highest.values(), default=0.0)
            highest[peak.num_pixels] = max(so_far, peak.peak_gib)
        return list(highest.items())

    def s_per_image(
        self, width_px: int, height_px: int, num_steps: int, batch: int
    ) -> float | None:
        """Seconds for one picture of such a batch; None where nothing was measured.

        As measured where it was; else fitted over sizes and steps of the nearest batch that was.
        """
        if not self.times:
            return None
        below = [time.batch for time in self.times if time.batch <= batch]
        nearest = max(below) if below else min(time.batch for time in self.times)
        times = [time for time in self.times if time.batch == nearest]
        for time in times:
            if (time.width_px, time.height_px, time.num_steps) == (width_px, height_px, num_steps):
                return time.s_per_image
        from scipy.optimize import nnls  # slow to import, and replicas never ask this

        work = [_work(time.width_px, time.height_px, time.num_steps) for time in times]
        seconds = np.array([time.s_per_image for time in times])
        # Divided by the seconds: short passes are to fit as well as long ones.
        costs, _ = nnls(np.array(work) / seconds[:, None], np.ones(len(times)))
        return float(np.dot(costs, _work(width_px, height_px, num_steps)))

    def best_batch(self, width_px: int, height_px: int, num_steps: int, limit: int) -> int:
        """Largest batch whose pictures come at least 5 % cheaper than in any smaller one.

        Taken from the nearest measured size that is at least as large, since larger pictures gain
        less, and the nearest number of steps. 1 when not measured.
        """
        seconds = self._seconds_by_batch(width_px * height_px, num_steps)
        best, cheapest_s = 1, seconds.get(1, 0.0)
        for batch, s_per_image in seconds.items():
            if batch <= limit and s_per_image <= (1 - MIN_BATCH_GAIN) * cheapest_s:
                best = batch
            cheapest_s = min(cheapest_s, s_per_image)
        return best

    def _seconds_by_batch(self, num_pixels: int, num_steps: int) -> dict[int, float]:
        """Ascending in batch; of one measured size and number of steps."""
        larger = [t for t in self.times if t.width_px * t.height_px >= num_pixels]
        if not larger:
            return {}
        like = min(
            larger,
            key=lambda t: (t.width_px * t.height_px, abs(t.num_steps - num_steps), t.num_steps),
        )
        alike = (like.width_px, like.height_px, like.num_steps)
        same = [t for t in larger if (t.width_px, t.height_px, t.num_steps) == alike]
        return {t.batch: t.s_per_image for t in sorted(same, key=lambda t: t.batch)}


def _work(width_px: int, height_px: int, num_steps: int) -> tuple[float, float, float]:
    """What a picture costs by: every step's pixels, the pixels once, and itself."""
    megapixels = width_px * height_px / 1e6
    return num_steps * megapixels, megapixels, 1.0


class FootprintFile(Config):
    """What lies beside a bundle: one footprint per kind of device."""

    footprints: tuple[Footprint, ...] = ()


def flat_footprint_path(folder: Path) -> Path:
    """`eye.1.footprint.yaml`, where there are no folders: in a mounted ConfigMap."""
    return folder.with_name(f"{folder.name}.{FOOTPRINT_FILE}")


def load_footprints(bundle: Measurable) -> tuple[Footprint, ...]:
    """Everything measured of a version; empty when nothing was.

    Raises:
        ConfigError: there is a file, and it cannot be used.
    """
    path = bundle.folder / FOOTPRINT_FILE
    if not path.is_file():
        path = flat_footprint_path(bundle.folder)
    if not path.is_file():
        return ()
    return load_yaml(path, FootprintFile).footprints


def save_footprint(bundle: Measurable, footprint: Footprint) -> Path:
    """Write what was measured in place of what was known of the same device; returns the file.

    A reader sees the old file or the new one, never half of it.
    """
    others = [known for known in load_footprints(bundle) if known.device != footprint.device]
    file = FootprintFile(footprints=(*others, footprint))
    text = yaml.safe_dump(
        file.model_dump(mode="json", exclude_defaults=True),
        sort_keys=False,
        default_flow_style=None,
        width=120,
    )
    path = bundle.folder / FOOTPRINT_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, f"# Measured by `sm4ll profile`; not part of what the bundle pins.\n{text}")
    return path


def _replace(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
        raise


def find_footprint(footprints: tuple[Footprint, ...], device: str) -> Footprint | None:
    """What was measured on this kind of device, if anything was."""
    return next((known for known in footprints if known.device == device), None)
