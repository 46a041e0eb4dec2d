"""Stable Diffusion and Qwen experts as deployed: from bundle and weights to the picture."""

import asyncio
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from starlette.testclient import TestClient

from deployments.backends.diffusion.backend import DiffusionBackend
from deployments.bundle import Bundle
from deployments.expert import ExpertReplica
from serve.config import ReplicaPlan
from serve.messages import ExpertReply, ExpertRequest, UInt8Array
from tests.diffusion_requests import (
    HEIGHT_PX,
    WIDTH_PX,
    loaded,
    paint,
    picture,
    pipe_of,
    product,
    request,
    tiny_bundle,
)
from tests.fakes import build_local_api
from tests.pictures import box_mask, encoded, photo
from tests.rows import Stop, levels_apart
from tests.tiny.qwen import (
    build_qwen_edit,
    build_qwen_inpaint,
    build_qwen_lora,
    work_at_a_sixteenth,
)
from tests.tiny.stable_diffusion import (
    build_ip_adapter,
    build_sd_inpaint,
    build_sd_unet,
    build_sdxl_inpaint,
    build_sdxl_unet,
    build_unet_lora,
)

GUIDANCE = 3.0
NUM_STEPS = 3
MAX_BATCH_LEVELS = 3  # 2 were measured
NAMES = ("sd-diptych", "sd-ip", "sdxl-diptych", "sdxl-ip", "qwen-inpaint", "qwen-edit")
PIPELINES = {
    "sd": "StableDiffusionInpaintPipeline",
    "sdxl": "StableDiffusionXLInpaintPipeline",
    "qwen-inpaint": "QwenImageEditInpaintPipeline",
    "qwen-edit": "QwenImageEditPlusPipeline",
}


@pytest.fixture(scope="module", autouse=True)
def _small_pictures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        work_at_a_sixteenth(patch)
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every pipeline, its IP-Adapter and a LoRA for it."""
    folder = tmp_path_factory.mktemp("home")
    build_sd_inpaint(folder / "sd", has_checker=True)
    build_sdxl_inpaint(folder / "sdxl")
    build_qwen_inpaint(folder / "qwen-inpaint")
    build_qwen_edit(folder / "qwen-edit")
    for family, build_unet in (("sd", build_sd_unet), ("sdxl", build_sdxl_unet)):
        build_ip_adapter(folder / f"{family}-adapter", build_unet(), "ip.safetensors")
        build_unet_lora(folder / f"{family}-lora", build_unet(), seed=1)
    build_qwen_lora(folder / "qwen-lora", seed=1)
    return folder


def bundle_of(home: Path, name: str, lora: str = "") -> Bundle:
    family, _, by = name.partition("-")
    base = name if family == "qwen" else family
    recipe: dict[str, Any] = {"pipeline": PIPELINES[base]}
    if by == "ip":
        source = {"path": home / f"{family}-adapter", "subfolder": "models"}
        recipe |= {"product": {"by": "ip_adapter", "source": source}}
        recipe["product"] |= {"weight_name": "ip.safetensors"}
    backend: dict[str, Any] = {
        "kind": "kontext" if by == "edit" else "inpaint",
        "model": {"path": home / base},
        "recipe": recipe,
    }
    if lora:
        backend |= {"adapter": {"source": {"path": home / f"{family}-lora"}}}
    return tiny_bundle(home, name=lora or name, guidance=GUIDANCE, **backend)


def request_of(name: str, index: int = 0, **changes: Any) -> ExpertRequest:
    fields = {"version": f"eye@{name}", "num_steps": NUM_STEPS, "guidance": GUIDANCE}
    return request(index, **{**fields, **changes})


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def backend(name: str, home: Path) -> DiffusionBackend:
    return loaded(bundle_of(home, name))


def test_encoders_go_where_only_the_prompt_needs_them_and_no_safety_checker_comes(
    backend: DiffusionBackend, name: str
) -> None:
    assert backend._loaded is not None
    parts = backend._loaded.pipe.components
    assert (parts["text_encoder"] is None) == (not name.startswith("qwen"))
    assert parts.get("text_encoder_2") is None
    assert parts.get("safety_checker") is None
    assert (parts.get("image_encoder") is not None) == name.endswith("-ip")


@pytest.mark.parametrize(("by", "is_tiled"), [("diptych", True), ("ip", False)])
def test_a_diptych_reaches_the_tiling_limit_at_half_the_crop(
    home: Path, by: str, is_tiled: bool
) -> None:
    # A crop is 0.025 MP.
    bundle = bundle_of(home, f"sd-{by}")
    speed = bundle.backend.speed.model_copy(update={"vae_tiling_above_megapixels": 0.03})
    backend = loaded(
        bundle.model_copy(update={"backend": bundle.backend.model_copy(update={"speed": speed})})
    )
    paint(backend, request_of(f"sd-{by}"))
    assert pipe_of(backend).vae.use_tiling == is_tiled


def test_requests_of_one_batch_get_what_they_get_alone(
    backend: DiffusionBackend, name: str
) -> None:
    requests = [request_of(name, index) for index in range(3)]
    together = [reply.images_nhwc for reply in paint(backend, *requests)]
    for single, images in zip(requests, together, strict=True):
        assert images.shape == (1, HEIGHT_PX, WIDTH_PX, 3)
        assert levels_apart(images, picture(backend, single)) <= MAX_BATCH_LEVELS
    for one, other in zip(together, together[1:], strict=False):
        assert levels_apart(one, other) > 10


def test_another_product_makes_another_picture(backend: DiffusionBackend, name: str) -> None:
    first, other = (
        picture(backend, request_of(name, product_hwc=product(index))) for index in (0, 1)
    )
    inside = request_of(name).region_hw > 0
    assert levels_apart(first[0][inside], other[0][inside]) > 2 * MAX_BATCH_LEVELS


def test_stop_at_first_or_last_step_leaves_the_next_bytes_as_they_were(
    backend: DiffusionBackend, name: str
) -> None:
    before = picture(backend, request_of(name))
    seen: list[tuple[int, int]] = []
    backend.generate([request_of(name)], lambda *step: seen.append(step))
    assert seen[-1][0] == seen[-1][1] == len(seen)
    for last_step in (1, len(seen)):

        def on_step(step: int, num_steps: int, last_step: int = last_step) -> None:
            if step == last_step:
                raise Stop

        with pytest.raises(Stop):
            backend.generate([request_of(name, 1), request_of(name, 2)], on_step)
    assert (picture(backend, request_of(name)) == before).all()


def test_replica_that_keeps_its_text_encoders_answers_with_the_same_bytes(
    backend: DiffusionBackend, name: str, home: Path
) -> None:
    bundle = bundle_of(home, name)
    prompt = {**bundle.backend.prompt.model_dump(), "drop_text_encoders": False}  # type: ignore[union-attr]
    config = type(bundle.backend).model_validate({**bundle.backend.model_dump(), "prompt": prompt})
    keeping = bundle.model_copy(update={"backend": config})
    paint(backend, request_of(name, 3))
    replica = ExpertReplica((keeping,), ReplicaPlan(name=f"Expert-eye@{name}"))
    reply: ExpertReply = asyncio.run(replica.generate(request_of(name)))
    assert (reply.images_nhwc == picture(backend, request_of(name))).all()


@pytest.mark.parametrize("name", ["sd-diptych", "sd-ip", "sdxl-ip", "qwen-edit"])
def test_lora_version_shares_the_base_of_the_plain_one(name: str, home: Path) -> None:
    backend = loaded(bundle_of(home, name), bundle_of(home, name, lora="lora"))
    plain, adapted, again = (
        picture(backend, request_of(version)) for version in (name, "lora", name)
    )
    assert levels_apart(plain, adapted) > MAX_BATCH_LEVELS
    assert (plain == again).all()


PERSON_HWC, MASK_HW = photo(), box_mask()


@pytest.fixture(scope="module")
def http(home: Path) -> Iterator[TestClient]:
    (home / "experts").mkdir()
    for name in NAMES:
        fields = bundle_of(home, name).model_dump(mode="json", exclude_unset=True)
        fields |= {"crop": {"size_px": 192}, "tiers": {"normal": NUM_STEPS}}
        path = home / "experts" / f"eye.{name}.yaml"
        path.write_text(yaml.safe_dump(fields))
    family = {"experts": [{"version": f"eye@{name}"} for name in NAMES]}
    (home / "family.yaml").write_text(yaml.safe_dump(family))
    with TestClient(build_local_api(home / "family.yaml")) as client:
        yield client


def post(http: TestClient, name: str, product_seed: int = 1) -> tuple[UInt8Array, Any]:
    response = http.post(
        "/v1/tryon",
        data={"expert": "eye", "version": name, "seed": "3"},
        files={
            "person": encoded(PERSON_HWC),
            "product": encoded(photo(80, 120, seed=product_seed)),
            "mask": encoded(MASK_HW),
        },
    )
    assert response.status_code == 200, response.text
    return np.asarray(Image.open(io.BytesIO(response.content))), response.headers


def test_answer_over_http_differs_inside_the_mask_only(name: str, http: TestClient) -> None:
    picture, headers = post(http, name)
    assert headers["sm4ll-version"] == f"eye@{name}"
    assert headers["sm4ll-outside-max-diff"] == "0"
    assert (picture[MASK_HW == 0] == PERSON_HWC[MASK_HW == 0]).all()
    assert levels_apart(picture[MASK_HW > 0], PERSON_HWC[MASK_HW > 0]) > 20
    assert (post(http, name)[0] == picture).all()
    assert levels_apart(post(http, name, product_seed=2)[0], picture) > 0
