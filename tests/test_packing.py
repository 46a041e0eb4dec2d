"""A plan gives away no more than a GPU has, wastes little, moves little, refuses in words."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.packing.bins.bounds import lower_bound
from deployments.packing.bins.solve import pack_bins
from deployments.packing.demand import Demand, Need
from deployments.packing.placement import UNITS, Placement
from deployments.packing.planner import PackingPlan, plan_packing, with_planned_resources
from serve.config import FamilyConfig, load_yaml
from serve.errors import ConfigError, PackingImpossible
from serve.settings import CONFIGS_DIR

L4, H200 = "NVIDIA L4", "NVIDIA H200"
CAPACITY = 9500


def inventory(num_nodes: int = 2, per_node: int = 4, **options: object) -> Placement:
    gpus = [{"name": L4, "gib": 20.0, "count": per_node}]
    nodes = [{"name": "gpu", "count": num_nodes, "gpus": gpus}]
    return Placement.model_validate({"nodes": nodes, **options})


def mixed_inventory(**options: object) -> Placement:
    small = {"name": "small", "count": 6, "gpus": [{"name": L4, "gib": 20.0, "count": 4}]}
    large = {"name": "large", "count": 2, "gpus": [{"name": H200, "gib": 140.0, "count": 2}]}
    return Placement.model_validate({"nodes": [small, large], **options})


def demand(name: str, replicas: int = 1, **gib: float) -> Demand:
    """A version that needs so much: l4=9.2, h200=10."""
    kinds = {"l4": (L4, 20.0), "h200": (H200, 140.0)}
    needs = {}
    for key, needed_gib in gib.items():
        kind, gpu_gib = kinds[key]
        units = int(np.ceil(needed_gib / gpu_gib * UNITS - 1e-9))
        needs[kind] = Need(needed_gib, UNITS if units > UNITS / 2 else units)
    return Demand(name, (name,), replicas, needs)


def places(plan: PackingPlan) -> dict[tuple[str, int], str]:
    return {
        (share.name, share.replica): planned.gpu.id
        for planned in plan.gpus
        for share in planned.shares
    }


def nodes_of(plan: PackingPlan, name: str) -> list[str]:
    return sorted(gpu.split("/")[0] for (owner, _), gpu in places(plan).items() if owner == name)


def assert_holds(plan: PackingPlan, demands: Sequence[Demand], placement: Placement) -> None:
    """What every plan must keep, whatever was asked."""
    wanted = {(d.name, replica) for d in demands for replica in range(d.num_replicas)}
    seen = Counter((s.name, s.replica) for planned in plan.gpus for s in planned.shares)
    assert set(seen) == wanted
    assert set(seen.values()) <= {1}
    needs = {d.name: d.needs for d in demands}
    shares: dict[str, set[int]] = {}
    for planned in plan.gpus:
        total = sum(share.units for share in planned.shares)
        alone = len(planned.shares) == 1 and total == UNITS
        assert alone or total <= placement.usable_units(planned.gpu.gib)
        assert len(planned.shares) <= (placement.max_replicas_per_gpu or UNITS)
        for share in planned.shares:
            shares.setdefault(share.name, set()).add(share.units)
            assert share.units >= needs[share.name][planned.gpu.kind].units
    assert all(len(units) == 1 for units in shares.values()), "Ray knows one num_gpus per name"
    assert len(plan.used) >= plan.lower_bound


# Among them those where packers do badly: just above what divides a GPU.
sizes = st.one_of(
    st.lists(st.integers(200, 9500), min_size=1, max_size=120),
    st.lists(st.integers(2000, 4750), min_size=1, max_size=120),
    st.lists(st.sampled_from([4751, 3167, 2376]), min_size=1, max_size=120),
    st.lists(st.sampled_from([4770, 3190, 2390, 1360]), min_size=1, max_size=120),
    st.lists(st.integers(3168, 3300) | st.integers(2376, 2500), min_size=1, max_size=120),
    st.lists(st.sampled_from([4770, 2415, 2395, 2335]), min_size=1, max_size=120),
)


@settings(deadline=None, max_examples=200)
@given(sizes)
def test_bins_are_at_most_a_twentieth_or_one_above_the_bound(drawn: list[int]) -> None:
    packing = pack_bins(np.array(drawn), CAPACITY)
    assert sorted(at for held in packing.bins for at in held) == list(range(len(drawn)))
    assert all(sum(drawn[at] for at in held) <= CAPACITY for held in packing.bins)
    assert packing.lower_bound <= len(packing.bins)
    assert len(packing.bins) <= max(packing.lower_bound + 1, 1.05 * packing.lower_bound)


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(0.20, 0.49), (0.25, 0.50), (0.15, 0.35), (0.02, 0.5), (1 / 3, 0.5)]),
)
def test_hundreds_of_replicas_stay_within_a_twentieth(seed: int, span: tuple[float, float]) -> None:
    low, high = (int(CAPACITY * part) for part in span)
    drawn = np.random.default_rng(seed).integers(low, high, 400)
    packing = pack_bins(drawn, CAPACITY)
    assert len(packing.bins) <= 1.05 * packing.lower_bound


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_items_cut_from_full_bins_are_put_back_within_a_twentieth(seed: int) -> None:
    """The bound here is the truth: so many bins were cut up."""
    rng = np.random.default_rng(seed)
    num_bins = 100
    cuts = np.sort(rng.integers(0.2 * CAPACITY, 0.8 * CAPACITY, (num_bins, 2)), axis=1)
    pieces = np.diff(cuts, axis=1, prepend=0, append=CAPACITY).ravel()
    packing = pack_bins(pieces[pieces > 0], CAPACITY)
    assert packing.lower_bound <= num_bins
    assert len(packing.bins) <= 1.05 * num_bins


def test_first_fits_worst_case_is_packed_perfectly() -> None:
    quarter = CAPACITY // 4
    worst = [2 * quarter + 20] * 60 + [quarter + 40] * 60
    worst += [quarter + 20] * 60 + [quarter - 40] * 120
    assert len(pack_bins(np.array(worst), CAPACITY).bins) == 90


@given(sizes, st.integers(1, 6))
def test_bound_holds_for_items_per_gpu_too(drawn: list[int], max_items: int) -> None:
    packing = pack_bins(np.array(drawn), CAPACITY, max_items)
    assert max(len(held) for held in packing.bins) <= max_items
    assert len(packing.bins) >= lower_bound(np.array(drawn), CAPACITY, max_items)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.3, 19.0), st.integers(0, 4)), min_size=1, max_size=12),
    st.sampled_from([None, 1, 3]),
)
def test_no_plan_gives_away_more_than_there_is(
    wanted: list[tuple[float, int]], max_replicas_per_gpu: int | None
) -> None:
    placement = inventory(8, 8, max_replicas_per_gpu=max_replicas_per_gpu)
    demands = [demand(f"eye@{at}", n, l4=gib) for at, (gib, n) in enumerate(wanted)]
    plan = plan_packing(demands, placement)
    assert_holds(plan, demands, placement)
    assert plan == plan_packing(demands, placement)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0.5, 19.0), st.booleans(), st.booleans(), st.integers(1, 3)),
        min_size=1,
        max_size=8,
    )
)
def test_kinds_of_gpu_are_mixed_only_where_one_share_is_enough_on_all(
    wanted: list[tuple[float, bool, bool, int]],
) -> None:
    placement = mixed_inventory()
    demands = []
    for at, (gib, on_l4, on_h200, replicas) in enumerate(wanted):
        needs = {"l4": gib} if on_l4 or not on_h200 else {}
        demands.append(demand(f"eye@{at}", replicas, **needs, **({"h200": gib} if on_h200 else {})))
    assert_holds(plan_packing(demands, placement), demands, placement)


def test_heavy_gets_a_whole_gpu_and_light_ones_share() -> None:
    light = [demand(f"eye@{at}", l4=4.0) for at in range(4)]
    plan = plan_packing([demand("top@2", l4=10.1), *light], inventory())
    assert plan.num_gpus_by_name == {"top@2": 1.0, **{f"eye@{at}": 0.2 for at in range(4)}}
    assert len(plan.used) == 2
    (alone,) = [planned for planned in plan.used if len(planned.shares) == 1]
    assert alone.shares[0].name == "top@2"


def test_replicas_of_one_version_lie_on_different_nodes() -> None:
    demands = [demand("eye@1", 3, l4=4.0), demand("face@1", 3, l4=4.1), demand("bg@1", 3, l4=4.2)]
    plan = plan_packing(demands, inventory(3, 1))
    assert len(plan.used) == 3
    for name in ("eye@1", "face@1", "bg@1"):
        assert nodes_of(plan, name) == ["gpu-0", "gpu-1", "gpu-2"]


def test_whole_gpus_of_one_version_lie_on_different_nodes() -> None:
    plan = plan_packing([demand("top@1", 2, l4=15.0), demand("dress@1", 2, l4=16.0)], inventory())
    assert nodes_of(plan, "top@1") == nodes_of(plan, "dress@1") == ["gpu-0", "gpu-1"]


def test_replicas_are_balanced_over_nodes_and_over_the_gpus_of_a_node() -> None:
    demands = [demand("eye@1", 4, l4=9.0), demand("bg@1", 4, l4=9.1)]
    plan = plan_packing(demands, inventory(2, 2))
    assert len(plan.used) == 4
    assert nodes_of(plan, "eye@1") == nodes_of(plan, "bg@1") == ["gpu-0"] * 2 + ["gpu-1"] * 2
    for planned in plan.used:
        assert {share.name for share in planned.shares} == {"eye@1", "bg@1"}


def test_spreading_uses_no_further_gpu() -> None:
    plan = plan_packing([demand("eye@1", 2, l4=4.0)], inventory())
    assert len(plan.used) == 1


def test_reserve_is_kept_in_gib_or_as_a_part_whichever_is_more() -> None:
    nine = [demand("eye@1", 9, l4=2.0)]
    assert len(plan_packing(nine, inventory(reserve=0.1)).used) == 1
    assert len(plan_packing(nine, inventory(reserve=0.1, reserve_gib=2.1)).used) == 2
    for planned in plan_packing(nine, inventory(reserve_gib=2.1)).used:
        assert planned.gpu.gib * (1 - planned.num_gpus) >= 2.1


def test_fewer_replicas_share_a_gpu_where_the_placement_says_so() -> None:
    plan = plan_packing([demand("eye@1", 8, l4=1.0)], inventory(max_replicas_per_gpu=2))
    assert [len(planned.shares) for planned in plan.used] == [2, 2, 2, 2]


def test_a_new_version_moves_nobody() -> None:
    before = [demand("eye@1", 3, l4=6.3), demand("bg@1", 2, l4=5.0), demand("top@1", 2, l4=15.0)]
    plan = plan_packing(before, inventory())
    after = [demand("aaa@1", 2, l4=7.0), *before]
    again = plan_packing(after, inventory(), previous=plan)
    assert_holds(again, after, inventory())
    assert places(plan).items() <= places(again).items()
    assert again.num_kept == plan.num_replicas


def test_only_what_lay_on_a_lost_gpu_moves() -> None:
    demands = [demand(f"eye@{at}", 2, l4=6.0) for at in range(6)]
    plan = plan_packing(demands, inventory(3, 2))
    fewer = inventory(3, 2).model_copy(update={"nodes": inventory(2, 2).nodes})
    lost = {place for place, gpu in places(plan).items() if gpu.startswith("gpu-2/")}
    again = plan_packing(demands, fewer, previous=plan)
    assert_holds(again, demands, fewer)
    stayed = places(plan).keys() - lost
    assert lost
    assert all(places(again)[place] == places(plan)[place] for place in stayed)


def test_a_version_that_grew_moves_and_its_neighbours_stay() -> None:
    before = [demand("eye@1", l4=6.0), demand("bg@1", l4=6.0), demand("face@1", l4=6.0)]
    plan = plan_packing(before, inventory())
    after = [demand("eye@1", l4=9.0), *before[1:]]
    again = plan_packing(after, inventory(), previous=plan)
    assert_holds(again, after, inventory())
    assert places(again)["bg@1", 0] == places(plan)["bg@1", 0]
    assert places(again)["face@1", 0] == places(plan)["face@1", 0]
    assert places(again)["eye@1", 0] != places(plan)["eye@1", 0]


def test_everything_moves_rather_than_being_refused() -> None:
    """Two replicas lie so that the new one has no room, though there is room for all."""
    one = inventory(1, 2)
    apart = [demand("eye@1", l4=9.0), demand("bg@1", l4=9.0), demand("face@1", l4=9.0)]
    plan = plan_packing(apart, one)
    halves = [demand("eye@1", l4=9.0), demand("face@1", l4=9.0), demand("top@1", l4=15.0)]
    again = plan_packing(halves, one, previous=plan)
    assert_holds(again, halves, one)


def test_refusal_says_which_version_is_short_by_how_much_and_what_helps() -> None:
    demands = [demand("top@1", 3, l4=15.0), demand("eye@1", 2, l4=9.0)]
    with pytest.raises(PackingImpossible) as refused:
        plan_packing(demands, inventory(1, 2))
    lines = refused.value.detail.splitlines()
    assert lines[0] == "3 of 5 replicas do not fit 2 GPUs"
    assert lines[1].startswith("top@1: 1 of 3 replicas find no place: each takes a whole GPU")
    assert "eye@1: 2 of 2 replicas" in lines[2]
    assert "9.00 GiB of NVIDIA L4" in lines[2]
    assert "9.00 GiB short" in lines[2]
    assert "2 more NVIDIA L4" in refused.value.remedy
    assert "replicas: min" in refused.value.remedy


def test_what_the_refusal_says_is_missing_is_enough() -> None:
    demands = [demand("top@1", 3, l4=15.0), demand("eye@1", 2, l4=9.0)]
    assert len(plan_packing(demands, inventory(1, 4)).used) == 4


def test_planned_shares_go_into_the_family() -> None:
    text = """
    shared: [{name: klein, autoscaling: {max_replicas: 3}}]
    experts:
      - {version: eye@1, shared: klein}
      - {version: shoes@1, shared: klein}
      - {version: top@1, resources: {num_cpus: 2}}
      - {version: bg@1}
    """
    family = FamilyConfig.model_validate(yaml.safe_load(text))
    shared = Demand("klein", ("eye@1", "shoes@1"), 3, {L4: Need(5.0, 2500)})
    plan = plan_packing([shared, demand("top@1", l4=15.0)], inventory())
    planned = with_planned_resources(family, plan)
    assert planned.shared[0].resources.num_gpus == 0.25
    assert planned.experts[2].resources.num_gpus == 1.0
    assert planned.experts[2].resources.num_cpus == 2
    assert planned.experts[3].resources.num_gpus == 0.0
    written = planned.model_dump(mode="json", exclude_unset=True)
    assert FamilyConfig.model_validate(written) == planned


def test_an_empty_inventory_of_wants_needs_no_gpu() -> None:
    plan = plan_packing([], inventory())
    assert (plan.num_replicas, plan.lower_bound, len(plan.gpus)) == (0, 0, 8)


def test_shipped_placement_loads() -> None:
    assert load_yaml(CONFIGS_DIR / "placement.yaml", Placement).gpus


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([{"name": "a", "gpus": [{"name": L4, "gib": 20}]}] * 2, "two nodes have the same name: a"),
        (
            [{"name": "a", "gpus": [{"name": L4, "gib": 20}, {"name": L4, "gib": 24}]}],
            "NVIDIA L4 has 20.0 GiB in one place and 24.0 in another",
        ),
    ],
)
def test_contradictory_inventory_is_refused(nodes: list[object], said: str, tmp_path: Path) -> None:
    path = tmp_path / "placement.yaml"
    path.write_text(yaml.safe_dump({"nodes": nodes}))
    with pytest.raises(ConfigError, match=said):
        load_yaml(path, Placement)
