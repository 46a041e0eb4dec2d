"""A version that is bad on purpose is bad by what its bundle says, and never by mistake."""

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from deployments.backends.base import OnStep
from deployments.backends.drill import DrillBackend, blur, is_doomed, shift_colours
from deployments.backends.noop import NoopBackend
from deployments.backends.registry import create_backend
from deployments.bundle import Bundle, load_bundle
from deployments.expert import MAX_FAILURES_IN_A_ROW, Painter
from deployments.recipes import Drill, WarpConfig
from serve.config import ReplicaPlan
from serve.difference import ciede2000, to_lab
from serve.errors import Cancelled, GenerationFailed
from serve.messages import ExpertReply, ExpertRequest, Landmarks, UInt8Array
from serve.settings import CONFIGS_DIR

ORANGE, GREY = (210, 110, 40), (120, 120, 120)


def paint_product(colour: tuple[int, int, int], ground: int | None = None) -> UInt8Array:
    """A square of one colour with some grain: cut out, or on a plain ground."""
    product = np.zeros((80, 80, 4), np.uint8)
    if ground is not None:
        product[...] = (ground, ground, ground, 255)
    grain = np.random.default_rng(0).integers(-8, 9, (40, 40, 1))
    product[20:60, 20:60, :3] = (np.array(colour) + grain).clip(0, 255)
    product[20:60, 20:60, 3] = 255
    return product


def ask(request_id: str = "tr_1", product: UInt8Array | None = None) -> ExpertRequest:
    return ExpertRequest(
        request_id=request_id,
        version="eye@bad",
        crop_hwc=np.full((32, 32, 3), 90, np.uint8),
        region_hw=np.full((32, 32), 255, np.uint8),
        silhouette_hw=None,
        landmarks=Landmarks(),
        product_hwc=paint_product(ORANGE) if product is None else product,
        product_landmarks=Landmarks(),
        seed=1,
    )


class Copying(NoopBackend):
    """Keeps the requests as they reach it."""

    def __init__(self) -> None:
        super().__init__("eye@bad")
        self.seen: list[ExpertRequest] = []

    def generate(self, batch: list[ExpertRequest], on_step: OnStep) -> list[ExpertReply]:  # type: ignore[override]
        self.seen.extend(batch)
        return super().generate(batch, on_step)


def go_on(step: int, num_steps: int) -> None:
    """Nobody leaves."""


@pytest.mark.parametrize("ground", [None, 250])
@pytest.mark.parametrize("colour", [ORANGE, GREY])
def test_colours_move_by_what_was_asked(colour: tuple[int, int, int], ground: int | None) -> None:
    product = paint_product(colour, ground)
    shifted = shift_colours(product, 6.0)
    inside = np.s_[20:60, 20:60]
    before, after = to_lab(product[inside][..., :3]), to_lab(shifted[inside][..., :3])
    assert ciede2000(before, after).mean() == pytest.approx(6.0, abs=0.4)
    assert np.abs(before[..., 0] - after[..., 0]).mean() < 1.0
    assert np.array_equal(product[..., 3], shifted[..., 3])
    assert np.array_equal(shifted, shift_colours(product, 6.0))


def test_blur_takes_the_grain_and_leaves_outline_and_colour() -> None:
    product = paint_product(ORANGE)
    soft = blur(product, 4.0)
    inside = np.s_[20:60, 20:60, :3]
    assert soft[inside].std(axis=(0, 1)).max() < 0.4 * product[inside].std(axis=(0, 1)).max()
    assert np.abs(soft[inside].mean((0, 1)) - product[inside].mean((0, 1))).max() < 1.5
    assert np.array_equal(soft[..., 3], product[..., 3])


def test_only_the_product_is_spoiled() -> None:
    inner = Copying()
    DrillBackend(inner, Drill(colour_shift=6)).generate([ask()], go_on)
    (seen,) = inner.seen
    assert not np.array_equal(seen.product_hwc, ask().product_hwc)
    assert np.array_equal(seen.crop_hwc, ask().crop_hwc)
    assert replace(seen, product_hwc=ask().product_hwc).seed == ask().seed


def test_the_share_of_failures_is_told_by_the_request_and_spread() -> None:
    doomed = [is_doomed(f"tr_{number}", 0.05) for number in range(20_000)]
    assert sum(doomed) == pytest.approx(1_000, abs=130)  # four deviations
    longest = max(
        len(run) for run in "".join("x" if bad else " " for bad in doomed).split() or [""]
    )
    assert longest < MAX_FAILURES_IN_A_ROW
    assert not is_doomed("tr_1", 0.0)
    assert is_doomed("tr_1", 1.0)


def test_it_fails_before_it_paints_and_its_replica_lives_on() -> None:
    inner = Copying()
    painter = Painter(DrillBackend(inner, Drill(failure_share=0.05)), "Expert-eye@bad")
    num_failed = most_in_a_row = 0
    for number in range(400):
        try:
            painter.generate([ask(f"tr_{number}")], go_on)
        except GenerationFailed:
            num_failed += 1
        most_in_a_row = max(most_in_a_row, painter.num_failures_in_a_row)
    assert num_failed + len(inner.seen) == 400
    assert 5 <= num_failed <= 40
    assert most_in_a_row < MAX_FAILURES_IN_A_ROW


def test_a_delay_ends_when_the_caller_leaves() -> None:
    slept: list[float] = []
    inner = Copying()

    def leave(step: int, num_steps: int) -> None:
        if len(slept) == 3:
            raise Cancelled("gone")

    with pytest.raises(Cancelled):
        DrillBackend(inner, Drill(delay_s=10), slept.append).generate([ask()], leave)
    assert len(slept) == 3
    assert not inner.seen
    slept.clear()
    DrillBackend(inner, Drill(delay_s=0.12), slept.append).generate([ask()], go_on)
    assert sum(slept) == pytest.approx(0.12)
    assert len(inner.seen) == 1


def drilled(status: str) -> Bundle:
    shipped = load_bundle(CONFIGS_DIR / "experts/eye.1.yaml").model_dump()
    backend = {"kind": "warp", "drill": {"colour_shift": 6}}
    return Bundle.model_validate({**shipped, "name": "bad", "status": status, "backend": backend})


def test_a_bundle_with_a_drill_is_a_benchmark_and_another_fingerprint() -> None:
    bad = drilled("benchmark")
    assert isinstance(create_backend((bad,), ReplicaPlan(name="x")), DrillBackend)
    good = bad.model_copy(update={"backend": WarpConfig()})
    assert bad.fingerprint != good.fingerprint
    assert "drill" not in good.model_dump_json()
    for status in ("pre-release", "alpha", "beta", "stable"):
        with pytest.raises(ValidationError, match="status must be benchmark"):
            drilled(status)
