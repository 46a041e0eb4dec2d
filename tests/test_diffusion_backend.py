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
from typing import Any, get_args

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pydantic import BaseModel
from starlette.testclient import TestClient

from deployments import recipes
from deployments.backends.base import OnStep
from deployments.backends.diffusion.backend import DiffusionBackend
from deployments.backends.diffusion.passes import Steps
from deployments.backends.diffusion.registry import RECIPES
from deployments.bundle import Bundle
from deployments.expert import ExpertReplica
from serve.errors import BundleInvalid, Cancelled, GenerationFailed, OutOfDeviceMemory
from serve.messages import UInt8Array
from tests.diffusion_requests import (
    HEIGHT_PX,
    KLEIN,
    PLAN,
    WIDTH_PX,
    loaded,
    paint,
    picture,
    product,
    request,
    tiny_bundle,
)
from tests.fakes import build_local_api
from tests.pictures import box_mask, encoded, photo
from tests.tiny.klein import build_klein, build_klein_lora, build_transformer

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for bundles with the pipeline and two adapters beside them."""
    folder = tmp_path_factory.mktemp("home")
    build_klein(folder / "klein")
    for seed in (1, 2):
        build_klein_lora(folder / f"lora{seed}", seed=seed)
    return folder


@pytest.fixture(scope="module")
def backend(home: Path) -> DiffusionBackend:
    return loaded(tiny_bundle(home))


def pipe_of(backend: DiffusionBackend) -> Any:
    assert backend._loaded is not None
    return backend._loaded.pipe


def levels_apart(a: UInt8Array, b: UInt8Array) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


class Stop(Exception):
    """What a caller of these tests raises."""


def stop_at(last_step: int, error: BaseException | None = None) -> OnStep:
    def on_step(step: int, num_steps: int) -> None:
        if step == last_step:
            raise error or Stop

    return on_step


@contextmanager
def counting(module: torch.nn.Module) -> Iterator[list[int]]:
    """Counts the module's forward passes."""
    calls: list[int] = []
    hook = module.register_forward_hook(lambda *_: calls.append(1))
    yield calls
    hook.remove()


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
    assert 0 < np.abs(difference).mean() < 4


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


# What it keeps and drops


def test_product_is_encoded_once_and_gives_the_same_bytes(backend: DiffusionBackend) -> None:
    asked = request(product_hwc=product(99))
    with counting(pipe_of(backend).vae.encoder) as calls:
        first = picture(backend, asked)
        assert len(calls) == 2  # person and product
        again = picture(backend, asked)
        assert len(calls) == 3  # the person alone
    assert (again == first).all()


def test_products_beyond_the_budget_are_encoded_again(home: Path) -> None:
    backend = loaded(tiny_bundle(home))
    assert backend._loaded is not None
    backend._loaded.products._cache._max_bytes = 4000  # one product's latents are 2,304 bytes
    with counting(pipe_of(backend).vae.encoder) as calls:
        for index in (0, 1, 0):
            paint(backend, request(0, product_hwc=product(index)))
    assert len(calls) == 6
    assert 0 < backend._loaded.products.held_bytes <= 4000


def test_dropped_text_encoders_give_their_memory_back(home: Path) -> None:
    prompt = {"text": "the person wears the sunglasses", "max_tokens": 32}
    keeping = loaded(tiny_bundle(home, prompt={**prompt, "drop_text_encoders": False}))
    dropping = loaded(tiny_bundle(home))
    encoder = pipe_of(keeping).text_encoder
    encoder_bytes = sum(tensor.nbytes for tensor in encoder.state_dict().values())
    saved_bytes = keeping.memory().weights_bytes - dropping.memory().weights_bytes
    assert saved_bytes == encoder_bytes > 0
    assert pipe_of(dropping).text_encoder is None
    assert (picture(keeping, request()) == picture(dropping, request())).all()


def test_text_encoders_stay_while_one_version_keeps_them(home: Path) -> None:
    prompt = {"text": "other words", "max_tokens": 32, "drop_text_encoders": False}
    backend = loaded(tiny_bundle(home), tiny_bundle(home, name="keeps", prompt=prompt))
    assert pipe_of(backend).text_encoder is not None


def test_each_prompt_is_encoded_once(home: Path) -> None:
    words = {"max_tokens": 32, "drop_text_encoders": False}
    first = tiny_bundle(home, prompt={"text": "one", **words})
    same = tiny_bundle(home, name="same", prompt={"text": "one", **words})
    other = tiny_bundle(home, name="other", prompt={"text": "two", **words})
    backend = loaded(first, same, other)
    with counting(pipe_of(backend).text_encoder) as calls:
        pictures = [picture(backend, request(version=b.version)) for b in (first, same, other)]
    assert not calls
    assert (pictures[0] == pictures[1]).all()
    assert levels_apart(pictures[0], pictures[2]) > 2


def test_vae_works_in_tiles_above_the_limit_only(home: Path) -> None:
    # 0.025 MP lie between 128x128 and 128x192.
    backend = loaded(tiny_bundle(home, speed={"vae_tiling_above_megapixels": 0.02}))
    vae = pipe_of(backend).vae
    vae.tile_sample_min_size, vae.tile_latent_min_size = 128, 16
    small = request(crop_hwc=photo(128, 128), region_hw=request().region_hw[:128])
    for painted, num_tiles in ((request(), 4), (small, 1), (request(), 4)):
        with counting(vae.decoder) as calls:
            paint(backend, painted)
        assert len(calls) == num_tiles


def test_unload_gives_everything_back_and_may_be_called_twice(home: Path) -> None:
    backend = loaded(tiny_bundle(home))
    assert backend.memory().weights_bytes > 0
    backend.unload()
    backend.unload()
    assert backend.memory().weights_bytes == 0


# What it loads


def lora(home: Path, name: str, folder: str) -> Bundle:
    return tiny_bundle(home, name=name, adapter={"source": {"path": folder}})


def test_versions_of_one_base_take_turns_without_a_trace(home: Path) -> None:
    versions = lora(home, "a", "lora1"), lora(home, "b", "lora2"), tiny_bundle(home)
    shared = loaded(*versions)
    asked = [request(version=bundle.version) for bundle in versions]
    alone = [picture(loaded(v), r) for v, r in zip(versions, asked, strict=True)]
    for index in (0, 1, 0, 2, 1, 2, 0):
        assert (picture(shared, asked[index]) == alone[index]).all()
        with pytest.raises(Stop):
            shared.generate([asked[index - 1]], stop_at(1))
    assert levels_apart(alone[0], alone[1]) > 5
    assert levels_apart(alone[0], alone[2]) > 5


def test_memory_tells_base_and_adapters_apart(home: Path, backend: DiffusionBackend) -> None:
    shared = loaded(lora(home, "a", "lora1"), lora(home, "b", "lora2"))
    assert shared.memory().weights_bytes == backend.memory().weights_bytes
    assert set(shared.memory().adapter_bytes) == {"eye@a", "eye@b"}
    assert all(shared.memory().adapter_bytes.values())


def test_fine_tuned_denoiser_takes_the_bases_place(home: Path, backend: DiffusionBackend) -> None:
    torch.manual_seed(9)
    tuned = build_transformer()
    tuned.save_pretrained(home / "tuned")
    served = loaded(tiny_bundle(home, transformer={"path": "tuned"}))
    for name, tensor in pipe_of(served).transformer.state_dict().items():
        assert torch.equal(tensor, tuned.state_dict()[name])
    assert levels_apart(picture(served, request()), picture(backend, request())) > 5


def test_fine_tuned_denoiser_with_keys_missing_is_refused_by_key(home: Path) -> None:
    from safetensors.torch import load_file, save_file

    build_transformer().save_pretrained(home / "cut")
    file = home / "cut/diffusion_pytorch_model.safetensors"
    state = load_file(file)
    del state["proj_out.weight"]
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(BundleInvalid, match=r"cut: 1 keys missing or unknown: proj_out\.weight"):
        loaded(tiny_bundle(home, transformer={"path": "cut"}))


def test_weights_of_another_family_are_refused(home: Path) -> None:
    other = {"pipeline": "FluxKontextInpaintPipeline"}
    with pytest.raises(
        BundleInvalid, match="does not load as FluxKontextInpaintPipeline"
    ) as caught:
        loaded(tiny_bundle(home, recipe=other))
    assert "recipe.pipeline" in caught.value.remedy


def test_damaged_weights_are_refused(home: Path, tmp_path: Path) -> None:
    build_klein(tmp_path / "klein")
    file = tmp_path / "klein/transformer/diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(BundleInvalid, match="klein does not load"):
        loaded(tiny_bundle(tmp_path))


def test_pickle_beside_safetensors_is_never_read(tmp_path: Path) -> None:
    build_klein(tmp_path / "klein")
    (tmp_path / "klein/transformer/diffusion_pytorch_model.bin").write_bytes(b"no pickle at all")
    loaded(tiny_bundle(tmp_path))


def test_every_pipeline_a_bundle_may_name_has_a_recipe_and_no_other() -> None:
    named = {
        get_args(model.model_fields["pipeline"].annotation)[0]
        for model in vars(recipes).values()
        if isinstance(model, type) and issubclass(model, BaseModel)
        if "pipeline" in model.model_fields
    }
    assert set(RECIPES) == named


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
