"""Which GPUs the family uses, at most and at least, by the packing plan. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import floor

from deployments.bundle import Bundle
from deployments.packing.demand import Demand, collect_demands
from deployments.packing.placement import UNITS, Placement
from deployments.packing.planner import PackingPlan, PlannedGpu, plan_packing
from k8s.rendering.shape import Role
from serve.config import FamilyConfig, VersionId

Part = tuple[Role, str]
"""A role and a kind of GPU."""


@dataclass(frozen=True, slots=True)
class GpuUse:
    """What a plan of all replicas and one of the fewest say together."""

    plan: PackingPlan
    """Of all."""
    parts: Mapping[str, tuple[Part, ...]]
    """By deployment: where its replicas may run."""
    pods: Mapping[Part, tuple[int, int]]
    """Fewest and most GPUs of each part, one to a pod."""
    num_gpus: Mapping[str, float]
    """By deployment: what Ray is to count for a replica. Ray knows of no reserve and would fill it:
    to Ray, what may be given away of a GPU is all of it."""


def plan_gpu_use(
    family: FamilyConfig, bundles: Mapping[VersionId, Bundle], placement: Placement
) -> GpuUse | None:
    """None where nothing needs a GPU.

    Raises:
        PackingImpossible: the replicas do not fit the GPUs; says by how much.
    """
    everything = placement.model_copy(update={"replicas": "max"})
    demands = collect_demands(family, bundles, everything).gpu
    if not demands:
        return None
    plan = plan_packing(demands, everything)
    least = placement.model_copy(update={"replicas": "min", "wanted": {}})
    needed = _as_planned(collect_demands(family, bundles, least).gpu, plan)
    fewest, most = _count(plan_packing(needed, least)), _count(plan)
    whole = {name for name, share in plan.num_gpus_by_name.items() if share == 1}
    parts = {
        deployment_name(family, name): tuple((_role(name in whole), kind) for kind in sorted(kinds))
        for name, kinds in plan.kinds_by_name.items()
    }
    num_gpus = {
        deployment_name(family, name): _for_ray(share, plan.kinds_by_name[name], placement)
        for name, share in plan.num_gpus_by_name.items()
    }
    return GpuUse(plan, parts, {part: (fewest[part], most[part]) for part in most}, num_gpus)


def _for_ray(share: float, kinds: Sequence[str], placement: Placement) -> float:
    """Rounded down, or those that fill a GPU exactly would not fit it."""
    if share == 1:
        return share
    usable = max(placement.usable_units(placement.kinds[kind]) for kind in kinds)
    return floor(share * UNITS / usable * UNITS) / UNITS


def deployment_name(family: FamilyConfig, name: str) -> str:
    """Of Serve, for a name of the plan: a version, shared replicas, or a segmenter's deployment."""
    if name.startswith("Segmenter-"):
        return name
    shared = any(name == replicas.name for replicas in family.shared)
    return f"Experts-{name}" if shared else f"Expert-{name}"


def _as_planned(demands: Sequence[Demand], plan: PackingPlan) -> list[Demand]:
    """The fewest replicas lie on the kinds, and have the shares, that all of them have: a
    deployment has one share, and pods of other kinds do not take it."""
    units = {share.name: share.units for planned in plan.gpus for share in planned.shares}
    kinds = plan.kinds_by_name
    return [
        replace(
            demand,
            needs={
                kind: replace(need, units=max(need.units, units[demand.name]))
                for kind, need in demand.needs.items()
                if kind in kinds[demand.name]
            },
        )
        for demand in demands
        if demand.num_replicas
    ]


def _count(plan: PackingPlan) -> Counter[Part]:
    return Counter((_role(_is_whole(planned)), planned.gpu.kind) for planned in plan.used)


def _is_whole(planned: PlannedGpu) -> bool:
    return planned.shares[0].units == UNITS


def _role(is_whole: bool) -> Role:
    return "heavy-gpu" if is_whole else "light-gpu"
