"""What cannot fit is refused before the device sees it; batches stay within what may be held."""

from pathlib import Path

import numpy as np
import pytest

from deployments.backends.base import Memory
from deployments.bundle import Bundle, Canvas, Licence, Product
from deployments.guard import MemoryGuard, build_guards
from deployments.measured import Footprint, Peak, ServiceTime, save_footprint
from deployments.recipes import Flux2KleinInpaint, InpaintConfig, NoopConfig, Prompt
from deployments.sources import ModelSource
from serve.errors import ConfigError, OutOfDeviceMemory
from serve.messages import ExpertRequest
from tests.scripted import make_request

WIDTH_PX, HEIGHT_PX = 48, 64
GPU = "NVIDIA H200"


def footprint(device: str = GPU, s_per_image: dict[int, float] | None = None) -> Footprint:
    """2 GiB of weights, and 1 GiB for each picture of a pass; each batch pays."""
    size = {"width_px": WIDTH_PX, "height_px": HEIGHT_PX}
    times = s_per_image or {1: 1.0, 2: 0.8, 4: 0.5, 8: 0.3}
    return Footprint(
        device=device,
        device_gib=140.0,
        torch="2.13.0",
        date="2026-01-01",
        weights_gib=2.0,
        load_s=1.0,
        peaks=tuple(Peak(**size, batch=n, peak_gib=2.0 + n) for n in (1, 2, 4, 8)),
        times=tuple(
            ServiceTime(**size, num_steps=4, batch=n, s_per_image=s) for n, s in times.items()
        ),
    )


def request(num_images: int = 1, scale: int = 1) -> ExpertRequest:
    size = HEIGHT_PX * scale, WIDTH_PX * scale
    return make_request(
        version="top@klein",
        crop_hwc=np.zeros((*size, 3), np.uint8),
        region_hw=np.zeros(size, np.uint8),
        num_images=num_images,
        num_steps=4,
    )


def bundle(home: Path) -> Bundle:
    return Bundle(
        expert="top",
        name="klein",
        title="t",
        status="benchmark",
        licence=Licence(name="none", commercial_use=True),
        backend=InpaintConfig(
            model=ModelSource(path=Path("weights")),
            prompt=Prompt(text="the person wears it"),
            recipe=Flux2KleinInpaint(),
            max_batch_size=6,
        ),
        product=Product(canvas=Canvas(size=(64, 64))),
    ).located(home)


def test_request_above_the_cap_is_refused_with_both_numbers_and_what_to_do() -> None:
    guard = MemoryGuard(max_rows=8, footprint=footprint(), cap_gib=5.5)
    guard.check(request(num_images=2))
    with pytest.raises(OutOfDeviceMemory) as caught:
        guard.check(request(num_images=4))
    assert caught.value.detail == (
        "top@klein: 4 x 48x64 px needs 6.00 GiB, and this replica may hold 5.50 GiB"
    )
    assert all(word in caught.value.remedy for word in ("crop size", "num_images", "num_gpus"))


def test_larger_crop_is_refused_where_a_smaller_one_fits() -> None:
    guard = MemoryGuard(max_rows=8, footprint=footprint(), cap_gib=5.5)
    guard.check(request(num_images=1))
    with pytest.raises(OutOfDeviceMemory, match="1 x 96x128 px needs 6.00 GiB"):
        guard.check(request(num_images=1, scale=2))


def test_without_a_cap_the_whole_device_is_the_limit() -> None:
    guard = MemoryGuard(max_rows=8, footprint=footprint(), cap_gib=None)
    guard.check(request(num_images=4))
    with pytest.raises(OutOfDeviceMemory, match=r"may hold 140\.00 GiB"):
        guard.check(request(num_images=4, scale=8))


def test_pictures_that_run_in_several_passes_need_no_more_than_one_of_them() -> None:
    guard = MemoryGuard(max_rows=2, footprint=footprint(), cap_gib=4.0)
    guard.check(request(num_images=4))


def test_batch_is_the_largest_that_was_measured_to_pay() -> None:
    pays_to_two = footprint(s_per_image={1: 1.0, 2: 0.8, 4: 0.79, 8: 0.79})
    guard = MemoryGuard(max_rows=8, footprint=pays_to_two, cap_gib=None)
    assert guard.best_rows(request()) == 2


def test_batch_never_exceeds_the_bundles_limit() -> None:
    guard = MemoryGuard(max_rows=4, footprint=footprint(), cap_gib=None)
    assert guard.best_rows(request()) == 4


@pytest.mark.parametrize(("cap_gib", "num_rows"), [(10.0, 8), (9.9, 4), (4.0, 2), (3.5, 1)])
def test_batch_shrinks_to_what_the_cap_leaves(cap_gib: float, num_rows: int) -> None:
    guard = MemoryGuard(max_rows=8, footprint=footprint(), cap_gib=cap_gib)
    assert guard.best_rows(request()) == num_rows


def test_what_was_not_measured_is_neither_batched_nor_refused() -> None:
    guard = MemoryGuard(max_rows=8, footprint=None, cap_gib=0.1)
    guard.check(request(num_images=4, scale=8))
    assert guard.best_rows(request()) == 1


def test_guard_goes_by_the_footprint_of_its_own_device(tmp_path: Path) -> None:
    measured = bundle(tmp_path)
    save_footprint(measured, footprint(GPU))
    here = build_guards([measured], Memory(device=GPU, cap_gib=70.0))
    elsewhere = build_guards([measured], Memory(device="NVIDIA L4"))
    assert here == {"top@klein": MemoryGuard(6, footprint(GPU), 70.0)}
    assert elsewhere == {"top@klein": MemoryGuard(6, None, None)}


def test_damaged_footprint_stops_the_start(tmp_path: Path) -> None:
    broken = bundle(tmp_path)
    broken.folder.mkdir()
    (broken.folder / "footprint.yaml").write_text("footprints: 3")
    with pytest.raises(ConfigError, match="footprint.yaml"):
        build_guards([broken], Memory())


def test_backends_without_a_device_have_no_guard(tmp_path: Path) -> None:
    noop = bundle(tmp_path).model_copy(update={"backend": NoopConfig()})
    assert build_guards([noop], Memory()) == {}
