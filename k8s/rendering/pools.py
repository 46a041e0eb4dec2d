"""Family and packing plan to pools of pods: which deployments run where, on how many pods. Pure."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor

from deployments.bundle import Bundle
from deployments.options import ExpertGroup, group_experts
from deployments.packing.placement import Placement
from deployments.packing.planner import PackingPlan, with_planned_resources
from k8s.rendering.gpu_use import GpuUse, Part, plan_gpu_use
from k8s.rendering.shape import ClusterShape, GpuProduct, PodSize, Role
from k8s.rendering.shared_memory import (
    in_experts_bytes,
    in_router_bytes,
    in_segmenters_bytes,
    needed_volume_gib,
    volume_gib,
)
from k8s.rendering.work import EPSILON, Work, count_pods, fewest_pods, list_work, with_bounds
from serve.config import (
    FamilyConfig,
    VersionId,
)
from serve.errors import ConfigError

CPU_ROLES: tuple[Role, ...] = ("router", "segment", "light-cpu")


@dataclass(frozen=True, slots=True)
class Pool:
    """Pods that are alike: one worker group of the cluster."""

    name: str
    role: Role
    size: PodSize
    shared_memory_gib: float
    min_pods: int
    max_pods: int
    spare_pods: int = 0
    """Of these, beyond what the plan needs."""
    gpu: GpuProduct | None = None
    """What each pod has one of."""
    kind: str | None = None
    """Of that GPU, as the placement calls it."""
    has_weights: bool = False
    """Something there takes PyTorch, which only the image for GPUs has."""

    @property
    def memory_gib(self) -> float:
        """What a pod may hold: its processes, and what they put into shared memory."""
        return self.size.memory_gib + self.shared_memory_gib


@dataclass(frozen=True, slots=True)
class PlannedCluster:
    """What all documents are made of."""

    family: FamilyConfig
    """With every deployment's share of a GPU as planned."""
    bundles: Mapping[VersionId, Bundle]
    pools: tuple[Pool, ...]
    places: Mapping[str, tuple[str, ...]]
    """Names of the pools that each deployment's replicas may run in."""
    num_cpus: Mapping[str, float]
    """What Ray reserves for a replica of each deployment."""
    num_gpus: Mapping[str, float]
    """The same of GPUs: of the part of one that may be given away (k8s/rendering/gpu_use.py)."""
    plan: PackingPlan | None
    """Of all replicas that there may be; None where nothing needs a GPU."""

    def pool(self, name: str) -> Pool:
        return next(pool for pool in self.pools if pool.name == name)


def plan_cluster(
    family: FamilyConfig,
    bundles: Mapping[VersionId, Bundle],
    shape: ClusterShape,
    placement: Placement | None,
) -> PlannedCluster:
    """
    Args:
        placement: the GPUs there are; with none, every version runs on CPUs.

    Raises:
        PackingImpossible: the replicas do not fit the GPUs; says by how much.
        ConfigError: the shape has no pod for what is planned, or one that is too small.
    """
    family = with_bounds(family, shape)
    use = plan_gpu_use(family, bundles, placement) if placement else None
    if use is not None:
        family = with_planned_resources(family, use.plan)
    works = tuple(list_work(family, bundles))
    parts: Mapping[str, tuple[Part, ...]] = use.parts if use else {}
    num_cpus = {
        work.name: _replica_cpus(work, _size(shape, _role_of(work, parts))) for work in works
    }
    on_cpus = [work for work in works if work.name not in parts]
    groups = group_experts(family, bundles)
    pools = [
        *(_cpu_pool(role, on_cpus, num_cpus, family, groups, shape) for role in CPU_ROLES),
        *_gpu_pools(use, num_cpus, groups, shape),
    ]
    order = {name: at for at, name in enumerate(shape.group_order)}
    pools.sort(key=lambda pool: order.get(pool.name, len(order)))
    places = {
        work.name: tuple(pool_name(part, shape) for part in parts.get(work.name, ()))
        or (work.role,)
        for work in works
    }
    num_gpus = use.num_gpus if use else {}
    plan = use.plan if use else None
    return PlannedCluster(family, bundles, tuple(pools), places, num_cpus, num_gpus, plan)


def pool_name(part: Part, shape: ClusterShape) -> str:
    """`light-gpu-l4`."""
    role, kind = part
    return f"{role}-{_product(shape, kind).name}"


def _product(shape: ClusterShape, kind: str) -> GpuProduct:
    try:
        return shape.gpus[kind]
    except KeyError:
        raise ConfigError(
            f"kubernetes.yaml: gpus: the placement plans for {kind}, which is not there; "
            f"add a line such as `{kind}: {{name: {kind.lower().replace(' ', '-')}}}`"
        ) from None


def _size(shape: ClusterShape, role: Role) -> PodSize:
    try:
        return shape.pods[role]
    except KeyError:
        raise ConfigError(
            f"kubernetes.yaml: pods: the plan has {role} pods, and no size for them"
        ) from None


def _role_of(work: Work, parts: Mapping[str, tuple[Part, ...]]) -> Role:
    return parts[work.name][0][0] if work.name in parts else work.role


def _replica_cpus(work: Work, size: PodSize) -> float:
    # Routers, segmenters and experts share a pod with nothing that is as large as they are.
    alone = size.replica_cpus if work.name not in ("JobRunner", "Judge") else None
    num_cpus = alone if alone is not None else work.resources.num_cpus
    if num_cpus > size.cpu:
        raise ConfigError(
            f"kubernetes.yaml: a replica of {work.name} takes {num_cpus:g} CPUs, and its pod has "
            f"{size.cpu}"
        )
    return num_cpus


def _cpu_pool(
    role: Role,
    works: Sequence[Work],
    num_cpus: Mapping[str, float],
    family: FamilyConfig,
    groups: Sequence[ExpertGroup],
    shape: ClusterShape,
) -> Pool:
    size = _size(shape, role)
    mine = [work for work in works if work.role == role]
    least = [num_cpus[work.name] for work in mine for _ in range(work.autoscaling.min_replicas)]
    most = [num_cpus[work.name] for work in mine for _ in range(work.autoscaling.max_replicas)]
    smallest = min((num_cpus[work.name] for work in mine), default=size.cpu)
    num_places = int(size.cpu / max(smallest, EPSILON) + EPSILON)
    segmenters = [work for work in works if work.name.startswith("Segmenter-")]
    num_segmenters = sum(work.autoscaling.max_replicas for work in segmenters)
    names = {work.name for work in mine}
    in_flight = {
        "router": in_router_bytes(family, groups, num_segmenters),
        "segment": in_segmenters_bytes(family, min(num_places, num_segmenters)),
        "light-cpu": in_experts_bytes([g for g in groups if g.name in names], num_places),
    }[role]
    return Pool(
        name=role,
        role=role,
        size=size,
        shared_memory_gib=_shared_memory_gib(role, size, in_flight),
        min_pods=fewest_pods(least, size.cpu),
        max_pods=count_pods(most, size.cpu) + size.spare_pods,
        spare_pods=size.spare_pods,
        has_weights=any(work.has_weights for work in mine),
    )


def _shared_memory_gib(role: Role, size: PodSize, in_flight_bytes: int) -> float:
    """As the shape says, where that holds what may be in flight.

    Raises:
        ConfigError: it does not.
    """
    if size.shared_memory_gib is None:
        return volume_gib(in_flight_bytes)
    needed_gib = needed_volume_gib(in_flight_bytes)
    if needed_gib > size.shared_memory_gib:
        raise ConfigError(
            f"kubernetes.yaml: pods: {role}: calls under way may need {needed_gib:.2f} GiB of "
            f"shared memory in one pod, and shared_memory_gib is {size.shared_memory_gib:g}; "
            f"say {volume_gib(in_flight_bytes):g} (which makes a new cluster)"
        )
    return size.shared_memory_gib


def _rank(part: Part) -> tuple[str, str]:
    role, kind = part
    return "light" if role == "light-gpu" else "whole", kind


def _gpu_pools(
    use: GpuUse | None,
    num_cpus: Mapping[str, float],
    groups: Sequence[ExpertGroup],
    shape: ClusterShape,
) -> Iterator[Pool]:
    if use is None:
        return
    free = Counter(planned.gpu.kind for planned in use.plan.gpus)
    for (_, kind), (_, most) in use.pods.items():
        free[kind] -= most
    for part in sorted(use.pods, key=_rank):
        spare = min(_size(shape, part[0]).spare_pods, free[part[1]])
        free[part[1]] -= spare
        yield _gpu_pool(part, use, num_cpus, groups, shape, spare)


def _gpu_pool(
    part: Part,
    use: GpuUse,
    num_cpus: Mapping[str, float],
    groups: Sequence[ExpertGroup],
    shape: ClusterShape,
    spare: int,
) -> Pool:
    role, kind = part
    size, product = _size(shape, role), _product(shape, kind)
    mine = [name for name, parts in use.parts.items() if part in parts]
    _check_cpus(part, use, num_cpus, size)
    smallest = min(num_cpus[name] for name in mine)
    num_places = 1 if role == "heavy-gpu" else int(size.cpu / max(smallest, EPSILON) + EPSILON)
    in_flight = in_experts_bytes([group for group in groups if group.name in mine], num_places)
    fewest, most = use.pods[part]
    return Pool(
        name=pool_name(part, shape),
        role=role,
        size=size,
        shared_memory_gib=_shared_memory_gib(role, size, in_flight),
        min_pods=fewest,
        max_pods=most + spare,
        spare_pods=spare,
        gpu=product,
        kind=kind,
        has_weights=True,
    )


def _check_cpus(part: Part, use: GpuUse, num_cpus: Mapping[str, float], size: PodSize) -> None:
    """Ray places a replica where GPU *and* CPUs are free: the plan must not fail for the latter."""
    names = {_plan_name(name): name for name in use.parts}
    for planned in use.plan.used:
        reserved = sum(num_cpus[names[share.name]] for share in planned.shares)
        is_here = planned.gpu.kind == part[1] and part in use.parts[names[planned.shares[0].name]]
        if is_here and reserved > size.cpu + EPSILON:
            raise ConfigError(
                f"kubernetes.yaml: pods: {part[0]}: {len(planned.shares)} replicas on one "
                f"{part[1]} take {reserved:g} CPUs, and the pod has {size.cpu}; give it "
                f"{ceil(reserved)}, or say replica_cpus: "
                f"{floor(100 * size.cpu / len(planned.shares)) / 100:g}"
            )


def _plan_name(deployment: str) -> str:
    return deployment.removeprefix("Experts-").removeprefix("Expert-")
