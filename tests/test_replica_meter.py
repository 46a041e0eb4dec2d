"""A replica's utilisation, saturation and errors are what happened in it."""

import asyncio
import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deployments.expert import ExpertReplica
from deployments.gpu_meter import GpuMeter, find_nvml
from deployments.maskers import ClassicalMasker
from deployments.pulse import Pulse
from deployments.replica_meter import ReplicaMeter
from deployments.segmentation import SegmenterReplica
from serve.config import ReplicaPlan, SegmenterConfig, WeightsConfig
from serve.errors import GenerationFailed, SubjectNotFound
from serve.messages import SegmentRequest
from serve.observing.meter import MemoryMeter
from serve.telemetry import METRICS
from tests.pictures import photo
from tests.scripted import WAIT_S, ScriptedBackend, make_request
from tests.test_expert import BUNDLE

TOP = (("version", "top@noop"),)
BUSY = "sm4ll_replica_busy_seconds_total"


class Clock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def replica() -> Iterator[tuple[ExpertReplica, ScriptedBackend, MemoryMeter]]:
    meter, backend = MemoryMeter(), ScriptedBackend()
    plan = ReplicaPlan(name="Expert-top@noop", num_gpus=0.25)
    yield (
        ExpertReplica((BUNDLE,), plan, lambda bundles, plan: backend, lambda: meter),
        backend,
        meter,
    )
    gc.collect()  # its thread of looks ends here


def wait_for(is_so: Callable[[], bool]) -> None:
    tick = threading.Event()
    for _ in range(int(WAIT_S / 0.005)):
        if is_so():
            return
        tick.wait(0.005)
    raise AssertionError("it never came to be")


def test_a_long_pass_is_busy_all_along_and_an_idle_replica_is_not() -> None:
    clock, meter = Clock(), MemoryMeter()
    replica = ReplicaMeter(meter, ["top@noop"], clock)
    clock.now_s += 30
    replica.look()
    assert meter.total(BUSY) == 0
    with replica.running("top@noop", [0.5], 1) as running:
        clock.now_s += 20
        replica.look()
        assert meter.total(BUSY) == 20
        clock.now_s += 4
        running.stepped()
        assert meter.total(BUSY) == 24
        clock.now_s += 1
        running.stepped()
        clock.now_s += 2
    clock.now_s += 50
    replica.look()
    assert meter.total(BUSY, version="top@noop") == 27
    assert meter.histograms["sm4ll_step_duration_seconds", TOP] == [24, 1]
    assert meter.histograms["sm4ll_pass_duration_seconds", TOP] == [27]
    assert meter.histograms["sm4ll_batch_wait_seconds", TOP] == [0.5]


def test_a_pass_that_is_stopped_was_busy_and_has_no_duration() -> None:
    clock, meter = Clock(), MemoryMeter()
    replica = ReplicaMeter(meter, ["top@noop"], clock)
    with contextlib.suppress(GenerationFailed), replica.running("top@noop", [], 3):
        clock.now_s += 7
        raise GenerationFailed("in the middle of it")
    clock.now_s += 7
    replica.look()
    assert meter.total(BUSY) == 7
    assert meter.histograms["sm4ll_batch_size", TOP] == [3]
    assert ("sm4ll_pass_duration_seconds", TOP) not in meter.histograms


def test_what_a_replica_has_is_parted_between_the_versions_on_it() -> None:
    meter = MemoryMeter()
    replica = ReplicaMeter(meter, ["eye@1", "shoes@1"])
    replica.started(12.5, num_gpus=0.5)
    replica.holds(1000)
    for version in ("eye@1", "shoes@1"):
        labels = (("version", version),)
        assert meter.gauges["sm4ll_replica_gpu_share_ratio", labels] == 0.25
        assert meter.gauges["sm4ll_replica_gpu_memory_bytes", labels] == 500
        assert meter.gauges["sm4ll_replica_start_seconds", labels] == 12.5
        assert meter.gauges["sm4ll_replica_queue_depth", labels] == 0


def test_a_replica_counts_what_waits_what_runs_and_what_fails(
    replica: tuple[ExpertReplica, ScriptedBackend, MemoryMeter],
) -> None:
    expert, backend, meter = replica

    def depth() -> float:
        return meter.gauges["sm4ll_replica_queue_depth", TOP]

    async def ask() -> None:
        first, second, leaving = (
            asyncio.create_task(expert.generate(make_request(name))) for name in "abc"
        )
        await asyncio.to_thread(backend.next_pass)
        assert depth() == 2
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        await asyncio.to_thread(wait_for, lambda: depth() == 1)
        backend.tell("step", "step", "finish")
        await first
        await asyncio.to_thread(backend.next_pass)
        assert depth() == 0
        backend.tell(SubjectNotFound("nobody"))
        with pytest.raises(SubjectNotFound):
            await second

    asyncio.run(ask())
    assert len(meter.histograms["sm4ll_batch_wait_seconds", TOP]) == 2
    assert len(meter.histograms["sm4ll_step_duration_seconds", TOP]) == 2
    assert len(meter.histograms["sm4ll_pass_duration_seconds", TOP]) == 1
    assert meter.histograms["sm4ll_batch_size", TOP] == [1, 1]
    assert meter.total(BUSY, version="top@noop") > 0
    # Who left has not failed.
    assert meter.total("sm4ll_replica_errors_total") == 1
    assert meter.total("sm4ll_replica_errors_total", code="subject_not_found") == 1


def test_a_replica_that_started_says_what_it_has(
    replica: tuple[ExpertReplica, ScriptedBackend, MemoryMeter],
) -> None:
    _, _, meter = replica
    wait_for(lambda: ("sm4ll_replica_gpu_memory_bytes", TOP) in meter.gauges)
    assert meter.gauges["sm4ll_replica_gpu_memory_bytes", TOP] == 0
    assert meter.gauges["sm4ll_replica_memory_bytes", ()] > 2**20
    assert meter.gauges["sm4ll_replica_gpu_share_ratio", TOP] == 0.25
    assert meter.gauges["sm4ll_replica_start_seconds", TOP] > 0


def test_one_look_that_fails_keeps_no_other_from_looking(caplog: Any) -> None:
    looked = threading.Semaphore(0)

    def fail() -> None:
        raise OSError("no such thing")

    pulse = Pulse([fail, looked.release], period_s=0.001)
    assert all(looked.acquire(timeout=WAIT_S) for _ in range(3))
    pulse.close()
    assert len([one for one in caplog.records if "not measured" in one.message]) == 1


def test_a_segmenter_counts_what_it_was_asked() -> None:
    meter = MemoryMeter()
    replica = SegmenterReplica(
        SegmenterConfig(), ClassicalMasker(), Path(), WeightsConfig(), lambda: meter
    )
    request = SegmentRequest(photo(64, 64), "bg", "a")

    async def batched(request: SegmentRequest) -> Any:  # Serve's own needs a cluster
        return replica._segment_batch([request])[0]

    replica._batched = batched
    for _ in range(2):
        with contextlib.suppress(SubjectNotFound):
            asyncio.run(replica.segment(request))
    masker = (("masker", "classical"),)
    assert meter.histograms["sm4ll_segment_batch_size", masker] == [1, 1]
    assert len(meter.histograms["sm4ll_segment_duration_seconds", masker]) == 2
    outcomes = ("hit", "miss")
    look_ups = [meter.total("sm4ll_cache_requests_total", outcome=one) for one in outcomes]
    assert look_ups == [1, 1]
    assert meter.gauges["sm4ll_cache_bytes", (("cache", "analyses"),)] > 0
    wait_for(lambda: ("sm4ll_replica_memory_bytes", ()) in meter.gauges)
    replica.__del__()


class NvmlError(Exception):
    pass


class FakeNvml:
    """Two GPUs, the second of which says nothing of its use, as a slice of one does not."""

    NVMLError: type[Exception] = NvmlError

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int, /) -> int:
        if index > 1:
            raise NvmlError("Not Found")
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str, /) -> int:
        return self.nvmlDeviceGetHandleByIndex(int(uuid.removeprefix("GPU-")))

    def nvmlDeviceGetUUID(self, handle: int, /) -> str:
        return f"GPU-{handle}"

    def nvmlDeviceGetMemoryInfo(self, handle: int, /) -> Any:
        return SimpleNamespace(used=10 + handle, total=80)

    def nvmlDeviceGetUtilizationRates(self, handle: int, /) -> Any:
        if handle == 1:
            raise NvmlError("Not Supported")
        return SimpleNamespace(gpu=40)


@pytest.mark.parametrize(
    ("visible", "seen"),
    [
        (None, {"GPU-0", "GPU-1"}),
        ("1", {"GPU-1"}),
        ("GPU-0, GPU-1", {"GPU-0", "GPU-1"}),
        ("0,7", {"GPU-0"}),
        ("", set()),
    ],
)
def test_only_gpus_that_the_replica_sees_are_measured(visible: str | None, seen: set[str]) -> None:
    meter = MemoryMeter()
    GpuMeter(meter, FakeNvml(), visible).look()
    used = {
        dict(labels)["gpu"]: value
        for (name, labels), value in meter.gauges.items()
        if name == "sm4ll_gpu_memory_used_bytes"
    }
    assert used == {uuid: 10 + int(uuid[-1]) for uuid in seen}
    rate = meter.gauges.get(("sm4ll_gpu_utilization_ratio", (("gpu", "GPU-0"),)))
    assert rate == (0.4 if "GPU-0" in seen else None)


def test_without_a_driver_nothing_is_measured_of_gpus() -> None:
    nvml, meter = find_nvml(), MemoryMeter()
    GpuMeter(meter, nvml, None).look()
    assert (nvml is None) == (not meter.gauges)
    assert {name for name, _ in meter.gauges} <= METRICS.keys()
