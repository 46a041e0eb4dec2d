"""Replicas on real pipelines: batches, departures and exhausted memory leave no trace."""

import asyncio
import json
import random
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from deployments.backends.diffusion.cap import (
    GIB,
    cap_device_memory,
    measured_context_gib,
    name_device,
)
from deployments.bundle import Bundle
from deployments.expert import ExpertReplica
from deployments.measured import Footprint, Peak, ServiceTime, save_footprint
from serve.config import ReplicaPlan
from serve.errors import OutOfDeviceMemory
from serve.messages import ExpertReply, ExpertRequest, UInt8Array
from tests.diffusion_requests import HEIGHT_PX, PLAN, WIDTH_PX, request, tiny_bundle
from tests.tiny.klein import build_klein

ROOT = Path(__file__).parents[1]
NUM_STEPS = 4


def four_pay(device: str, context_gib: float = 0.0) -> Footprint:
    shape = {"width_px": WIDTH_PX, "height_px": HEIGHT_PX}
    return Footprint(
        device=device,
        device_gib=16.0,
        torch=torch.__version__,
        date="2026-01-01",
        weights_gib=0.1,
        context_gib=context_gib,
        load_s=0.1,
        peaks=(Peak(**shape, batch=4, peak_gib=1.0),),
        times=tuple(
            ServiceTime(**shape, num_steps=NUM_STEPS, batch=batch, s_per_image=1 / batch)
            for batch in (1, 2, 4)
        ),
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    home = tmp_path_factory.mktemp("home")
    build_klein(home / "klein")
    bundle = tiny_bundle(home)
    save_footprint(bundle, four_pay(name_device()))
    return bundle


@pytest.fixture(scope="module")
def replica(bundle: Bundle) -> ExpertReplica:
    return ExpertReplica((bundle,), PLAN)


def levels_apart(a: UInt8Array, b: UInt8Array) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


async def start_behind_another(
    replica: ExpertReplica, requests: list[ExpertRequest]
) -> list[asyncio.Task[ExpertReply]]:
    """All of them in one batch: they are handed over while another pass runs."""
    first = asyncio.create_task(replica.generate(request(0, request_id="before")))
    while (await replica.progress("before") or (0, 0))[0] == 0:
        await asyncio.to_thread(lambda: None)
    tasks = [asyncio.create_task(replica.generate(asked)) for asked in requests]
    await first
    return tasks


def test_waiting_requests_are_painted_together_as_they_would_be_alone(
    replica: ExpertReplica,
) -> None:
    requests = [request(index) for index in range(3)]

    async def run() -> tuple[list[ExpertReply], list[ExpertReply]]:
        alone = [await replica.generate(asked) for asked in requests]
        return alone, await asyncio.gather(*await start_behind_another(replica, requests))

    alone, together = asyncio.run(run())
    assert [(reply.batch_size, reply.batch_index) for reply in together] == [(3, 0), (3, 1), (3, 2)]
    assert len({reply.batch_id for reply in together}) == 1
    for one, other in zip(alone, together, strict=True):
        assert levels_apart(one.images_nhwc, other.images_nhwc) <= 2


def test_member_that_leaves_changes_no_pixel_of_its_neighbours(replica: ExpertReplica) -> None:
    requests = [request(0), request(1)]

    async def paint(leaves: bool) -> UInt8Array:
        leaver, stayer = await start_behind_another(replica, requests)
        if leaves:
            while (await replica.progress("req_0") or (0, 0))[0] == 0:
                await asyncio.to_thread(lambda: None)
            leaver.cancel()
        reply = await stayer
        assert reply.batch_size == 2
        return reply.images_nhwc

    with_both, with_one = asyncio.run(paint(leaves=False)), asyncio.run(paint(leaves=True))
    assert (with_both == with_one).all()


def test_after_random_departures_from_batches_the_next_picture_is_what_it_was(
    replica: ExpertReplica,
) -> None:
    rng = random.Random(5)

    async def run() -> None:
        expected = (await replica.generate(request(0))).images_nhwc
        for round_index in range(8):
            requests = [replace(request(i), request_id=f"{round_index}-{i}") for i in range(4)]
            tasks = [asyncio.create_task(replica.generate(asked)) for asked in requests]
            last_step = rng.randint(0, NUM_STEPS - 1)
            while (await replica.progress(f"{round_index}-0") or (9, 0))[0] < last_step:
                await asyncio.to_thread(lambda: None)
            for task in rng.sample(tasks, rng.randint(1, 4)):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        again = await replica.generate(request(0))
        assert (again.images_nhwc == expected).all()
        await replica.check_health()

    asyncio.run(run())


def test_without_a_gpu_nothing_is_capped() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert cap_device_memory(0.5) is None


@pytest.mark.parametrize(
    ("num_gpus", "fraction"), [(0.25, 0.2), (0.5, 0.45), (0.0, None), (1.0, None)]
)
def test_share_is_capped_less_what_cuda_takes_of_it(
    monkeypatch: pytest.MonkeyPatch, num_gpus: float, fraction: float | None
) -> None:
    fractions: list[float] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    properties = SimpleNamespace(total_memory=20 * GIB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, device: fractions.append(share)
    )
    cap_gib = cap_device_memory(num_gpus, context_gib=1.0)
    assert cap_gib == (None if fraction is None else pytest.approx(20 * fraction))
    assert fractions == ([] if fraction is None else [pytest.approx(fraction)])


def test_context_is_the_largest_that_was_measured_on_this_device(bundle: Bundle) -> None:
    other = bundle.model_copy(update={"name": "other"}).located(bundle.home)
    assert measured_context_gib([other]) == 0.0
    save_footprint(other, four_pay("NVIDIA H200", context_gib=0.7))
    assert measured_context_gib([other]) == 0.0
    save_footprint(other, four_pay(name_device(), context_gib=0.4))
    assert measured_context_gib([bundle, other]) == 0.4


def serve_within(home: str, share: float, room_mib: int, side_px: int, num_rounds: int) -> None:
    """A process of its own: small requests, each after one that has no room; tells what came."""
    model = {"kind": "inpaint", "speed": {"vae_tiling_above_megapixels": 1e6}}
    bundle = tiny_bundle(Path(home), name="isolated", **model)
    replica = ExpertReplica((bundle,), ReplicaPlan(name="isolated", num_gpus=share))
    small = request(0, version=bundle.version)
    oversized = replace(
        small,
        crop_hwc=np.zeros((side_px, side_px, 3), np.uint8),
        region_hw=np.full((side_px, side_px), 255, np.uint8),
    )

    async def run() -> dict[str, object]:
        expected = (await replica.generate(small)).images_nhwc
        if room_mib:
            _leave_room(room_mib)
        refused, same = [], []
        for _ in range(num_rounds):
            if side_px:
                try:
                    await replica.generate(oversized)
                except OutOfDeviceMemory as exc:
                    refused.append(exc.code)
            same.append(bool(((await replica.generate(small)).images_nhwc == expected).all()))
        await replica.check_health()
        return {"refused": refused, "same": same}

    print(json.dumps(asyncio.run(run())))


def _leave_room(room_mib: int) -> None:
    """From here on this process gets so much more address space, as a small device would."""
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmSize"))
    limit_bytes = int(line.split()[1]) * 1024 + room_mib * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))


def start_process(home: Path, *arguments: float) -> subprocess.Popen[str]:
    call = f"serve_within({str(home)!r}, {', '.join(map(str, arguments))})"
    return subprocess.Popen(
        [sys.executable, "-c", f"from tests.test_expert_device import serve_within; {call}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def told_by(process: subprocess.Popen[str]) -> dict[str, list[object]]:
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    answer: dict[str, list[object]] = json.loads(out)
    return answer


@pytest.mark.skipif(sys.platform != "linux", reason="limits address space by proc(5)")
def test_request_without_room_fails_alone_and_the_next_is_served(bundle: Bundle) -> None:
    answer = told_by(start_process(bundle.home, 0.0, 128, 2048, 2))
    assert answer == {"refused": ["out_of_device_memory"] * 2, "same": [True] * 2}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_replica_without_room_in_its_share_leaves_its_neighbour_serving(bundle: Bundle) -> None:
    device_gib = torch.cuda.get_device_properties(0).total_memory / GIB
    share = 2.0 / device_gib  # of which a crop of 8192 x 8192 needs many times as much
    greedy = start_process(bundle.home, share, 0, 8192, 10)
    neighbour = start_process(bundle.home, share, 0, 0, 40)
    assert told_by(greedy) == {"refused": ["out_of_device_memory"] * 10, "same": [True] * 10}
    assert told_by(neighbour) == {"refused": [], "same": [True] * 40}
