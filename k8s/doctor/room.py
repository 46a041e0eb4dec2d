"""Whether the nodes have room for what the overlay wants: GPUs, memory, quota."""

from collections.abc import Iterator, Sequence

from k8s.doctor.checks import Check, Patient
from k8s.state.findings import Manifest, dig, labels_of, name_of
from k8s.state.quantity import count, parse_quantity, tell_amount
from k8s.state.room import (
    GPU_PREFIX,
    MEMORY_LABEL,
    PRODUCT_LABEL,
    Fit,
    NodeRoom,
    PoolPods,
    fit_pools,
    is_up,
    measure_room,
    pools_of,
)
from k8s.state.scheduling import requests_of
from k8s.state.snapshot import ORIGIN_LABEL

INCREMENTAL = "NewClusterWithIncrementalUpgrade"


def check_room(patient: Patient) -> Iterator[Check]:
    nodes = patient.reader.list("v1", "Node", None)
    pools = pools_of(patient.service) if patient.service else []
    if nodes is None:
        yield Check(
            "unknown",
            "Nodes",
            "may not be read: whether there are GPUs and room for the pools is not known",
            "ask who runs the cluster to run this, or for `get, list nodes`",
        )
    else:
        yield from _check_nodes(patient, nodes, pools)
    yield from _check_quota(patient, pools)


def _check_nodes(
    patient: Patient, nodes: Sequence[Manifest], pools: Sequence[PoolPods]
) -> Iterator[Check]:
    up = [node for node in nodes if is_up(node)]
    down = len(nodes) - len(up)
    yield Check(
        "ok" if up else "problem",
        "Nodes",
        f"{count(len(up), 'node')} ready" + (f", {down} not ready or cordoned" if down else ""),
        "" if up else "`kubectl get nodes`",
    )
    pods = patient.reader.list("v1", "Pod", None)
    # Its own pods are what is placed here: an apply puts others in their place.
    others = None if pods is None else [pod for pod in pods if not _is_own(pod, patient)]
    if pods is None:
        yield Check(
            "unknown", "Nodes", "what others use may not be read: empty nodes are assumed below"
        )
    rooms = measure_room(nodes, others)
    yield from _check_gpus(rooms, pools)
    for fit in fit_pools(pools, rooms):
        yield _judge_fit(fit)
    yield from _check_surge(patient, pools, rooms)


def _is_own(pod: Manifest, patient: Patient) -> bool:
    cluster = labels_of(pod).get("ray.io/cluster", "")
    name = name_of(patient.service) if patient.service else ""
    return (
        dig(pod, "metadata", "namespace") == patient.namespace
        and bool(name)
        and (cluster.startswith(f"{name}-") or labels_of(pod).get(ORIGIN_LABEL) == name)
    )


def _check_gpus(rooms: Sequence[NodeRoom], pools: Sequence[PoolPods]) -> Iterator[Check]:
    wanted = {
        resource
        for pool in pools
        for resource in requests_of(pool.pod)
        if resource.startswith(GPU_PREFIX) and pool.max_pods
    }
    offered: dict[tuple[str, str, str], list[NodeRoom]] = {}
    for room in rooms:
        allocatable = dig(room.node, "status", "allocatable") or {}
        for resource, amount in allocatable.items():
            if resource.startswith(GPU_PREFIX) and parse_quantity(amount):
                labels = labels_of(room.node)
                product = labels.get(PRODUCT_LABEL, "without a product label")
                memory = labels.get(MEMORY_LABEL, "")
                offered.setdefault((resource, product, memory), []).append(room)
    for (resource, product, memory), them in offered.items():
        total = sum(
            parse_quantity(dig(one.node, "status", "allocatable", resource)) for one in them
        )
        free = sum(max(0.0, one.free.get(resource, 0.0)) for one in them)
        gib = f", {parse_quantity(memory) / 1024:.1f} GiB each" if memory else ""
        yield Check(
            "ok",
            "GPUs",
            f"{product}: {free:g} of {total:g} {resource} free on {count(len(them), 'node')}{gib}",
        )
    for resource in sorted(wanted - {resource for resource, _, _ in offered}):
        yield Check(
            "problem",
            "GPUs",
            f"no node offers {resource}, and the overlay asks for it",
            "GPU nodes with NVIDIA's device plugin (the GPU operator brings it); for MIG slices its"
            " strategy `mixed`",
        )


def _judge_fit(fit: Fit) -> Check:
    pool = fit.pool
    asked = ", ".join(
        f"{tell_amount(name, amount)} {name}"
        for name, amount in sorted(requests_of(pool.pod).items())
        if name != "ephemeral-storage"
    )
    bounds = (
        f"{pool.min_pods}"
        if pool.min_pods == pool.max_pods
        else (f"{pool.min_pods} to {pool.max_pods}")
    )
    why = "; ".join(f"{number} of the nodes: {reason}" for reason, number in fit.reasons.items())
    pods = "pod" if bounds == "1" else "pods"
    says = f"{pool.name}: {bounds} {pods} ({asked or 'nothing asked'}), room for {fit.fitting} now"
    if fit.fitting < pool.min_pods:
        return Check(
            "problem",
            "Room",
            f"{says}. {why}",
            "more (or larger) nodes, smaller pods in configs/kubernetes.yaml, or fewer replicas in"
            " the family; with a cluster autoscaler, see that it may add such nodes",
        )
    if fit.fitting < pool.max_pods:
        return Check(
            "warning",
            "Room",
            f"{says}. {why}",
            "it runs, and cannot grow as far as the family allows; a cluster autoscaler may help",
        )
    return Check("ok", "Room", says)


def _check_surge(
    patient: Patient, pools: Sequence[PoolPods], rooms: Sequence[NodeRoom]
) -> Iterator[Check]:
    """While a cluster is replaced, two of them want room."""
    strategy = dig(patient.service, "spec", "upgradeStrategy", "type") or "NewCluster"
    if not pools or strategy == "None":
        return
    options = dig(patient.service, "spec", "upgradeStrategy", "clusterUpgradeOptions") or {}
    surge = int(options.get("maxSurgePercent") or 100) if strategy == INCREMENTAL else 100
    extra = [
        PoolPods(
            pool.name,
            pool.pod,
            pool.min_pods + -(-pool.min_pods * surge // 100),
            pool.min_pods + -(-pool.min_pods * surge // 100),
        )
        for pool in pools
    ]
    short = [fit.pool.name for fit in fit_pools(extra, rooms) if fit.fitting < fit.pool.min_pods]
    if short:
        yield Check(
            "warning",
            "Room",
            f"no room for a second cluster beside the first (an upgrade starts {surge} % of it):"
            f" {', '.join(short)}",
            "spare nodes during upgrades, a cluster autoscaler, or incremental upgrades with a"
            " small upgrade.surge_percent",
        )
    else:
        yield Check("ok", "Room", f"an upgrade ({surge} % of a second cluster) finds room too")


def _check_quota(patient: Patient, pools: Sequence[PoolPods]) -> Iterator[Check]:
    quotas = patient.reader.list("v1", "ResourceQuota", patient.namespace)
    if quotas is None:
        yield Check("unknown", "Quota", f"quotas of {patient.namespace} may not be read")
        return
    if not quotas:
        yield Check("ok", "Quota", f"{patient.namespace} has none")
    needs = _sum_least(pools)
    for quota in quotas:
        hard = dig(quota, "status", "hard") or dig(quota, "spec", "hard") or {}
        used = dig(quota, "status", "used") or {}
        for resource, limit in sorted(hard.items()):
            left = parse_quantity(limit) - parse_quantity(used.get(resource))
            yield _judge_quota(name_of(quota), resource, left, parse_quantity(limit), needs)


def _sum_least(pools: Sequence[PoolPods]) -> dict[str, float]:
    needs: dict[str, float] = {"pods": float(sum(pool.min_pods for pool in pools))}
    for pool in pools:
        for resource, amount in requests_of(pool.pod).items():
            needs[f"requests.{resource}"] = (
                needs.get(f"requests.{resource}", 0.0) + amount * pool.min_pods
            )
    return {
        **needs,
        "cpu": needs.get("requests.cpu", 0.0),
        "memory": needs.get("requests.memory", 0.0),
    }


def _judge_quota(
    name: str, resource: str, left: float, limit: float, needs: dict[str, float]
) -> Check:
    need = needs.get(resource, 0.0)
    told = f"{tell_amount(resource, left)} of {tell_amount(resource, limit)} left"
    says = f"{name}: {resource}, {told}"
    if not need:
        return Check("ok", "Quota", says)
    says = f"{says}; the fewest pods of one cluster ask for {tell_amount(resource, need)}"
    if need > limit:
        return Check("problem", "Quota", says, "a higher quota; an upgrade needs up to twice that")
    if need > left:
        return Check(
            "warning",
            "Quota",
            says,
            "enough only when this cluster's own pods are what uses it; an upgrade needs more",
        )
    return Check("ok", "Quota", says)
