"""What a cluster asks of Kubernetes: pool by pool, and all of it at most."""

from collections import Counter
from dataclasses import dataclass

from k8s.rendering.pools import PlannedCluster
from k8s.rendering.ray_service import AUTOSCALER_CPUS, AUTOSCALER_GIB, HEAD, HEAD_SHARED_MEMORY_GIB
from k8s.rendering.shape import ClusterShape


@dataclass(frozen=True, slots=True)
class PoolTotal:
    """One pool."""

    name: str
    min_pods: int
    max_pods: int
    cpus: float
    """That each pod asks for."""
    memory_gib: float
    """Of each pod."""
    gpu: str | None = None
    """What each pod has one of."""


@dataclass(frozen=True, slots=True)
class Total:
    """All pools at their most, the head with them."""

    max_pods: int
    cpus: float
    memory_gib: float
    gpus: str
    """`3 NVIDIA L4, 1 NVIDIA H100 80GB HBM3`; empty without any."""


def list_totals(cluster: PlannedCluster, shape: ClusterShape) -> tuple[list[PoolTotal], Total]:
    head = PoolTotal(
        HEAD,
        1,
        1,
        shape.head.cpu + AUTOSCALER_CPUS,
        shape.head.memory_gib + HEAD_SHARED_MEMORY_GIB + AUTOSCALER_GIB,
    )
    pools = [
        head,
        *(
            PoolTotal(
                pool.name,
                pool.min_pods,
                pool.max_pods,
                pool.size.cpu_request or pool.size.cpu,
                pool.memory_gib,
                pool.kind,
            )
            for pool in cluster.pools
        ),
    ]
    gpus: Counter[str] = Counter()
    for pool in pools:
        if pool.gpu is not None:
            gpus[pool.gpu] += pool.max_pods
    return pools, Total(
        max_pods=sum(pool.max_pods for pool in pools),
        cpus=sum(pool.max_pods * pool.cpus for pool in pools),
        memory_gib=sum(pool.max_pods * pool.memory_gib for pool in pools),
        gpus=", ".join(f"{count} {kind}" for kind, count in sorted(gpus.items())),
    )
