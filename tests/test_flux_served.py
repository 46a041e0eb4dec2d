"""FLUX.1 experts as they are deployed: from bundle and weights on disk to the finished picture."""

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

from deployments.backends.base import OnStep
from deployments.backends.diffusion.backend import DiffusionBackend
from deployments.bundle import Bundle, load_family
from deployments.expert import ExpertReplica
from serve.config import ReplicaPlan
from serve.errors import BundleInvalid
from serve.messages import ExpertRequest, Landmarks, UInt8Array
from tests.fakes import build_local_api
from tests.pictures import box_mask, encoded, photo
from tests.rows import HEIGHT_PX, WIDTH_PX, Stop, levels_apart, product, region
from tests.tiny.flux import (
    FILL_CHANNELS,
    build_flux_fill,
    build_flux_kontext,
    build_flux_kontext_inpaint,
    build_flux_lora,
)

BACKENDS: dict[str, dict[str, Any]] = {
    "top@kontext": {"kind": "kontext", "recipe": {"pipeline": "FluxKontextPipeline"}},
    "eye@reference": {"kind": "inpaint", "recipe": {"pipeline": "FluxKontextInpaintPipeline"}},
    "shoes@fill": {"kind": "diptych", "recipe": {"pipeline": "FluxFillPipeline"}},
}
BUILDERS = {
    "top@kontext": build_flux_kontext,
    "eye@reference": build_flux_kontext_inpaint,
    "shoes@fill": build_flux_fill,
}
NUM_STEPS = 3
GUIDANCE = 3.5
MAX_BATCH_LEVELS = 2  # 1 was measured


@pytest.fixture(scope="module")
def family_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flux_family")
    (folder / "experts").mkdir()
    for version, build in BUILDERS.items():
        build(folder / "models" / version)
        write_bundle(folder, version, BACKENDS[version])
    build_flux_lora(folder / "models/lora", seed=5, in_channels=FILL_CHANNELS)
    experts = [{"version": version} for version in BUILDERS]
    (folder / "family.yaml").write_text(yaml.safe_dump({"experts": experts}))
    return folder / "family.yaml"


def write_bundle(folder: Path, version: str, backend: dict[str, Any]) -> None:
    expert, name = version.split("@")
    bundle = {
        "expert": expert,
        "name": name,
        "title": f"a tiny {version}",
        "status": "benchmark",
        "licence": {"name": "none", "commercial_use": True},
        "backend": {
            "model": {"path": f"../models/{version}"},
            "prompt": {"text": f"the person wears the {expert}", "max_tokens": 64},
            **backend,
        },
        "crop": {"size_px": HEIGHT_PX},
        "product": {"canvas": {"size": [96, 128]}},
        "tiers": {"draft": 1, "normal": NUM_STEPS, "high": 4},
        "guidance": GUIDANCE,
    }
    path = folder / "experts" / f"{expert}.{name}.yaml"
    path.write_text(yaml.safe_dump(bundle, sort_keys=False))


@pytest.fixture(scope="module")
def bundles(family_file: Path) -> dict[str, Bundle]:
    return load_family(family_file)[1]


@pytest.fixture(scope="module", params=list(BUILDERS))
def bundle(request: pytest.FixtureRequest, bundles: dict[str, Bundle]) -> Bundle:
    return bundles[request.param]


@pytest.fixture(scope="module")
def backend(bundle: Bundle) -> Iterator[DiffusionBackend]:
    backend = load_backend(bundle)
    yield backend
    backend.unload()


def load_backend(bundle: Bundle) -> DiffusionBackend:
    backend = DiffusionBackend((bundle,), ReplicaPlan(name=f"Expert-{bundle.version}"))
    backend.load()
    return backend


def request_for(bundle: Bundle, index: int, **changes: Any) -> ExpertRequest:
    product_hwc = product(index)
    opaque = np.full((*product_hwc.shape[:2], 1), 255, np.uint8)
    fields: dict[str, Any] = {
        "request_id": f"req_{index}",
        "version": bundle.version,
        "crop_hwc": photo(WIDTH_PX, HEIGHT_PX, seed=index),
        "region_hw": region(index),
        "silhouette_hw": None,
        "landmarks": Landmarks(),
        "product_hwc": np.concatenate([product_hwc, opaque], axis=2),
        "product_landmarks": Landmarks(),
        "seed": 10 * index,
        "num_steps": NUM_STEPS,
        "guidance": GUIDANCE,
    }
    return ExpertRequest(**{**fields, **changes})


def on_no_step(step: int, num_steps: int) -> None: ...


def stop_at(last_step: int) -> OnStep:
    def on_step(step: int, num_steps: int) -> None:
        if step == last_step:
            raise Stop

    return on_step


def paint(backend: DiffusionBackend, *batch: ExpertRequest) -> list[UInt8Array]:
    return [reply.images_nhwc for reply in backend.generate(batch, on_no_step)]


def test_requests_of_one_batch_get_what_they_get_alone(
    backend: DiffusionBackend, bundle: Bundle
) -> None:
    requests = [request_for(bundle, index) for index in range(4)]
    together = paint(backend, *requests)
    for request, images in zip(requests, together, strict=True):
        (alone,) = paint(backend, request)
        assert images.shape == (1, HEIGHT_PX, WIDTH_PX, 3)
        assert levels_apart(images, alone) <= MAX_BATCH_LEVELS
    for one, other in zip(together, together[1:], strict=False):
        assert levels_apart(one, other) > 10


def test_pictures_of_one_request_are_those_of_consecutive_seeds(
    backend: DiffusionBackend, bundle: Bundle
) -> None:
    (pair,) = paint(backend, request_for(bundle, 0, seed=7, num_images=2))
    assert pair.shape == (2, HEIGHT_PX, WIDTH_PX, 3)
    for offset in range(2):
        (single,) = paint(backend, request_for(bundle, 0, seed=7 + offset))
        assert levels_apart(pair[offset], single[0]) <= MAX_BATCH_LEVELS


def test_stop_at_any_step_leaves_the_next_bytes_as_they_were(
    backend: DiffusionBackend, bundle: Bundle
) -> None:
    (before,) = paint(backend, request_for(bundle, 0))
    for step in range(1, NUM_STEPS + 1):
        with pytest.raises(Stop):
            backend.generate([request_for(bundle, 1), request_for(bundle, 2)], stop_at(step))
        assert (paint(backend, request_for(bundle, 0))[0] == before).all()


def test_another_process_would_paint_the_same_bytes(
    backend: DiffusionBackend, bundle: Bundle
) -> None:
    paint(backend, request_for(bundle, 3))
    fresh = load_backend(bundle)
    request = request_for(bundle, 0)
    assert (paint(backend, request)[0] == paint(fresh, request)[0]).all()
    fresh.unload()


def test_text_encoders_are_given_back_after_loading(
    backend: DiffusionBackend, bundle: Bundle
) -> None:
    prompt = bundle.backend.prompt.model_copy(update={"drop_text_encoders": False})  # type: ignore[union-attr]
    config = bundle.backend.model_copy(update={"prompt": prompt})
    keeping = load_backend(bundle.model_copy(update={"backend": config}))
    request = request_for(bundle, 0)
    assert backend.memory().weights_bytes < keeping.memory().weights_bytes
    assert (paint(backend, request)[0] == paint(keeping, request)[0]).all()
    keeping.unload()


def test_replica_answers_with_the_backends_bytes(backend: DiffusionBackend, bundle: Bundle) -> None:
    replica = ExpertReplica((bundle,), ReplicaPlan(name=f"Expert-{bundle.version}"))
    request = request_for(bundle, 1)
    reply = asyncio.run(replica.generate(request))
    assert (reply.images_nhwc == paint(backend, request)[0]).all()
    assert reply.version == bundle.version


def test_crop_of_another_multiple_is_refused_with_what_to_set(
    backend: DiffusionBackend, bundle: Bundle
) -> None:
    crop_hwc, region_hw = photo(120, 192), np.full((192, 120), 255, np.uint8)
    with pytest.raises(BundleInvalid) as caught:
        paint(backend, request_for(bundle, 0, crop_hwc=crop_hwc, region_hw=region_hw))
    assert "crop.multiple_of" in caught.value.remedy


def test_lora_on_fill_is_served_and_the_base_without_it_stays_itself(
    bundles: dict[str, Bundle],
) -> None:
    plain = bundles["shoes@fill"]
    adapter = {"source": {"path": "../models/lora"}}
    config = type(plain.backend).model_validate({**plain.backend.model_dump(), "adapter": adapter})
    adapted = plain.model_copy(update={"backend": config, "name": "lora"})
    backend = DiffusionBackend((plain, adapted), ReplicaPlan(name="Experts-fill"))
    backend.load()
    first, with_lora, again = (
        paint(backend, request_for(version, 0))[0] for version in (plain, adapted, plain)
    )
    assert levels_apart(first, with_lora) > MAX_BATCH_LEVELS
    assert (first == again).all()
    backend.unload()


@pytest.fixture(scope="module")
def http(family_file: Path) -> Iterator[TestClient]:
    with TestClient(build_local_api(family_file), raise_server_exceptions=False) as client:
        yield client


PERSON_HWC, MASK_HW = photo(), box_mask()


def post(http: TestClient, version: str, product_seed: int = 1) -> tuple[UInt8Array, Any]:
    expert, _, name = version.partition("@")
    response = http.post(
        "/v1/tryon",
        data={"expert": expert, "version": name, "seed": "3"},
        files={
            "person": encoded(PERSON_HWC),
            "product": encoded(photo(80, 120, seed=product_seed)),
            "mask": encoded(MASK_HW),
        },
    )
    assert response.status_code == 200, response.text
    return np.asarray(Image.open(io.BytesIO(response.content))), response.headers


@pytest.mark.parametrize("version", list(BUILDERS))
def test_answer_over_http_differs_inside_the_mask_only(version: str, http: TestClient) -> None:
    picture, headers = post(http, version)
    assert headers["sm4ll-version"] == version
    assert headers["sm4ll-outside-max-diff"] == "0"
    assert (picture[MASK_HW == 0] == PERSON_HWC[MASK_HW == 0]).all()
    assert levels_apart(picture[MASK_HW > 0], PERSON_HWC[MASK_HW > 0]) > 20


@pytest.mark.parametrize("version", list(BUILDERS))
def test_same_seed_over_http_repeats_the_bytes_and_another_product_does_not(
    version: str, http: TestClient
) -> None:
    first, again, other = (post(http, version, seed)[0] for seed in (1, 1, 2))
    assert (first == again).all()
    assert levels_apart(first, other) > 0
