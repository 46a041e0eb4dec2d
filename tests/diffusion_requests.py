"""Bundles, requests and a loaded engine for tests on tiny pipelines.

As a program it paints one request in a process that never did anything else.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deployments.backends.base import OnStep
from deployments.backends.diffusion.backend import DiffusionBackend
from deployments.bundle import Bundle
from serve.config import ReplicaPlan, WeightsConfig
from serve.messages import ExpertReply, ExpertRequest, Landmarks, UInt8Array
from tests.pictures import photo
from tests.rows import Stop

WIDTH_PX, HEIGHT_PX = 128, 192
PLAN = ReplicaPlan(name="Expert-eye@tiny", weights=WeightsConfig(local_files_only=True))
KLEIN = {"pipeline": "Flux2KleinInpaintPipeline"}


def tiny_bundle(
    folder: Path, *, name: str = "tiny", guidance: float = 0.0, **backend: Any
) -> Bundle:
    """A bundle beside `folder/klein`; `backend` changes or adds fields of its backend."""
    fields: Mapping[str, Any] = {
        "kind": "inpaint",
        "model": {"path": "klein"},
        "prompt": {"text": "the person wears the sunglasses", "max_tokens": 32},
        "recipe": KLEIN,
    }
    return Bundle.model_validate(
        {
            "expert": "eye",
            "name": name,
            "title": "tiny",
            "status": "benchmark",
            "licence": {"name": "none", "commercial_use": True},
            "backend": {**fields, **backend},
            "product": {"canvas": {"size": [96, 96]}},
            "guidance": guidance,
        }
    ).located(folder)


def loaded(*bundles: Bundle) -> DiffusionBackend:
    backend = DiffusionBackend(bundles, PLAN)
    backend.load()
    return backend


def request(index: int = 0, **changes: Any) -> ExpertRequest:
    """A request that no other index's shares anything with but its size."""
    region_hw = np.zeros((HEIGHT_PX, WIDTH_PX), np.uint8)
    region_hw[32 + 16 * index : 144, 32:96] = 255
    fields = {
        "request_id": f"req_{index}",
        "version": "eye@tiny",
        "crop_hwc": photo(WIDTH_PX, HEIGHT_PX, seed=index),
        "region_hw": region_hw,
        "silhouette_hw": None,
        "landmarks": Landmarks(),
        "product_hwc": product(index),
        "product_landmarks": Landmarks(),
        "seed": 7 + index,
        "num_steps": 4,
    }
    return ExpertRequest(**{**fields, **changes})


def product(index: int = 0) -> UInt8Array:
    """(96, 96, 4): a patch of one strong colour on white."""
    product_rgba = np.full((96, 96, 4), 255, np.uint8)
    product_rgba[20:76, 20:76, :3] = np.random.default_rng(index).integers(0, 255, 3)
    return product_rgba


def paint(backend: DiffusionBackend, *batch: ExpertRequest) -> list[ExpertReply]:
    return backend.generate(batch, lambda step, num_steps: None)


def picture(backend: DiffusionBackend, *batch: ExpertRequest) -> UInt8Array:
    """All pictures of all requests, (N, H, W, 3)."""
    return np.concatenate([reply.images_nhwc for reply in paint(backend, *batch)])


def pipe_of(backend: DiffusionBackend) -> Any:
    assert backend._loaded is not None
    return backend._loaded.pipe


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


if __name__ == "__main__":
    home, out = Path(sys.argv[1]), Path(sys.argv[2])
    np.save(out, picture(loaded(tiny_bundle(home)), request()))
