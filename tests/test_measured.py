"""What a footprint predicts never flatters: memory is rounded up, batches must pay."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.bundle import load_bundle
from deployments.measured import (
    Footprint,
    Peak,
    ServiceTime,
    Shape,
    find_footprint,
    load_footprints,
    save_footprint,
)
from serve.errors import ConfigError
from serve.settings import CONFIGS_DIR

sides = st.integers(64, 2048)
batches = st.integers(1, 8)
peaks = st.builds(
    Peak, width_px=sides, height_px=sides, batch=batches, peak_gib=st.floats(2.0, 100.0)
)
times = st.builds(
    ServiceTime,
    width_px=st.sampled_from([512, 768]),
    height_px=st.sampled_from([512, 1024]),
    num_steps=st.sampled_from([4, 16, 40]),
    batch=st.sampled_from([1, 2, 4, 8]),
    s_per_image=st.floats(0.01, 60.0),
)


def footprint(**measured: object) -> Footprint:
    common = {"device": "cpu", "device_gib": 64, "torch": "2.13.0", "date": "2026-11-23"}
    return Footprint.model_validate({**common, "weights_gib": 2.0, "load_s": 1.0, **measured})


def batch_times(**seconds: float) -> Footprint:
    """One size, 16 steps: b1=1.0, b2=0.8 and so on."""
    return footprint(
        times=[
            {
                **{"width_px": 768, "height_px": 1024, "num_steps": 16},
                **{"batch": int(batch[1:]), "s_per_image": s_per_image},
            }
            for batch, s_per_image in seconds.items()
        ]
    )


@given(st.lists(peaks, min_size=1, max_size=12), sides, sides, batches)
def test_prediction_is_never_below_a_smaller_measured_pass(
    measured: list[Peak], width_px: int, height_px: int, batch: int
) -> None:
    predicted = footprint(peaks=measured).predict_peak_gib(width_px, height_px, batch)
    assert predicted is not None
    smaller = [p for p in measured if p.num_pixels <= width_px * height_px * batch]
    assert all(predicted >= peak.peak_gib for peak in smaller)
    assert predicted >= min(peak.peak_gib for peak in measured)


@given(st.lists(peaks, min_size=1, max_size=12), sides, sides, batches)
def test_a_larger_batch_is_never_predicted_to_need_less(
    measured: list[Peak], width_px: int, height_px: int, batch: int
) -> None:
    known = footprint(peaks=measured)
    one, more = (known.predict_peak_gib(width_px, height_px, b) for b in (batch, batch + 1))
    assert one is not None
    assert more is not None
    assert more >= one


def test_beyond_what_was_measured_memory_grows_as_it_did() -> None:
    points = [Peak(width_px=100, height_px=100, batch=b, peak_gib=2 + b) for b in (1, 2)]
    assert footprint(peaks=points).predict_peak_gib(100, 100, 4) == pytest.approx(6)
    assert footprint(peaks=points[:1]).predict_peak_gib(100, 100, 4) == pytest.approx(6)


def test_a_pass_as_large_as_one_that_failed_needs_the_whole_device() -> None:
    known = footprint(
        peaks=[Peak(width_px=100, height_px=100, batch=2, peak_gib=3.0)],
        out_of_memory=[Shape(width_px=100, height_px=100, batch=4)],
    )
    assert known.predict_peak_gib(100, 100, 2) == 3.0
    assert known.predict_peak_gib(100, 100, 4) == 64


def test_nothing_measured_predicts_nothing() -> None:
    assert footprint().predict_peak_gib(768, 1024, 1) is None
    assert footprint().s_per_image(768, 1024, 16, 1) is None
    assert footprint().best_batch(768, 1024, 16, limit=8) == 1


@given(st.lists(times, min_size=1, max_size=12, unique_by=lambda t: (t.batch, t.num_steps)))
def test_a_measured_time_is_predicted_as_measured(measured: list[ServiceTime]) -> None:
    known = footprint(times=measured)
    for time in measured:
        predicted = known.s_per_image(time.width_px, time.height_px, time.num_steps, time.batch)
        assert predicted == time.s_per_image


def test_time_between_measured_steps_and_sizes_follows_the_work() -> None:
    measured = [
        ServiceTime(
            width_px=width_px,
            height_px=1000,
            num_steps=num_steps,
            batch=1,
            s_per_image=0.1 + width_px / 1000 * (0.2 + 0.05 * num_steps),
        )
        for width_px in (500, 1000)
        for num_steps in (4, 16)
    ]
    predicted = footprint(times=measured).s_per_image(800, 1000, 40, 3)
    assert predicted == pytest.approx(0.1 + 0.8 * (0.2 + 0.05 * 40), rel=1e-6)


def test_one_measurement_scales_with_steps_and_pixels() -> None:
    known = batch_times(b1=1.6)
    assert known.s_per_image(768, 1024, 32, 1) == pytest.approx(3.2)
    assert known.s_per_image(768, 512, 16, 1) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({"b1": 1.0, "b2": 0.8, "b4": 0.7}, 4),
        ({"b1": 1.0, "b2": 0.94, "b4": 0.92}, 2),
        ({"b1": 1.0, "b2": 0.96}, 1),
        ({"b1": 1.0, "b2": 1.3, "b4": 1.2}, 1),
        ({"b1": 1.0, "b2": 1.3, "b4": 0.9}, 4),
        ({"b2": 0.5, "b4": 0.4}, 1),
    ],
)
def test_a_batch_is_chosen_only_where_it_pays(seconds: dict[str, float], best: int) -> None:
    assert batch_times(**seconds).best_batch(768, 1024, 16, limit=8) == best


def test_best_batch_stays_within_the_limit_and_the_measured_size() -> None:
    known = batch_times(b1=1.0, b2=0.8, b4=0.7)
    assert known.best_batch(768, 1024, 16, limit=3) == 2
    assert known.best_batch(512, 512, 40, limit=8) == 4
    assert known.best_batch(1024, 1024, 16, limit=8) == 1


def test_footprints_of_two_devices_lie_beside_the_bundle(tmp_path: Path) -> None:
    bundle = load_bundle(CONFIGS_DIR / "experts" / "eye.1.yaml").located(tmp_path)
    fingerprint = bundle.fingerprint
    assert load_footprints(bundle) == ()
    cpu = footprint(peaks=[Peak(width_px=64, height_px=64, batch=1, peak_gib=3.0)])
    gpu = footprint(device="NVIDIA L4", driver="580.1")
    remeasured = footprint(weights_gib=3.0)
    for measured in (cpu, gpu, remeasured):
        path = save_footprint(bundle, measured)
    assert path == tmp_path / "eye.1" / "footprint.yaml"
    assert load_footprints(bundle) == (gpu, remeasured)
    assert find_footprint(load_footprints(bundle), "NVIDIA L4") == gpu
    assert find_footprint(load_footprints(bundle), "NVIDIA H200") is None
    assert [file.name for file in path.parent.iterdir()] == ["footprint.yaml"]
    assert bundle.fingerprint == fingerprint


def test_a_broken_footprint_file_is_refused_by_name(tmp_path: Path) -> None:
    bundle = load_bundle(CONFIGS_DIR / "experts" / "eye.1.yaml").located(tmp_path)
    path = save_footprint(bundle, footprint())
    path.write_text(path.read_text().replace("weights_gib: 2.0", "weights_gib: much"))
    with pytest.raises(ConfigError, match=r"eye\.1/footprint\.yaml: footprints\.0\.weights_gib"):
        load_footprints(bundle)
