"""One engine for every diffusers pipeline, shown on a tiny FLUX.2 klein with real classes."""

import asyncio
import io
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from starlette.testclient import TestClient

from deployments.backends.diffusion.backend import DiffusionBackend
from deployments.backends.diffusion.passes import Steps
from deployments.expert import ExpertReplica
from serve.errors import Cancelled, GenerationFailed, OutOfDeviceMemory
from serve.messages import UInt8Array
from tests.diffusion_requests import (
    HEIGHT_PX,
    KLEIN,
    PLAN,
    WIDTH_PX,
    counting,
    loaded,
    paint,
    picture,
    pipe_of,
    product,
    request,
    stop_at,
    tiny_bundle,
)
from tests.fakes import build_local_api
from tests.pictures import box_mask, encoded, photo
from tests.rows import Stop, levels_apart
from tests.tiny.klein import build_klein

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for bundles with the pipeline beside them."""
    folder = tmp_path_factory.mktemp("home")
    build_klein(folder / "klein")
    return folder


@pytest.fixture(scope="module")
def backend(home: Path) -> DiffusionBackend:
    return loaded(tiny_bundle(home))


# What it paints


def test_reply_has_the_crops_size_and_paints_it(backend: DiffusionBackend) -> None:
    (reply,) = paint(backend, request(num_images=2))
    assert reply.images_nhwc.shape == (2, HEIGHT_PX, WIDTH_PX, 3)
    assert reply.images_nhwc.dtype == np.uint8
    assert reply.alpha_nhw is None
    assert reply.version == "eye@tiny"
    assert reply.generate_ms > 0
    assert levels_apart(reply.images_nhwc[0], request().crop_hwc) > 50


def test_same_seed_same_bytes_other_seed_others(backend: DiffusionBackend) -> None:
    first = picture(backend, request())
    assert (picture(backend, request()) == first).all()
    assert levels_apart(picture(backend, request(seed=8)), first) > 5


def test_product_and_person_decide_the_picture(backend: DiffusionBackend) -> None:
    first = picture(backend, request())
    assert levels_apart(picture(backend, request(product_hwc=product(3))), first) > 5
    other = photo(WIDTH_PX, HEIGHT_PX, seed=3)
    assert levels_apart(picture(backend, request(crop_hwc=other)), first) > 5


def test_image_i_is_the_single_request_with_seed_plus_i(backend: DiffusionBackend) -> None:
    images = picture(backend, request(num_images=3))
    seeds = [request(seed=request().seed + index) for index in range(3)]
    assert (picture(backend, *seeds) == images).all()


def test_batch_of_four_equals_four_singles(backend: DiffusionBackend) -> None:
    batch = [request(index) for index in range(4)]
    together = picture(backend, *batch)
    alone = np.concatenate([picture(backend, single) for single in batch])
    assert levels_apart(together, alone) <= 1
    assert levels_apart(together[0], together[1]) > 5


def test_batch_membership_is_in_the_replies(backend: DiffusionBackend) -> None:
    replies = paint(backend, request(0), request(1, num_images=2))
    assert [(reply.batch_size, reply.batch_index) for reply in replies] == [(2, 0), (2, 1)]
    assert [len(reply.images_nhwc) for reply in replies] == [1, 2]


def test_more_rows_than_the_bundle_allows_take_several_passes(home: Path) -> None:
    backend = loaded(tiny_bundle(home, max_batch_size=2))
    seen: list[tuple[int, int]] = []
    with counting(pipe_of(backend).transformer) as calls:
        (reply,) = backend.generate(
            [request(num_images=3)], lambda step, num_steps: seen.append((step, num_steps))
        )
    assert len(calls) == 8
    assert seen == [(step, 8) for step in range(1, 9)]
    third = picture(backend, request(seed=request().seed + 2))
    assert (reply.images_nhwc[2] == third[0]).all()


def test_below_strength_one_the_steps_that_are_left_are_reported(home: Path) -> None:
    backend = loaded(tiny_bundle(home, recipe={**KLEIN, "strength": 0.5}))
    seen: list[tuple[int, int]] = []
    backend.generate([request()], lambda step, num_steps: seen.append((step, num_steps)))
    assert seen == [(1, 2), (2, 2)]


def test_clear_parts_of_a_product_are_the_canvas_ground(backend: DiffusionBackend) -> None:
    clear = product()
    clear[:20, :, 3] = 0
    clear[:20, :, :3] = 77
    assert (picture(backend, request(product_hwc=clear)) == picture(backend, request())).all()


def test_bf16_paints_on_a_cpu_too(home: Path, backend: DiffusionBackend) -> None:
    half = loaded(tiny_bundle(home, dtype="bf16"))
    assert pipe_of(half).transformer.dtype is torch.bfloat16
    assert half.memory().weights_bytes < 0.6 * backend.memory().weights_bytes
    first = picture(half, request())
    assert (picture(half, request()) == first).all()
    difference = first.astype(float) - picture(backend, request())
    assert 0 < np.abs(difference).mean() < 8


def test_mixed_batch_is_refused(backend: DiffusionBackend) -> None:
    with pytest.raises(GenerationFailed, match="must agree"):
        paint(backend, request(), request(num_steps=2))


def test_version_of_another_replica_is_refused(backend: DiffusionBackend) -> None:
    with pytest.raises(GenerationFailed, match="eye@other is not here, only eye@tiny"):
        paint(backend, request(version="eye@other"))


# What stops it


def fresh_process(home: Path, out: Path) -> UInt8Array:
    """The picture of `request()` in a process that did nothing before."""
    command = [sys.executable, "-m", "tests.diffusion_requests", str(home), str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    images: UInt8Array = np.load(out)
    return images


def test_after_200_cancels_the_output_is_a_fresh_processes(
    home: Path, backend: DiffusionBackend, tmp_path: Path
) -> None:
    rng, small = random.Random(0), photo(64, 64)
    for index in range(200):
        num_steps = rng.randint(1, 6)
        stopped = request(
            crop_hwc=small,
            region_hw=np.full((64, 64), 255, np.uint8),
            seed=index,
            num_steps=num_steps,
            num_images=rng.randint(1, 2),
        )
        with pytest.raises(Stop):
            backend.generate([stopped], stop_at(rng.randint(1, num_steps)))
    assert (picture(backend, request()) == fresh_process(home, tmp_path / "out.npy")).all()


def test_no_step_is_taken_after_the_stop(backend: DiffusionBackend) -> None:
    with counting(pipe_of(backend).transformer) as calls, pytest.raises(Stop):
        backend.generate([request()], stop_at(2))
    assert len(calls) == 2


@pytest.mark.parametrize("error", [Cancelled("left"), RuntimeError("out of memory"), SystemExit()])
def test_what_on_step_raises_passes_unchanged(
    backend: DiffusionBackend, error: BaseException
) -> None:
    with pytest.raises(type(error)) as caught:
        backend.generate([request()], stop_at(1, error))
    assert caught.value is error


def test_passes_that_interleave_after_a_stop_share_no_state(backend: DiffusionBackend) -> None:
    outer, inner = request(0), request(1, num_steps=3)
    expected = picture(backend, outer), picture(backend, inner)
    with pytest.raises(Stop):
        backend.generate([outer], stop_at(3))
    within: list[UInt8Array] = []

    def paint_another(step: int, num_steps: int) -> None:
        if step == 2:
            with pytest.raises(Stop):
                backend.generate([inner], stop_at(1))
            within.append(picture(backend, inner))

    (reply,) = backend.generate([outer], paint_another)
    assert (reply.images_nhwc == expected[0]).all()
    assert (within[0] == expected[1]).all()


def test_pass_leaves_the_pipelines_own_scheduler_untouched(backend: DiffusionBackend) -> None:
    scheduler = pipe_of(backend).scheduler
    before = dict(vars(scheduler))
    with pytest.raises(Stop):
        backend.generate([request()], stop_at(2))
    paint(backend, request())
    assert pipe_of(backend).scheduler is scheduler
    after = vars(scheduler)
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)


@contextmanager
def failing(module: torch.nn.Module, error: Exception) -> Iterator[None]:
    def fail(*_: object) -> None:
        raise error

    hook = module.register_forward_pre_hook(fail)
    yield
    hook.remove()


@pytest.mark.parametrize(
    ("part", "error", "mapped"),
    [
        ("vae.encoder", torch.OutOfMemoryError("Tried to allocate"), OutOfDeviceMemory),
        ("transformer", torch.OutOfMemoryError("Tried to allocate"), OutOfDeviceMemory),
        ("vae.decoder", RuntimeError("CUDA error: out of memory"), OutOfDeviceMemory),
        ("transformer", RuntimeError("shapes cannot be multiplied"), GenerationFailed),
    ],
)
def test_device_error_is_typed_and_the_next_request_is_served(
    backend: DiffusionBackend, part: str, error: Exception, mapped: type[Exception]
) -> None:
    expected = picture(backend, request())
    component, _, inner = part.partition(".")
    with failing(getattr(pipe_of(backend), component).get_submodule(inner), error):
        with pytest.raises(mapped, match=str(error)):
            paint(backend, request(5))
    assert (picture(backend, request()) == expected).all()


def test_vae_that_a_failed_decode_left_in_another_format_is_set_back(
    backend: DiffusionBackend,
) -> None:
    expected, vae = picture(backend, request()), pipe_of(backend).vae

    def upcast_and_fail(*_: object) -> None:
        vae.to(torch.float64)  # as SDXL's pipeline does before it decodes in fp16
        raise torch.OutOfMemoryError("Tried to allocate")

    hook = vae.decoder.register_forward_pre_hook(upcast_and_fail)
    with pytest.raises(OutOfDeviceMemory):
        paint(backend, request())
    hook.remove()
    assert (picture(backend, request()) == expected).all()


def test_every_step_is_done_before_it_is_reported() -> None:
    seen: list[str] = []
    steps = Steps(
        lambda step, num_steps: seen.append(f"{step} of {num_steps}"),
        wait=lambda: seen.append("done"),
        num_passes=2,
    )
    pipe = SimpleNamespace(num_timesteps=2)
    for index in range(2):
        on_step_end = steps.in_pass(index)
        for step in range(2):
            assert on_step_end(pipe, step, None, {"latents": 1}) == {"latents": 1}
    assert seen == ["done", "1 of 4", "done", "2 of 4", "done", "3 of 4", "done", "4 of 4"]


# Through the product


def test_replica_stops_a_request_whose_caller_left_and_serves_the_next(home: Path) -> None:
    replica = ExpertReplica((tiny_bundle(home),), PLAN)

    async def leave_then_ask() -> UInt8Array:
        task = asyncio.create_task(replica.generate(request(num_steps=500)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return (await replica.generate(request())).images_nhwc

    assert (asyncio.run(leave_then_ask()) == picture(loaded(tiny_bundle(home)), request())).all()


@pytest.fixture(scope="module")
def http(home: Path) -> Iterator[TestClient]:
    """The API in one process, on a family of one version."""
    (home / "experts").mkdir()
    bundle = {
        **tiny_bundle(home).model_dump(mode="json", exclude_defaults=True),
        "crop": {"size_px": 192},
        "tiers": {"draft": 1, "normal": 2, "high": 4},
    }
    bundle["backend"] |= {"kind": "inpaint", "model": {"path": "../klein"}, "recipe": KLEIN}
    (home / "experts/eye.tiny.yaml").write_text(yaml.safe_dump(bundle))
    (home / "family.yaml").write_text("experts:\n  - version: eye@tiny\n")
    with TestClient(build_local_api(home / "family.yaml")) as client:
        yield client


FILES = {
    "person": encoded(photo()),
    "product": encoded(photo(64, 64, seed=1)),
    "mask": encoded(box_mask()),
}


def test_outside_the_region_nothing_changes_over_http(http: TestClient) -> None:
    response = http.post("/v1/tryon", data={"expert": "eye", "format": "png"}, files=FILES)
    assert response.status_code == 200, response.text
    assert response.headers["sm4ll-version"] == "eye@tiny"
    assert response.headers["sm4ll-outside-max-diff"] == "0"
    pixels = np.asarray(Image.open(io.BytesIO(response.content)))
    outside = box_mask() == 0
    assert (pixels[outside] == photo()[outside]).all()
    assert levels_apart(pixels[~outside], photo()[~outside]) > 50


def test_seed_decides_the_file_over_http(http: TestClient) -> None:
    def ask(seed: int) -> bytes:
        data = {"expert": "eye", "seed": str(seed), "quality": "draft"}
        return http.post("/v1/tryon", data=data, files=FILES).content

    assert ask(1) == ask(1)
    assert ask(1) != ask(2)
