"""What `sm4ll profile` writes was seen on a backend that really ran."""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from deployments.backends.base import Memory, OnStep
from deployments.backends.noop import NoopBackend
from deployments.backends.registry import create_backend
from deployments.bundle import Bundle
from deployments.footprint import (
    GIB,
    CpuDevice,
    Shapes,
    build_request,
    measure,
    open_device,
    used_gib_by_uuid,
)
from deployments.measured import Footprint, load_footprints, save_footprint
from serve.errors import OutOfDeviceMemory
from serve.messages import ExpertReply, ExpertRequest
from tests.diffusion_requests import PLAN, tiny_bundle
from tests.tiny.klein import build_klein

MIB = 2**20


class HungryBackend(NoopBackend):
    """Holds a block per megapixel while it paints, and has room for so many."""

    def __init__(self, max_megapixels: float = 100.0, block_bytes: int = 64 * MIB):
        super().__init__("eye@tiny")
        self._max_megapixels = max_megapixels
        self._block_bytes = block_bytes
        self.asked: list[ExpertRequest] = []
        self.calls: list[str] = []

    def load(self) -> None:
        self.calls.append("load")
        encoders = np.ones(self._block_bytes, np.uint8)
        assert encoders[-1] == 1

    def unload(self) -> None:
        self.calls.append("unload")

    def memory(self) -> Memory:
        return Memory(3 * MIB, {"eye@tiny": 2 * MIB})

    def generate(self, batch: Sequence[ExpertRequest], on_step: OnStep) -> list[ExpertReply]:
        self.asked += batch
        megapixels = sum(request.region_hw.size for request in batch) / MIB
        if megapixels > self._max_megapixels:
            raise OutOfDeviceMemory(f"no room for {megapixels:.2f} megapixels")
        block = np.ones(int(megapixels * self._block_bytes), np.uint8)
        assert block[-1] == 1
        return super().generate(batch, on_step)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    home = tmp_path_factory.mktemp("bundle")
    build_klein(home / "klein")
    return tiny_bundle(home)


def shapes(*batches: int) -> Shapes:
    return Shapes(sizes=((512, 512), (256, 256)), batches=batches, steps=(1, 2))


def test_every_size_batch_and_step_is_measured_on_pictures_never_seen_before(
    bundle: Bundle,
) -> None:
    backend = HungryBackend(block_bytes=MIB)
    seen = []
    footprint = measure(
        lambda: backend, bundle, shapes(2, 1), CpuDevice(), lambda shape, left: seen.append(left)
    )
    assert [(p.width_px, p.batch) for p in footprint.peaks] == [
        (256, 1),
        (256, 2),
        (512, 1),
        (512, 2),
    ]
    assert len(footprint.times) == 8
    assert {time.num_steps for time in footprint.times} == {1, 2}
    products = {request.product_hwc.tobytes() for request in backend.asked}
    assert len(products) == len(backend.asked)
    assert seen == [4, 3, 2, 1]
    assert backend.calls == ["load", "unload"]
    assert footprint.weights_gib == pytest.approx(3 * MIB / GIB, abs=1e-5)
    assert footprint.adapter_gib == pytest.approx(2 * MIB / GIB, abs=1e-5)


def measure_hungry(bundle: Bundle) -> Footprint:
    return measure(HungryBackend, bundle, shapes(1, 4), CpuDevice())


def test_peak_memory_of_a_pass_is_seen_on_the_cpu(bundle: Bundle) -> None:
    # In a process of its own, as `sm4ll profile` is: this one has memory to reuse from other tests.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        footprint = process.submit(measure_hungry, bundle).result()
    peaks = {(p.width_px, p.batch): p.peak_gib for p in footprint.peaks}
    assert footprint.device == "cpu"
    assert footprint.load_peak_gib >= 60 * MIB / GIB, "what load holds and drops counts"
    assert peaks[512, 4] >= 60 * MIB / GIB
    assert peaks[512, 4] - peaks[512, 1] >= 40 * MIB / GIB


def test_the_batch_that_has_no_room_is_the_boundary(bundle: Bundle) -> None:
    backend = HungryBackend(max_megapixels=0.6, block_bytes=MIB)
    footprint = measure(lambda: backend, bundle, shapes(1, 2, 4, 8), CpuDevice())
    assert [(p.width_px, p.batch) for p in footprint.peaks if p.width_px == 512] == [
        (512, 1),
        (512, 2),
    ]
    assert [(s.width_px, s.batch) for s in footprint.out_of_memory] == [(512, 4)]
    assert max(request.region_hw.size for request in backend.asked) == 512**2
    assert backend.calls[-1] == "unload"


def test_a_version_that_fits_nowhere_is_said_in_words(bundle: Bundle) -> None:
    backend = HungryBackend(max_megapixels=0.01)
    with pytest.raises(OutOfDeviceMemory, match=r"eye@tiny: not even 1 x 256x256 fits cpu"):
        measure(lambda: backend, bundle, shapes(1), CpuDevice())
    assert backend.calls == ["load", "unload"]


def test_requests_have_the_shape_that_the_pipeline_sends(bundle: Bundle) -> None:
    request = build_request(bundle, (128, 192), 4, seed=7)
    assert request.crop_hwc.shape == (192, 128, 3)
    assert request.region_hw.shape == (192, 128)
    assert set(np.unique(request.region_hw)) == {0, 255}
    assert request.product_hwc.shape == (96, 96, 4)
    assert request.version == bundle.version
    again = build_request(bundle, (128, 192), 4, seed=7)
    assert np.array_equal(request.crop_hwc, again.crop_hwc)


def test_a_real_pipeline_is_profiled_and_its_footprint_packed_by(bundle: Bundle) -> None:
    device = open_device()
    wanted = Shapes(sizes=((128, 192),), batches=(1, 2), steps=(1, 4))
    footprint = measure(lambda: create_backend((bundle,), PLAN), bundle, wanted, device)
    save_footprint(bundle, footprint)
    assert load_footprints(bundle) == (footprint,)
    assert footprint.weights_gib > 0
    assert footprint.torch.startswith("2.")
    assert {(time.batch, time.num_steps) for time in footprint.times} == {
        (batch, num_steps) for batch in (1, 2) for num_steps in (1, 4)
    }
    peak_gib = footprint.predict_peak_gib(128, 192, 2)
    assert peak_gib is not None
    assert peak_gib > footprint.weights_gib


def test_without_a_gpu_the_cpu_is_measured() -> None:
    torch = pytest.importorskip("torch")
    device = open_device()
    assert (device.name == "cpu") == (not torch.cuda.is_available())
    assert device.gib > 0


def test_memory_of_others_and_the_driver_are_asked_of_nvidia_smi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    lines = "GPU-0a, 2048, 580.65.06\nGPU-0b, [N/A], 580.65.06\n"
    tool.write_text(f"#!/bin/sh\nprintf '{lines}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert used_gib_by_uuid() == {"GPU-0a": (2.0, "580.65.06")}
    tool.write_text("#!/bin/sh\necho no driver here\nexit 9\n")
    assert used_gib_by_uuid() == {}
    tool.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert used_gib_by_uuid() == {}
