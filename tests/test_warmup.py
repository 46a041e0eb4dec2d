"""Which shapes a replica paints before it is ready."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from deployments.backends.base import Memory, OnStep
from deployments.bundle import Bundle, Canvas, Crop, Licence, Product
from deployments.recipes import Flux2KleinInpaint, InpaintConfig, Prompt, Speed, WarpConfig
from deployments.sources import ModelSource
from deployments.warmup import warm_up
from serve.messages import ExpertReply, ExpertRequest

SIZES = ((64, 96), (96, 64))


class Recorder:
    """Notes what it is asked to paint."""

    kind, is_preview = "inpaint", False

    def __init__(self) -> None:
        self.shapes: Counter[tuple[int, int, int]] = Counter()

    def load(self) -> None: ...

    def generate(self, batch: Sequence[ExpertRequest], on_step: OnStep) -> list[ExpertReply]:
        height_px, width_px = batch[0].region_hw.shape
        self.shapes[width_px, height_px, len(batch)] += 1
        return []

    def unload(self) -> None: ...

    def memory(self) -> Memory:
        return Memory()


def bundle(backend: Any, sizes: tuple[tuple[int, int], ...] = SIZES) -> Bundle:
    return Bundle(
        expert="eye",
        name="2",
        title="t",
        status="alpha",
        licence=Licence(name="none", commercial_use=True),
        backend=backend,
        crop=Crop(sizes=sizes, size_px=128),
        product=Product(canvas=Canvas(size=(32, 32))),
    )


def inpaint(max_batch_size: int = 3, **speed: bool) -> InpaintConfig:
    return InpaintConfig(
        model=ModelSource(path="base"),
        prompt=Prompt(text="t"),
        recipe=Flux2KleinInpaint(),
        speed=Speed(**speed),
        max_batch_size=max_batch_size,
    )


@pytest.mark.parametrize("backend", [WarpConfig(), inpaint()], ids=["warp", "not compiled"])
def test_what_compiles_nothing_starts_at_once(backend: Any) -> None:
    recorder = Recorder()
    warm_up((bundle(backend),), recorder)
    assert not recorder.shapes


def test_compiled_kernels_see_every_size_and_one_batch() -> None:
    recorder = Recorder()
    warm_up((bundle(inpaint(compile=True)),), recorder)
    assert recorder.shapes == Counter({(64, 96, 1): 1, (96, 64, 1): 1, (64, 96, 2): 1})


def test_recorded_graphs_see_every_size_at_every_batch() -> None:
    recorder = Recorder()
    warm_up((bundle(inpaint(compile=True, cuda_graphs=True)),), recorder)
    assert recorder.shapes == Counter({(*size, batch): 1 for size in SIZES for batch in (1, 2, 3)})


def test_without_fixed_sizes_the_square_stands_for_all() -> None:
    recorder = Recorder()
    warm_up((bundle(inpaint(max_batch_size=1, compile=True), ()),), recorder)
    assert recorder.shapes == Counter({(128, 128, 1): 1})


def test_versions_on_one_base_are_warmed_once() -> None:
    recorder = Recorder()
    one = bundle(inpaint(compile=True))
    warm_up((one, one.model_copy(update={"name": "3"})), recorder)
    assert set(recorder.shapes.values()) == {1}
