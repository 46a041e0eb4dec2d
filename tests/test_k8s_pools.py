"""From bounds and plan to pools of pods: enough for the most, no more than the fewest need."""

from pathlib import Path

import pytest

from deployments.bundle import load_family
from k8s.rendering.pools import PlannedCluster, Pool
from k8s.rendering.shared_memory import GIB, expert_call_bytes, in_experts_bytes, volume_gib
from k8s.rendering.work import count_pods, fewest_pods
from serve.errors import ConfigError, PackingImpossible
from tests.kubernetes_families import (
    H100,
    HEAVY,
    LIGHT,
    plan,
    production,
    write_gpus,
    write_measured,
    write_seven,
    write_yaml,
)
from tests.measured_family import L4

ONE = {"min_replicas": 1, "max_replicas": 1}


def pods_of(cluster: PlannedCluster) -> dict[str, tuple[int, int]]:
    return {pool.name: (pool.min_pods, pool.max_pods) for pool in cluster.pools}


def forty(folder: Path) -> tuple[Path, Path]:
    """Light ones share an L4, garments take a whole one each; ten nodes of four."""
    family = write_seven(
        folder,
        {L4: 5.0},
        {L4: 15.0},
        light={"min_replicas": 1, "max_replicas": 8},
        heavy={"min_replicas": 1, "max_replicas": 10},
    )
    return family, write_gpus(folder, [("l4", 10, L4, 4)])


def test_seven_experts_on_two_gpus_are_one_pool_of_two_pods(tmp_path: Path) -> None:
    family = write_seven(tmp_path, {H100: 7.0}, {H100: 20.0}, light=ONE, heavy=ONE)
    cluster = plan(family, write_gpus(tmp_path, [("dgx", 1, H100, 2)]))
    # No spare pod: there is no third GPU. light-cpu stays for what is added while it runs.
    assert pods_of(cluster) == {
        "router": (2, 9),
        "segment": (2, 5),
        "light-cpu": (0, 1),
        "light-gpu-h100": (2, 2),
    }
    for name in (*LIGHT, *HEAVY):
        assert cluster.places[f"Expert-{name}@1"] == ("light-gpu-h100",)


def test_seven_experts_on_forty_gpus_are_a_light_and_a_heavy_pool(tmp_path: Path) -> None:
    cluster = plan(*forty(tmp_path))
    # 8 L4s hold four light replicas each, and one more may be used; 30 garments have one each,
    # and the last GPU is theirs.
    assert pods_of(cluster)["light-gpu-l4"] == (1, 9)
    assert pods_of(cluster)["heavy-gpu-l4"] == (3, 31)
    assert [cluster.places[f"Expert-{name}@1"] for name in HEAVY] == [("heavy-gpu-l4",)] * 3
    assert [cluster.places[f"Expert-{name}@1"] for name in LIGHT] == [("light-gpu-l4",)] * 4
    assert cluster.family.experts[-1].resources.num_gpus == 1.0


def test_spare_pods_end_where_the_gpus_do(tmp_path: Path) -> None:
    family, _ = forty(tmp_path)
    cluster = plan(family, write_gpus(tmp_path, [("l4", 1, L4, 38)]))
    assert pods_of(cluster)["light-gpu-l4"] == (1, 8)


def test_fewer_gpus_than_the_plan_needs_are_refused_in_numbers(tmp_path: Path) -> None:
    family, _ = forty(tmp_path)
    with pytest.raises(PackingImpossible, match=r"do not fit 12 GPUs"):
        plan(family, write_gpus(tmp_path, [("l4", 3, L4, 4)]))


def test_the_fewest_pods_are_of_the_kinds_that_the_replicas_may_run_on(tmp_path: Path) -> None:
    """All of them need both kinds; the fewest would fit the smaller, at a smaller share, alone."""
    write_measured(tmp_path, "eye@1", {L4: 10.0, H100: 30.0})
    experts = [{"version": "eye@1", "autoscaling": {"min_replicas": 2, "max_replicas": 5}}]
    family = write_yaml(tmp_path / "family.yaml", {"experts": experts})
    cluster = plan(family, write_gpus(tmp_path, [("a", 1, L4, 2), ("b", 1, H100, 1)]))
    pools = [cluster.pool(pool) for pool in cluster.places["Expert-eye@1"]]
    assert [(pool.kind, pool.max_pods) for pool in pools] == [(H100, 1), (L4, 2)]
    assert sum(pool.min_pods for pool in pools) == 1


def test_what_lies_on_one_kind_at_most_is_kept_there_at_its_fewest(tmp_path: Path) -> None:
    """One replica would be cheaper on the L4, but its selector sends it to the H100."""
    write_measured(tmp_path, "eye@1", {L4: 9.0, H100: 9.5})
    experts = [{"version": "eye@1", "autoscaling": {"min_replicas": 1, "max_replicas": 6}}]
    family = write_yaml(tmp_path / "family.yaml", {"experts": experts})
    cluster = plan(family, write_gpus(tmp_path, [("a", 1, L4, 2), ("b", 1, H100, 1)]))
    assert pods_of(cluster)["light-gpu-h100"] == (1, 1)
    assert "light-gpu-l4" not in pods_of(cluster)


def test_a_planned_gpu_is_full_for_ray_too_and_takes_nobody_else(tmp_path: Path) -> None:
    """Three of 6.6 GiB and the reserve fill an L4; a fourth would fit what Ray counts as free."""
    write_measured(tmp_path, "eye@1", {L4: 6.6})
    experts = [{"version": "eye@1", "autoscaling": {"min_replicas": 1, "max_replicas": 6}}]
    family = write_yaml(tmp_path / "family.yaml", {"experts": experts})
    gpus = write_gpus(tmp_path, [("a", 1, L4, 3)], reserve=0.05)
    cluster = plan(family, gpus)
    share = cluster.family.experts[0].resources.num_gpus
    counted = cluster.num_gpus["Expert-eye@1"]
    assert share < counted
    assert 3 * counted <= 1 < 3 * counted + share
    assert pods_of(cluster)["light-gpu-l4"] == (1, 3)


def test_cpu_pools_follow_the_bounds_and_the_shape(tmp_path: Path) -> None:
    experts = [
        {"version": "eye@1", "autoscaling": {"min_replicas": 2, "max_replicas": 10}},
        {"version": "top@1", "autoscaling": {"min_replicas": 0, "max_replicas": 7}},
    ]
    shipped = Path("configs/experts").resolve()
    family = write_yaml(tmp_path / "family.yaml", {"bundles_dir": str(shipped), "experts": experts})
    cluster = plan(family, None)
    # 17 replicas of one CPU in pods of eight, and a spare one.
    assert pods_of(cluster)["light-cpu"] == (1, 4)
    assert cluster.num_cpus["Expert-top@1"] == 1


@pytest.mark.parametrize(
    ("replicas", "cpu", "pods"),
    [
        ([], 4, 0),
        ([3.0, 3.0, 0.1], 4, 2),
        ([0.1] * 10, 1, 1),
        ([0.1] * 11, 1, 2),
        ([2, 1, 1], 2, 2),
    ],
)
def test_pods_are_filled_before_there_is_another(
    replicas: list[float], cpu: int, pods: int
) -> None:
    assert count_pods(replicas, cpu) == pods


@pytest.mark.parametrize(
    ("replicas", "cpu", "pods"),
    [([], 4, 0), ([3.0, 3.0, 0.1], 4, 2), ([0.1] * 10, 1, 1), ([0.5, 0.3, 0.3, 0.5, 0.4], 1, 2)],
)
def test_no_more_pods_are_kept_than_replicas_fill_however_they_lie(
    replicas: list[float], cpu: int, pods: int
) -> None:
    assert fewest_pods(replicas, cpu) == pods
    assert fewest_pods(replicas, cpu) <= count_pods(replicas, cpu)


def test_a_slice_is_asked_for_by_its_own_name_on_the_nodes_of_its_gpu(tmp_path: Path) -> None:
    kind = "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
    write_measured(tmp_path, "eye@1", {H100: 5.0})
    footprint = tmp_path / "experts/eye.1/footprint.yaml"
    footprint.write_text(footprint.read_text().replace(H100, kind).replace("79.6", "9.8"))
    family = write_yaml(tmp_path / "family.yaml", {"experts": [{"version": "eye@1"}]})
    nodes = [{"name": "dgx", "gpus": [{"name": kind, "gib": 9.8, "count": 7}]}]
    gpus = write_yaml(tmp_path / "placement.yaml", {"nodes": nodes})
    (pool,) = (pool for pool in plan(family, gpus).pools if pool.gpu)
    assert pool.name == "heavy-gpu-h100-1g"
    assert pool.gpu is not None
    assert pool.gpu.resource == "nvidia.com/mig-1g.10gb"
    assert pool.gpu.product == "NVIDIA-H100-80GB-HBM3"


def test_a_kind_that_the_shape_does_not_know_is_named_with_the_line_to_add(tmp_path: Path) -> None:
    family, gpus = forty(tmp_path)
    with pytest.raises(ConfigError, match=r"NVIDIA L4, which is not there.*`NVIDIA L4: \{name: "):
        plan(family, gpus, production(gpus={}))


def test_replicas_that_fill_a_gpu_must_find_cpus_beside_it(tmp_path: Path) -> None:
    family, gpus = forty(tmp_path)
    pods = {**production().model_dump()["pods"]}
    pods["light-gpu"] = {"cpu": 3, "memory_gib": 16, "replica_cpus": 1}
    with pytest.raises(ConfigError, match=r"4 replicas on one NVIDIA L4 take 4 CPUs.* has 3"):
        plan(family, gpus, production(pods=pods))


def test_groups_of_the_running_cluster_keep_their_places(tmp_path: Path) -> None:
    """KubeRay takes new groups at the end alone: a first light version behind the heavy ones."""
    family, gpus = forty(tmp_path)
    order = ("router", "segment", "light-cpu", "heavy-gpu-l4")
    cluster = plan(family, gpus, production(group_order=order))
    assert [pool.name for pool in cluster.pools] == [*order, "light-gpu-l4"]


def test_shared_memory_holds_every_call_that_may_be_under_way(tmp_path: Path) -> None:
    family, gpus = forty(tmp_path)
    pods = {**production().model_dump()["pods"]}
    pods["light-gpu"]["shared_memory_gib"] = None
    cluster = plan(family, gpus, production(pods=pods))
    bundle = load_family(family)[1]["eye@1"]
    # 768x1024: crop and mask there, a product of 512x512, four crops back.
    assert expert_call_bytes(bundle) == 768 * 1024 * 16 + 512 * 512 * 3
    pool = cluster.pool("light-gpu-l4")
    in_flight = (
        12 * 8 * expert_call_bytes(bundle)
    )  # twelve replicas by CPUs, two batches of four each
    assert pool.shared_memory_gib == volume_gib(in_flight)
    assert pool.shared_memory_gib * GIB * 0.9 >= in_flight
    assert pool.memory_gib == pool.size.memory_gib + pool.shared_memory_gib


def test_shared_memory_that_would_not_do_is_refused_with_what_would(tmp_path: Path) -> None:
    family, gpus = forty(tmp_path)
    pods = {**production().model_dump()["pods"]}
    pods["light-gpu"]["shared_memory_gib"] = 0.5
    with pytest.raises(ConfigError, match=r"light-gpu: .* 1\.33 GiB .* is 0\.5; say 2 "):
        plan(family, gpus, production(pods=pods))


def test_volume_grows_in_powers_of_two() -> None:
    assert [volume_gib(int(gib * GIB)) for gib in (0, 0.9, 0.91, 1.9, 3.7)] == [1, 1, 2, 4, 8]
    assert in_experts_bytes([], 4) == 0


def test_every_pool_of_a_plan_has_work_for_its_fewest_pods(tmp_path: Path) -> None:
    """A pod without a replica has no proxy and is not ready: none may be kept for ever."""
    cluster = plan(*forty(tmp_path))
    fewest: dict[str, int] = {}
    for deployed in cluster.family.experts:
        pool = cluster.places[f"Expert-{deployed.version}"][0]
        fewest[pool] = fewest.get(pool, 0) + deployed.autoscaling.min_replicas

    def has_work(pool: Pool) -> bool:
        return pool.min_pods <= fewest[pool.name]

    assert all(has_work(pool) for pool in cluster.pools if pool.gpu)
    assert cluster.pool("light-cpu").min_pods == 0


def test_the_last_gpu_is_spare_once(tmp_path: Path) -> None:
    """A light and a heavy pool on one kind of GPU, three of them used of four."""
    write_measured(tmp_path, "eye@1", {L4: 5.0})
    write_measured(tmp_path, "top@1", {L4: 15.0})
    bounds = {"min_replicas": 1, "max_replicas": 2}
    experts = [{"version": name, "autoscaling": bounds} for name in ("eye@1", "top@1")]
    family = write_yaml(tmp_path / "family.yaml", {"experts": experts})
    pods = production().model_dump()["pods"]
    assert pods["light-gpu"]["spare_pods"] == pods["heavy-gpu"]["spare_pods"] == 1
    four, five = (
        plan(family, write_gpus(tmp_path, [("l4", num_nodes, L4, 1)])) for num_nodes in (4, 5)
    )
    assert [pods_of(four)[name][1] for name in ("light-gpu-l4", "heavy-gpu-l4")] == [2, 2]
    assert [pods_of(five)[name][1] for name in ("light-gpu-l4", "heavy-gpu-l4")] == [2, 3]


def test_what_is_said_of_cpus_that_do_not_do_does(tmp_path: Path) -> None:
    """Seven on one GPU: 6 / 7 is 0.857, and seven times 0.86 are more than six."""
    family = write_seven(
        tmp_path,
        {L4: 2.4},
        {L4: 2.4},
        light={"min_replicas": 1, "max_replicas": 1},
        heavy={"min_replicas": 1, "max_replicas": 1},
    )
    gpus = write_gpus(tmp_path, [("l4", 1, L4, 2)])
    shapes = {**production().model_dump()["pods"]}
    light = {"cpu": 6, "memory_gib": 16}
    with pytest.raises(ConfigError, match=r"replica_cpus: [\d.]+") as told:
        plan(family, gpus, production(pods={**shapes, "light-gpu": {**light, "replica_cpus": 1}}))
    advice = float(str(told.value).rpartition("replica_cpus: ")[2])
    plan(family, gpus, production(pods={**shapes, "light-gpu": {**light, "replica_cpus": advice}}))
    plan(family, gpus)  # and as shipped
