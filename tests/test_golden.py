"""A version serves only while it paints what it painted when it was frozen."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from deployments.backends.base import OnStep
from deployments.backends.environment import describe_environment
from deployments.backends.warp.backend import WarpBackend
from deployments.bundle import Bundle, Canvas, Licence, Product, load_bundle
from deployments.golden import check_golden, digest_sources, measure_drift, record_golden
from deployments.golden_set import Tolerance, golden_folder, load_golden
from deployments.recipes import (
    FashnProvider,
    Flux2KleinInpaint,
    HostedConfig,
    InpaintConfig,
    Prompt,
)
from deployments.samples import read_png, write_png
from deployments.sources import ModelSource
from serve.errors import BundleInvalid, NotSupported, OutOfDeviceMemory
from serve.messages import ExpertReply, ExpertRequest, Landmarks
from serve.settings import CONFIGS_DIR

PLAIN = Licence(name="none", commercial_use=True)


def ask(seed: int = 1, version: str = "bg@1") -> ExpertRequest:
    """A person in the middle of a noisy picture; the product is a gradient."""
    rng = np.random.default_rng(seed)
    region = np.full((96, 64), 255, np.uint8)
    region[30:, 16:48] = 0
    product = np.tile(np.linspace(0, 255, 80).astype(np.uint8)[:, None, None], (1, 60, 4))
    product[..., 3] = 255
    return ExpertRequest(
        request_id="r",
        version=version,
        crop_hwc=rng.integers(0, 255, (96, 64, 3)).astype(np.uint8),
        region_hw=region,
        silhouette_hw=255 - region,
        landmarks=Landmarks({"nose": (32.25, 40.0)}, (20.0, 30.0, 44.0, 60.0)),
        product_hwc=product,
        product_landmarks=Landmarks(),
        seed=seed,
    )


class PaintsWith:
    """The warp's picture, changed by what it is told."""

    kind = "warp"
    is_preview = True

    def __init__(self, *offsets: int) -> None:
        self._offsets = list(offsets)
        self._warp = WarpBackend("bg@1")

    def load(self) -> None: ...

    def unload(self) -> None: ...

    def generate(self, batch: Sequence[ExpertRequest], on_step: OnStep) -> list[ExpertReply]:
        (reply,) = self._warp.generate(batch, on_step)
        offset = self._offsets.pop(0) if self._offsets else 0
        shifted = np.clip(reply.images_nhwc.astype(int) + offset, 0, 255).astype(np.uint8)
        return [replace(reply, images_nhwc=shifted)]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    shutil.copy(CONFIGS_DIR / "experts" / "bg.1.yaml", tmp_path)
    return load_bundle(tmp_path / "bg.1.yaml")


@pytest.fixture
def frozen(bundle: Bundle) -> Bundle:
    record_golden(bundle, WarpBackend("bg@1"), {"a": ask(1), "b": ask(2)})
    return bundle


def edit_record(bundle: Bundle, **changes: object) -> None:
    file = golden_folder(bundle) / "golden.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **changes}))


def test_version_without_golden_samples_passes(bundle: Bundle) -> None:
    assert load_golden(bundle) is None
    check_golden(bundle, PaintsWith(200))


def test_frozen_version_reproduces_itself(frozen: Bundle) -> None:
    check_golden(frozen, WarpBackend("bg@1"))


def test_samples_come_back_from_disk_as_they_were(frozen: Bundle) -> None:
    golden = load_golden(frozen)
    assert golden is not None
    for sample, asked in zip(golden.samples, (ask(1), ask(2)), strict=True):
        assert np.array_equal(sample.request.crop_hwc, asked.crop_hwc)
        assert np.array_equal(sample.request.region_hw, asked.region_hw)
        assert np.array_equal(sample.request.product_hwc, asked.product_hwc)
        assert sample.request.landmarks == asked.landmarks
        assert sample.request.seed == asked.seed


def test_every_drifted_sample_is_named_with_its_numbers(frozen: Bundle) -> None:
    with pytest.raises(BundleInvalid) as caught:
        check_golden(frozen, PaintsWith(0, 37))
    assert "golden sample b: max diff 37 > 4" in caught.value.detail
    assert "a: " not in caught.value.detail
    assert "recorded on cpu" in caught.value.detail
    with pytest.raises(BundleInvalid, match=r"samples a: max diff \d+ > 4.*; b: max diff 37"):
        check_golden(frozen, PaintsWith(-20, 37))


def test_altered_expectation_is_drift(frozen: Bundle) -> None:
    file = golden_folder(frozen) / "a" / "expected.png"
    expected = read_png(file)
    expected[0, 0] ^= 255  # one pixel inside the region
    write_png(file, expected)
    with pytest.raises(BundleInvalid, match=r"a: max diff \d+ > 4, mean 0\.\d+ <= 0\.5"):
        check_golden(frozen, WarpBackend("bg@1"))


def test_what_lies_outside_the_region_does_not_count(frozen: Bundle) -> None:
    file = golden_folder(frozen) / "a" / "expected.png"
    expected = read_png(file)
    expected[60, 30] = 0, 255, 0
    write_png(file, expected)
    check_golden(frozen, WarpBackend("bg@1"))


def test_faint_drift_everywhere_is_caught_by_the_mean(frozen: Bundle) -> None:
    check_golden(frozen, PaintsWith(0, 0))
    with pytest.raises(BundleInvalid, match=r"mean diff \d\.\d\d > 0\.5"):
        check_golden(frozen, PaintsWith(2, 0))


def test_another_device_is_compared_by_its_mean_alone(frozen: Bundle) -> None:
    edit_record(frozen, device="NVIDIA H200", torch="2.13.0")
    check_golden(frozen, PaintsWith(2, 2))
    with pytest.raises(BundleInvalid, match=r"mean diff .* > 3; recorded on NVIDIA H200 with") as e:
        check_golden(frozen, PaintsWith(37, 0))
    assert "painted on cpu" in e.value.detail


def test_tolerance_is_the_recorded_one(bundle: Bundle) -> None:
    wide = Tolerance(max_abs_diff=50, mean_abs_diff=40.0)
    record_golden(bundle, WarpBackend("bg@1"), {"a": ask()}, wide)
    check_golden(bundle, PaintsWith(37))


def test_changed_bundle_is_refused_before_anything_is_painted(frozen: Bundle) -> None:
    file = frozen.home / "bg.1.yaml"
    file.write_text(file.read_text().replace("feather: 0.0", "feather: 0.1"))
    changed = load_bundle(file)
    with pytest.raises(BundleInvalid, match="with another bundle") as caught:
        check_golden(changed, PaintsWith())
    assert "sm4ll experts freeze bg@1" in caught.value.remedy


def test_failing_backend_is_reported_with_the_samples_name(frozen: Bundle) -> None:
    class Full(PaintsWith):
        def generate(self, batch: Sequence[ExpertRequest], on_step: OnStep) -> list[ExpertReply]:
            raise OutOfDeviceMemory("no room for 96x64")

    with pytest.raises(BundleInvalid, match="fails on its golden sample a: no room"):
        check_golden(frozen, Full())


def test_version_that_does_not_repeat_itself_is_not_frozen(bundle: Bundle) -> None:
    with pytest.raises(BundleInvalid, match="paints the same request differently, a: max diff"):
        record_golden(bundle, PaintsWith(0, 30), {"a": ask()})
    assert load_golden(bundle) is None


def test_failed_freeze_leaves_the_old_set_whole(frozen: Bundle) -> None:
    with pytest.raises(BundleInvalid):
        record_golden(frozen, PaintsWith(0, 30), {"c": ask(3)})
    check_golden(frozen, WarpBackend("bg@1"))


def test_new_freeze_replaces_all_of_the_old(frozen: Bundle) -> None:
    record_golden(frozen, WarpBackend("bg@1"), {"c": ask(3)})
    names = sorted(path.name for path in golden_folder(frozen).iterdir())
    assert names == ["c", "golden.yaml"]


@pytest.mark.parametrize("file", ["golden.yaml", "a/expected.png", "b/request.json", "b/crop.png"])
def test_missing_file_is_named(frozen: Bundle, file: str) -> None:
    (golden_folder(frozen) / file).unlink()
    with pytest.raises(BundleInvalid, match=Path(file).name):
        check_golden(frozen, WarpBackend("bg@1"))


def test_third_partys_api_cannot_be_frozen(bundle: Bundle) -> None:
    hosted = bundle.model_copy(update={"backend": HostedConfig(provider=FashnProvider())})
    with pytest.raises(NotSupported, match="third party"):
        record_golden(hosted, PaintsWith(), {"a": ask()})


def diffusion(home: Path, model: ModelSource) -> Bundle:
    backend = InpaintConfig(model=model, prompt=Prompt(text="p"), recipe=Flux2KleinInpaint())
    return Bundle(
        expert="bg",
        name="1",
        title="t",
        status="alpha",
        licence=PLAIN,
        backend=backend,
        product=Product(canvas=Canvas(size=(64, 64))),
    ).located(home)


def test_weights_that_nothing_pins_are_pinned_by_the_freeze(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "a.safetensors").write_bytes(b"one")
    bundle = diffusion(tmp_path, ModelSource(path=Path("weights")))
    record_golden(bundle, WarpBackend("bg@1"), {"a": ask()})
    check_golden(bundle, WarpBackend("bg@1"))
    (weights / "a.safetensors").write_bytes(b"two")
    with pytest.raises(BundleInvalid, match="the weights in weights are not those"):
        check_golden(bundle, WarpBackend("bg@1"))


def test_weights_that_the_bundle_pins_are_not_read_again(tmp_path: Path) -> None:
    pinned = ModelSource(path=Path("weights"), sha256="0" * 64)
    commit = ModelSource(repo="owner/name", revision="0" * 40)
    assert digest_sources(diffusion(tmp_path, pinned)) == {}
    assert digest_sources(diffusion(tmp_path, commit)) == {}


def test_environment_names_torch_only_where_it_paints() -> None:
    assert describe_environment(uses_torch=False).torch is None
    with_torch = describe_environment(uses_torch=True)
    assert with_torch.torch is not None
    assert f"with torch {with_torch.torch}" in str(with_torch)


def test_drift_is_measured_inside_the_region() -> None:
    a = np.zeros((4, 4, 3), np.uint8)
    b = a.copy()
    b[0, 0], b[3, 3] = 10, 200
    region = np.zeros((4, 4), np.uint8)
    region[0, :2] = 255
    drift = measure_drift(a, b, region)
    assert (drift.max_abs_diff, drift.mean_abs_diff) == (10, 5.0)
