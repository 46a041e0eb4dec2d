"""Lossy switches are compared with the plain run, one at a time, on the same inputs and seeds."""

from pathlib import Path

import pytest

from deployments.backends.base import Backend
from deployments.backends.registry import create_backend
from deployments.bundle import Bundle
from deployments.recipes import Diffusion
from deployments.switches import lossy_switches, measure_switches
from tests.diffusion_requests import PLAN, tiny_bundle
from tests.tiny.klein import build_klein

SIZE = (128, 192)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("switches")
    build_klein(folder / "klein")
    return folder


def test_switches_that_change_pictures_of_that_size_are_known(home: Path) -> None:
    fast = {"compile": True, "cuda_graphs": True, "fp8": True}
    assert lossy_switches(tiny_bundle(home), SIZE) == ()
    assert lossy_switches(tiny_bundle(home, speed=fast), SIZE) == ("compile", "cuda_graphs", "fp8")
    tiled = {"vae_tiling_above_megapixels": 0.02}
    assert lossy_switches(tiny_bundle(home, speed=tiled), SIZE) == ("vae_tiling",)
    assert lossy_switches(tiny_bundle(home, speed=tiled), (96, 96)) == ()


def test_a_switch_is_measured_alone_against_none(home: Path) -> None:
    speeds = []

    def create(bundle: Bundle) -> Backend:
        assert isinstance(bundle.backend, Diffusion)
        speeds.append(bundle.backend.speed)
        return create_backend((bundle,), PLAN)

    bundle = tiny_bundle(home, speed={"vae_tiling_above_megapixels": 0.02})
    (delta,) = measure_switches(create, bundle, SIZE, 2)
    assert delta.switch == "vae_tiling"
    assert 10 < delta.psnr_db <= 99
    assert delta.ssim <= 1
    assert [speed.vae_tiling_above_megapixels > 1 for speed in speeds] == [True, False]


def test_nothing_is_loaded_where_no_switch_is_on(home: Path) -> None:
    def create(bundle: Bundle) -> Backend:
        raise AssertionError("nothing to compare")

    assert measure_switches(create, tiny_bundle(home), SIZE, 2) == ()
