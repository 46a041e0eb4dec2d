"""What a replica is given covers what was measured; what was not measured is not guessed."""

from pathlib import Path

import pytest

from deployments.bundle import load_family
from deployments.measured import ServiceTime, Shape
from deployments.packing.demand import collect_demands
from serve.errors import ConfigError, PackingImpossible
from serve.settings import CONFIGS_DIR
from tests.measured_family import (
    L4,
    by_version,
    read_family,
    read_placement,
    write_bundle,
    write_footprint,
)

EYE = "experts: [{version: eye@2}]"
KEPT = 1 / 1024
"""GiB of products that the bundles of these tests keep."""
SIZE = {"width_px": 768, "height_px": 1024}


def peak(batch: int, peak_gib: float) -> dict[str, float]:
    return {**SIZE, "batch": batch, "peak_gib": peak_gib}


def seconds(batch: int, s_per_image: float) -> ServiceTime:
    return ServiceTime(**SIZE, num_steps=16, batch=batch, s_per_image=s_per_image)


def test_share_covers_the_measured_peak_and_all_beside_it_rounded_up(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path, "eye@2", backend={"product_cache_mib": 512})
    write_footprint(bundle, 5.0, context_gib=0.4)
    demands = collect_demands(read_family(EYE), by_version(bundle), read_placement(tmp_path))
    (demand,) = demands.gpu
    need = demand.needs[L4]
    assert need.gib == pytest.approx(5.0 + 0.5 + 0.4)
    assert need.units == 2623, "5.9 / 22.5 rounded up"
    assert demand.num_replicas == 2, "the family's default max_replicas"


def test_share_is_enough_for_the_largest_batch_that_pays(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path, "eye@2")
    batches = [peak(1, 5.0), peak(2, 6.0), peak(4, 8.0)]
    write_footprint(
        bundle, 5.0, peaks=batches, times=[seconds(1, 1.0), seconds(2, 0.8), seconds(4, 0.79)]
    )
    family, bundles = read_family(EYE), by_version(bundle)
    need = collect_demands(family, bundles, read_placement(tmp_path)).gpu[0].needs[L4]
    assert (need.batch, need.gib) == (2, pytest.approx(6.0, abs=KEPT))


def test_a_batch_that_does_not_fit_the_gpu_gives_way_to_a_smaller_one(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path, "eye@2")
    write_footprint(
        bundle,
        20.0,
        peaks=[peak(1, 20.0), peak(2, 22.0)],
        out_of_memory=[Shape(**SIZE, batch=4)],
        times=[seconds(1, 1.0), seconds(2, 0.8), seconds(4, 0.5)],
    )
    placement = read_placement(tmp_path, reserve=0.05)
    need = collect_demands(read_family(EYE), by_version(bundle), placement).gpu[0].needs[L4]
    assert (need.batch, need.gib, need.units) == (1, pytest.approx(20.0, abs=KEPT), 10_000)


def test_versions_on_one_base_cost_one_base_and_their_adapters(tmp_path: Path) -> None:
    names = ("eye@2", "shoes@2", "face@2")
    bundles = [write_bundle(tmp_path, version) for version in names]
    for bundle in bundles:
        write_footprint(bundle, 8.1, adapter_gib=0.1)
    family = read_family(
        "shared: [{name: klein, autoscaling: {max_replicas: 3}}]\n"
        f"experts: [{', '.join(f'{{version: {name}, shared: klein}}' for name in names)}]"
    )
    (demand,) = collect_demands(family, by_version(*bundles), read_placement(tmp_path)).gpu
    assert (demand.name, demand.versions, demand.num_replicas) == ("klein", names, 3)
    assert demand.needs[L4].gib == pytest.approx(8.3, abs=KEPT)


def test_wanted_replicas_come_from_the_family_or_the_placement(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path, "eye@2")
    write_footprint(bundle, 5.0)
    family = read_family(
        "experts: [{version: eye@2, autoscaling: {min_replicas: 1, max_replicas: 5}}]"
    )
    wanted = [
        collect_demands(family, by_version(bundle), read_placement(tmp_path, **changes)).gpu[0]
        for changes in ({}, {"replicas": "min"}, {"wanted": {"eye@2": 3}})
    ]
    assert [demand.num_replicas for demand in wanted] == [5, 1, 3]
    with pytest.raises(ConfigError, match=r"no eye@3; it has eye@2"):
        collect_demands(family, by_version(bundle), read_placement(tmp_path, wanted={"eye@3": 1}))


def test_never_measured_is_refused_with_the_command_that_measures(tmp_path: Path) -> None:
    bundles = [write_bundle(tmp_path, version) for version in ("eye@2", "top@2")]
    write_footprint(bundles[1], 5.0, device="NVIDIA H200")
    family = read_family("experts: [{version: eye@2}, {version: top@2}]")
    with pytest.raises(PackingImpossible) as refused:
        collect_demands(family, by_version(*bundles), read_placement(tmp_path))
    never, elsewhere = refused.value.detail.splitlines()
    assert never == "eye@2 was never measured: what it needs on NVIDIA L4 is not known"
    assert elsewhere.startswith("top@2 was measured on NVIDIA H200 only")
    assert "`sm4ll profile eye@2`" in refused.value.remedy
    assert "`sm4ll profile top@2`" in refused.value.remedy


def test_too_large_for_any_gpu_is_refused_by_how_much(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path, "top@2")
    write_footprint(bundle, 31.25)
    family = read_family("experts: [{version: top@2}]")
    with pytest.raises(PackingImpossible) as refused:
        collect_demands(family, by_version(bundle), read_placement(tmp_path, reserve=0.2))
    assert "top@2 needs 31.25 GiB for 768x1024 at batch 1" in refused.value.detail
    assert "NVIDIA L4 has 18.00 of its 22.50 to give: 13.25 GiB short" in refused.value.detail
    assert "speed.fp8: true" in refused.value.remedy
    assert "drop_text_encoders" not in refused.value.remedy, "it is on already"


def test_share_covers_loading_where_that_needs_more_than_painting(tmp_path: Path) -> None:
    """A replica is capped before it loads, text encoders and all."""
    bundle = write_bundle(tmp_path, "eye@2")
    write_footprint(bundle, 5.0, load_peak_gib=9.0, context_gib=0.5)
    demands = collect_demands(read_family(EYE), by_version(bundle), read_placement(tmp_path))
    assert demands.gpu[0].needs[L4].gib == pytest.approx(9.5)
    write_footprint(bundle, 5.0, load_peak_gib=30.0)
    with pytest.raises(PackingImpossible, match=r"eye@2 needs 30\.00 GiB while it loads"):
        collect_demands(read_family(EYE), by_version(bundle), read_placement(tmp_path))


def test_less_memory_than_the_inventory_says_is_what_counts(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path, "eye@2")
    write_footprint(bundle, 5.0, device_gib=20.0)
    need = (
        collect_demands(read_family(EYE), by_version(bundle), read_placement(tmp_path))
        .gpu[0]
        .needs[L4]
    )
    assert need.units == 2501, "5 / 20 and a MiB of products"


def test_segmenters_with_a_gpu_take_what_the_family_declares(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path, "eye@2")
    write_footprint(bundle, 5.0)
    family = read_family(
        f"{EYE}\nsegmenter: {{resources: {{num_gpus: 0.1}}, autoscaling: {{max_replicas: 3}}}}"
    )
    demands = collect_demands(family, by_version(bundle), read_placement(tmp_path)).gpu
    assert [demand.name for demand in demands] == ["eye@2", "Segmenter-classical"]
    assert (demands[1].num_replicas, demands[1].needs[L4].units) == (3, 1000)


def test_the_shipped_family_needs_no_gpu(tmp_path: Path) -> None:
    family, bundles = load_family(CONFIGS_DIR / "family.yaml")
    demands = collect_demands(family, bundles, read_placement(tmp_path))
    assert demands.gpu == ()
    assert {replicas.name: replicas.num_replicas for replicas in demands.cpu}["top@1"] == 4
    assert {replicas.backend for replicas in demands.cpu} == {"warp"}
