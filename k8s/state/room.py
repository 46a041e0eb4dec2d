"""What room nodes have, and how many pods of each pool find it; pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from k8s.state.findings import Manifest, condition_of, dig, labels_of, name_of
from k8s.state.quantity import parse_quantity
from k8s.state.scheduling import requests_of

GPU_PREFIX = "nvidia.com/"
PRODUCT_LABEL = "nvidia.com/gpu.product"
MEMORY_LABEL = "nvidia.com/gpu.memory"
PODS = "pods"


@dataclass(slots=True)
class NodeRoom:
    """One node, and what is left of it; `take` makes it less."""

    node: Manifest
    free: dict[str, float]

    @property
    def name(self) -> str:
        return name_of(self.node)

    def takes(self, pod: Manifest) -> bool:
        asked = {PODS: 1.0, **requests_of(pod)}
        return admits(self.node, pod) and all(
            self.free.get(resource, 0.0) >= amount for resource, amount in asked.items() if amount
        )

    def take(self, pod: Manifest) -> None:
        for resource, amount in {PODS: 1.0, **requests_of(pod)}.items():
            self.free[resource] = self.free.get(resource, 0.0) - amount


@dataclass(frozen=True, slots=True)
class PoolPods:
    """Pods of one pool, as a worker group describes them."""

    name: str
    pod: Manifest
    """With the `spec` of the template."""
    min_pods: int
    max_pods: int


@dataclass(frozen=True, slots=True)
class Fit:
    """How many pods of a pool find room now."""

    pool: PoolPods
    fitting: int
    reasons: Mapping[str, int] = field(default_factory=dict)
    """Why nodes do not take one more, by number of nodes."""


def measure_room(nodes: Iterable[Manifest], pods: Iterable[Manifest] | None) -> list[NodeRoom]:
    """
    Args:
        pods: whose requests are taken off; None: nobody's, as they may not be read.
    """
    rooms = [NodeRoom(node, _allocatable(node)) for node in nodes]
    by_name = {room.name: room for room in rooms}
    for pod in pods or ():
        room = by_name.get(str(dig(pod, "spec", "nodeName")))
        if room is not None and dig(pod, "status", "phase") not in ("Succeeded", "Failed"):
            room.take(pod)
    return rooms


def _allocatable(node: Manifest) -> dict[str, float]:
    told = dig(node, "status", "allocatable") or {}
    return {PODS: 110.0, **{name: parse_quantity(text) for name, text in told.items()}}


def fit_pools(pools: Sequence[PoolPods], rooms: Sequence[NodeRoom]) -> list[Fit]:
    """Least numbers of all first, those that ask for most before others; then each pool grows in
    what is left as if it were alone. The scheduler spreads, and may find a little less."""
    left = [NodeRoom(room.node, dict(room.free)) for room in rooms]
    order = sorted(pools, key=lambda pool: _size(pool.pod), reverse=True)
    least = {pool.name: _place(pool.pod, pool.min_pods, left) for pool in order}
    fits: list[Fit] = []
    for pool in pools:
        placed = least[pool.name]
        own = [NodeRoom(room.node, dict(room.free)) for room in left]
        if placed == pool.min_pods:
            placed += _place(pool.pod, pool.max_pods - placed, own)
        reasons = {} if placed >= pool.max_pods else _why_not(pool.pod, own)
        fits.append(Fit(pool, placed, reasons))
    return fits


def _size(pod: Manifest) -> tuple[float, float]:
    asked = requests_of(pod)
    gpus = sum(amount for name, amount in asked.items() if name.startswith(GPU_PREFIX))
    return gpus, asked.get("memory", 0.0)


def _place(pod: Manifest, number: int, rooms: Sequence[NodeRoom]) -> int:
    for placed in range(number):
        room = next((room for room in rooms if room.takes(pod)), None)
        if room is None:
            return placed
        room.take(pod)
    return max(0, number)


def _why_not(pod: Manifest, rooms: Sequence[NodeRoom]) -> dict[str, int]:
    asked = {PODS: 1.0, **requests_of(pod)}
    reasons: dict[str, int] = {}
    for room in rooms:
        reason = _first_reason(room, pod, asked)
        reasons[reason] = reasons.get(reason, 0) + 1
    return reasons


def _first_reason(room: NodeRoom, pod: Manifest, asked: Mapping[str, float]) -> str:
    if not is_up(room.node):
        return "not ready or cordoned"
    if not _has_labels(room.node, pod):
        return "not the labels that it asks for"
    taint = _untolerated(room.node, pod)
    if taint is not None:
        return f"taint {taint.get('key')} not tolerated"
    # What a node does not offer at all says more than what is used up.
    offered = _allocatable(room.node)
    for resource, amount in sorted(asked.items(), key=lambda one: one[0] in offered):
        if room.free.get(resource, 0.0) < amount:
            return f"no {resource}" if resource not in offered else f"too little {resource} free"
    return "room"


def admits(node: Manifest, pod: Manifest) -> bool:
    """Whether the scheduler may think of it at all."""
    return is_up(node) and _has_labels(node, pod) and _untolerated(node, pod) is None


def is_up(node: Manifest) -> bool:
    return condition_of(node, "Ready").get("status") == "True" and not dig(
        node, "spec", "unschedulable"
    )


def _untolerated(node: Manifest, pod: Manifest) -> Manifest | None:
    tolerations = dig(pod, "spec", "tolerations") or ()
    for taint in dig(node, "spec", "taints") or ():
        if taint.get("effect") == "PreferNoSchedule":
            continue
        if not any(_tolerates(toleration, taint) for toleration in tolerations):
            return dict(taint)
    return None


def _tolerates(toleration: Manifest, taint: Manifest) -> bool:
    """Source: k8s.io/api core/v1 Toleration.ToleratesTaint."""
    if toleration.get("effect") not in (None, "", taint.get("effect")):
        return False
    if toleration.get("key") not in (None, "", taint.get("key")):
        return False
    if toleration.get("operator") == "Exists":
        return True
    return (toleration.get("value") or "") == (taint.get("value") or "")


def _has_labels(node: Manifest, pod: Manifest) -> bool:
    labels = labels_of(node)
    selector = dig(pod, "spec", "nodeSelector") or {}
    if any(labels.get(key) != value for key, value in selector.items()):
        return False
    terms = dig(
        pod,
        *("spec", "affinity", "nodeAffinity"),
        *("requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms"),
    )
    if not terms:
        return True
    return any(
        all(_matches(rule, labels) for rule in term.get("matchExpressions") or ()) for term in terms
    )


def _matches(rule: Manifest, labels: Mapping[str, str]) -> bool:
    key, values = str(rule.get("key")), [str(value) for value in rule.get("values") or ()]
    found = labels.get(key)
    match rule.get("operator"):
        case "In":
            return found in values
        case "NotIn":
            return found not in values
        case "Exists":
            return found is not None
        case "DoesNotExist":
            return found is None
        case "Gt" | "Lt" as operator:
            number, bound = parse_quantity(found), parse_quantity(values[0] if values else None)
            return found is not None and (number > bound if operator == "Gt" else number < bound)
    return True


def pools_of(service: Manifest) -> list[PoolPods]:
    """The head and every worker group of a RayService."""
    config = dig(service, "spec", "rayClusterConfig") or {}
    head = {"spec": dig(config, "headGroupSpec", "template", "spec") or {}}
    pools = [PoolPods("head", head, 1, 1)]
    for group in config.get("workerGroupSpecs") or ():
        pod = {"spec": dig(group, "template", "spec") or {}}
        hosts = int(group.get("numOfHosts") or 1)
        least, most = int(group.get("minReplicas") or 0), int(group.get("maxReplicas") or 0)
        pools.append(PoolPods(str(group.get("groupName")), pod, hosts * least, hosts * most))
    return pools
