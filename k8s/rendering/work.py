"""The deployments of a family as work for pods: what each takes, how many pods it fills. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from deployments.bundle import Bundle
from deployments.options import group_experts
from deployments.sources import find_sources
from k8s.rendering.shape import ClusterShape, Role
from serve.config import (
    Autoscaling,
    Config,
    FamilyConfig,
    Resources,
    RouterConfig,
    SegmenterConfig,
    VersionId,
)

EPSILON = 1e-9


@dataclass(frozen=True, slots=True)
class Work:
    """One deployment: where it belongs without a GPU, what a replica takes, how many there are."""

    name: str
    role: Role
    resources: Resources
    autoscaling: Autoscaling
    has_weights: bool = False
    """Then it takes PyTorch, on CPUs as well."""


def list_work(family: FamilyConfig, bundles: Mapping[VersionId, Bundle]) -> Iterator[Work]:
    """Every deployment of the graph (serve/app.py)."""
    router, jobs, segmenter = family.router, family.jobs, family.segmenter
    runners = Autoscaling(min_replicas=jobs.runners, max_replicas=jobs.runners)
    yield Work("Router", "router", router.resources, router.autoscaling)
    yield Work("JobRunner", "router", jobs.resources, runners)
    for masker in {bundle.masker.id: bundle.masker for bundle in bundles.values()}.values():
        name = f"Segmenter-{masker.id}"
        size = segmenter.resources, segmenter.autoscaling
        yield Work(name, "segment", *size, has_weights=_has_weights(masker))
    if family.judge is not None:
        size = family.judge.resources, family.judge.autoscaling
        yield Work("Judge", "segment", *size, has_weights=True)
    for group in group_experts(family, bundles):
        deployed = group.deployed
        size = deployed.resources, deployed.autoscaling
        has_weights = any(_has_weights(bundle.backend) for bundle in group.bundles)
        yield Work(group.name, "light-cpu", *size, has_weights=has_weights)


def _has_weights(config: Config) -> bool:
    return any(True for _ in find_sources(config))


def with_bounds(family: FamilyConfig, shape: ClusterShape) -> FamilyConfig:
    """Routers and segmenters as the shape wants them, where it says so."""
    parts: dict[str, RouterConfig | SegmenterConfig] = {}
    for name, part, bounds in (
        ("router", family.router, shape.routers),
        ("segmenter", family.segmenter, shape.segmenters),
    ):
        if bounds is not None:
            autoscaling = part.autoscaling.model_copy(update=bounds.model_dump())
            parts[name] = part.model_copy(update={"autoscaling": autoscaling})
    return family.model_copy(update=parts)


def fewest_pods(num_cpus: Sequence[float], cpu: float) -> int:
    """No placing of these takes fewer: a pool that keeps so many keeps none without a replica."""
    alone = sum(size > cpu / 2 for size in num_cpus)
    return max(alone, ceil(sum(num_cpus) / cpu - EPSILON))


def count_pods(num_cpus: Sequence[float], cpu: float) -> int:
    """How many pods replicas of these sizes fill, the largest first, each in the first pod that has
    room for it."""
    free: list[float] = []
    for size in sorted(num_cpus, reverse=True):
        at = next((at for at, left in enumerate(free) if left + EPSILON >= size), None)
        if at is None:
            free.append(cpu - size)
        else:
            free[at] -= size
    return len(free)
