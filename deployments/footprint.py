"""Measures what a version holds and how long it takes, on the device of this process.

Knows backends by their protocol only; what they are given is noise of the right shape.
"""

import contextlib
import datetime as dt
import gc
import os
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from deployments.backends.base import Backend
from deployments.bundle import Bundle, Size
from deployments.measured import Footprint, Peak, ServiceTime, Shape
from serve.errors import OutOfDeviceMemory
from serve.messages import ExpertRequest, Landmarks, UInt8Array

GIB = 2**30
NUM_REPEATS = 3
# Pages that a pass shares with what ran before it can leave nothing to see.
LEAST_GIB = 2**-10
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")

OnPoint = Callable[[Shape, int], None]
"""Told the shape that is measured next, and how many are left with it."""


class Device(Protocol):
    """Whose memory is looked at."""

    name: str
    gib: float
    driver: str | None
    torch: str

    def forget_peak(self) -> None:
        """From here on only what comes counts."""

    def peak_gib(self) -> float:
        """Most that was held since, everything of this process' work included."""

    def context_gib(self) -> float:
        """What the process holds there besides its tensors."""

    def finish(self) -> None:
        """Wait until nothing runs there any more."""


@dataclass(frozen=True, slots=True)
class Shapes:
    """What is measured: every size with every batch, each with every number of steps."""

    sizes: tuple[Size, ...]
    batches: tuple[int, ...]
    steps: tuple[int, ...]

    def ascending(self) -> Iterator[tuple[Size, int]]:
        for size in sorted(self.sizes, key=lambda size: size[0] * size[1]):
            for batch in sorted(self.batches):
                yield size, batch


def measure(
    create: Callable[[], Backend],
    bundle: Bundle,
    shapes: Shapes,
    device: Device,
    on_point: OnPoint = lambda shape, num_left: None,
) -> Footprint:
    """Load a version, let it paint, and note memory and time.

    A size's batches are raised until one has no room; that one is noted as the boundary.

    Raises:
        OutOfDeviceMemory: not even the weights, or not one picture of the smallest size, fit.
        BundleInvalid: the version does not load.
    """
    backend = create()
    try:
        device.forget_peak()
        started_s = time.perf_counter()
        backend.load()
        device.finish()
        load_s = time.perf_counter() - started_s
        load_peak_gib = device.peak_gib()
        memory = backend.memory()
        points = _Points(backend, bundle, shapes, device)
        points.measure(on_point)
        return Footprint(
            device=device.name,
            device_gib=round(device.gib, 3),
            driver=device.driver,
            torch=device.torch,
            date=dt.datetime.now(dt.UTC).date().isoformat(),
            weights_gib=_rounded(memory.weights_bytes / GIB),
            adapter_gib=_rounded(memory.adapter_bytes.get(bundle.version, 0) / GIB),
            context_gib=_rounded(device.context_gib()),
            load_s=round(load_s, 3),
            load_peak_gib=_rounded(load_peak_gib),
            peaks=tuple(points.peaks),
            out_of_memory=tuple(points.out_of_memory),
            times=tuple(points.times),
        )
    finally:
        backend.unload()


def _rounded(gib: float) -> float:
    """To a KiB."""
    return round(gib, 6)


class _Points:
    """Measures one loaded backend, shape by shape."""

    def __init__(self, backend: Backend, bundle: Bundle, shapes: Shapes, device: Device):
        self._backend, self._bundle = backend, bundle
        self._shapes, self._device = shapes, device
        self._seed = 0
        self.peaks: list[Peak] = []
        self.out_of_memory: list[Shape] = []
        self.times: list[ServiceTime] = []

    def measure(self, on_point: OnPoint) -> None:
        todo = list(self._shapes.ascending())
        for at, ((width_px, height_px), batch) in enumerate(todo):
            shape = Shape(width_px=width_px, height_px=height_px, batch=batch)
            on_point(shape, len(todo) - at)
            if any(_contains(shape, failed) for failed in self.out_of_memory):
                continue
            try:
                self._measure_shape(shape)
            except OutOfDeviceMemory as exc:
                if not self.peaks:
                    raise OutOfDeviceMemory(
                        f"{self._bundle.version}: not even {batch} x {width_px}x{height_px} fits "
                        f"{self._device.name} ({self._device.gib:.1f} GiB): {exc.detail}",
                        remedy="a larger device, a smaller size, or speed.fp8 in the bundle",
                    ) from exc
                self.out_of_memory.append(shape)

    def _measure_shape(self, shape: Shape) -> None:
        self._device.forget_peak()
        # The first pass of a shape compiles and allocates; it counts for memory, not for time.
        self._run(shape, min(self._shapes.steps))
        times = [self._time(shape, num_steps) for num_steps in sorted(self._shapes.steps)]
        held_gib = self._backend.memory().weights_bytes / GIB
        peak_gib = _rounded(max(self._device.peak_gib(), held_gib, LEAST_GIB))
        self.peaks.append(Peak(**shape.model_dump(), peak_gib=peak_gib))
        self.times += times

    def _time(self, shape: Shape, num_steps: int) -> ServiceTime:
        seconds = [self._run(shape, num_steps) for _ in range(NUM_REPEATS)]
        s_per_image = round(statistics.median(seconds) / shape.batch, 6)
        return ServiceTime(**shape.model_dump(), num_steps=num_steps, s_per_image=s_per_image)

    def _run(self, shape: Shape, num_steps: int) -> float:
        """Seconds of one pass over pictures and products never seen before."""
        requests = []
        for _ in range(shape.batch):
            self._seed += 1
            size = shape.width_px, shape.height_px
            requests.append(build_request(self._bundle, size, num_steps, self._seed))
        started_s = time.perf_counter()
        self._backend.generate(requests, lambda step, num_steps: None)
        self._device.finish()
        return time.perf_counter() - started_s


def _contains(shape: Shape, other: Shape) -> bool:
    return (
        shape.width_px >= other.width_px
        and shape.height_px >= other.height_px
        and shape.batch >= other.batch
    )


def build_request(bundle: Bundle, size: Size, num_steps: int, seed: int) -> ExpertRequest:
    """One picture to paint, as the pipeline would ask for it; the same seed gives the same."""
    rng = np.random.default_rng(seed)
    width_px, height_px = size
    region_hw = np.zeros((height_px, width_px), np.uint8)
    region_hw[height_px // 5 : -height_px // 5, width_px // 5 : -width_px // 5] = 255
    canvas = bundle.product.canvas
    product_size = canvas.size if canvas else (bundle.product.max_side_px,) * 2
    product_rgba = np.dstack([_noise(rng, product_size), np.full(product_size[::-1], 255)])
    return ExpertRequest(
        request_id=f"profile-{seed}",
        version=bundle.version,
        crop_hwc=_noise(rng, size),
        region_hw=region_hw,
        silhouette_hw=None,
        landmarks=Landmarks(),
        product_hwc=product_rgba.astype(np.uint8),
        product_landmarks=Landmarks(),
        seed=seed,
        num_steps=num_steps,
        guidance=bundle.guidance,
    )


def _noise(rng: np.random.Generator, size: Size) -> UInt8Array:
    """Soft blobs of colour: nearer to photographs than white noise."""
    coarse = rng.integers(0, 256, (16, 16, 3), np.uint8)
    return np.asarray(cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC), np.uint8)


def open_device() -> Device:
    """The GPU that torch sees first, or the CPU."""
    before_gib = used_gib_by_uuid()
    with contextlib.suppress(ImportError):
        import torch  # versions without weights are measured without it

        if torch.cuda.is_available():
            return CudaDevice(before_gib)
    return CpuDevice()


class CpuDevice:
    """Resident memory of this process above what it held when it was opened.

    Open it before weights are loaded. Where the kernel does not let the peak be forgotten, it is
    the highest ever, so later shapes may be given too much, never too little.
    """

    name = "cpu"
    driver: str | None = None

    def __init__(self) -> None:
        gc.collect()
        self.gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
        self.torch = _version_of("torch")
        self._before_gib = _status_gib("VmRSS") or _max_rss_gib()

    def forget_peak(self) -> None:
        with contextlib.suppress(OSError):
            CLEAR_REFS.write_text("5")  # proc(5): resets VmHWM to the present size

    def peak_gib(self) -> float:
        return max(0.0, (_status_gib("VmHWM") or _max_rss_gib()) - self._before_gib)

    def context_gib(self) -> float:
        return 0.0

    def finish(self) -> None:
        """What was asked of a CPU is done when the call returns."""


def _status_gib(field: str) -> float | None:
    """A line of proc(5)'s status; None where the system has none."""
    with contextlib.suppress(OSError):
        for line in STATUS.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024 / GIB
    return None


def _max_rss_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


class CudaDevice:
    """What torch's allocator reserved: that is what a cap on the process limits."""

    def __init__(self, used_before_gib: Mapping[str, tuple[float, str]]) -> None:
        import torch

        self._cuda = torch.cuda
        properties = torch.cuda.get_device_properties(0)
        self.name: str = properties.name
        self.gib: float = properties.total_memory / GIB
        self.torch: str = torch.__version__
        before = used_before_gib.get(f"GPU-{getattr(properties, 'uuid', '')}")
        self._before_gib = before[0] if before else 0.0
        self.driver: str | None = before[1] if before else None

    def forget_peak(self) -> None:
        gc.collect()
        self._cuda.synchronize()
        self._cuda.empty_cache()
        self._cuda.reset_peak_memory_stats()

    def peak_gib(self) -> float:
        peak_bytes: int = self._cuda.max_memory_reserved()
        return peak_bytes / GIB

    def context_gib(self) -> float:
        free_bytes, total_bytes = self._cuda.mem_get_info()
        ours_gib: float = (total_bytes - free_bytes) / GIB - self._before_gib
        tensors_gib: float = self._cuda.memory_reserved() / GIB
        return max(0.0, ours_gib - tensors_gib)

    def finish(self) -> None:
        self._cuda.synchronize()


def used_gib_by_uuid() -> Mapping[str, tuple[float, str]]:
    """GiB that others hold, and the driver, by GPU; asked before torch makes a context of ours."""
    query = "--query-gpu=uuid,memory.used,driver_version"
    try:
        answer = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    used: dict[str, tuple[float, str]] = {}
    for line in answer.stdout.strip().splitlines():
        uuid, used_mib, driver = line.split(", ")
        # What a driver does not tell, it writes as [N/A].
        with contextlib.suppress(ValueError):
            used[uuid] = (float(used_mib) / 1024, driver)
    return used


def _version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"
