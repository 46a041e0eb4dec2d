"""How the cluster is: a snapshot, judged, as plain values for the screen and for machines; pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from k8s.state.addresses import find_address
from k8s.state.explain import (
    GROUP_LABEL,
    NODE_TYPE_LABEL,
    Surroundings,
    explain_pod,
    is_ready,
    pool_of,
)
from k8s.state.explain_service import (
    explain_claim,
    explain_cluster,
    explain_job,
    explain_service,
)
from k8s.state.findings import (
    INSTALL_OPERATOR,
    Finding,
    Manifest,
    condition_of,
    dig,
    labels_of,
    merge_alike,
    name_of,
    sort_findings,
)
from k8s.state.quantity import parse_quantity, parse_time
from k8s.state.snapshot import PART_OF, Snapshot

State = Literal["absent", "suspended", "starting", "not ready", "upgrading", "ready"]
Role = Literal["active", "pending", "leaving"]
KUBERAY_VERSION = "ray.io/kuberay-version"
GPU_PREFIX = "nvidia.com/"


@dataclass(frozen=True, slots=True)
class ClusterLine:
    """One RayCluster."""

    name: str
    role: Role
    age_s: float | None
    weight_percent: int | None
    """Share of the traffic; None where the upgrade has no weights."""
    capacity_percent: int | None
    """How much of Serve's replicas it is to have."""


@dataclass(frozen=True, slots=True)
class PoolLine:
    """The pods of one pool in one cluster."""

    cluster: str
    pool: str
    wanted: int
    present: int
    ready: int
    min_pods: int
    max_pods: int
    gpus: float
    """Of each pod."""


@dataclass(frozen=True, slots=True)
class DeploymentLine:
    name: str
    status: str


@dataclass(frozen=True, slots=True)
class ApplicationLine:
    """One Serve application on one cluster."""

    cluster: str
    name: str
    status: str
    deployments: tuple[DeploymentLine, ...]


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """All that `sm4ll k8s status` says."""

    name: str
    namespace: str
    state: State
    is_ready: bool
    """Requests are answered and every application of the active cluster runs."""
    is_upgraded: bool
    """... and what was applied last is what answers."""
    kuberay_version: str
    ray_version: str
    revision: str
    image: str
    endpoints: int
    clusters: tuple[ClusterLine, ...]
    pools: tuple[PoolLine, ...]
    applications: tuple[ApplicationLine, ...]
    findings: tuple[Finding, ...]
    address: str
    from_here: str
    """How to reach it from outside, where the address is only known inside."""
    unreadable: tuple[str, ...]

    @property
    def broken(self) -> tuple[Finding, ...]:
        return tuple(found for found in self.findings if found.weight == "broken")


def judge(seen: Snapshot, revision: str = "") -> ClusterStatus:
    """
    Args:
        revision: what was applied last, in words.
    """
    service = seen.service or {}
    clusters = tuple(_cluster_lines(seen))
    applications = tuple(_application_lines(service))
    ready = _answers(service) and all(
        app.status == "RUNNING" for app in applications if _is_active(service, app.cluster)
    )
    state = _state(seen, ready)
    config = dig(service, "spec", "rayClusterConfig") or {}
    address, from_here = find_address(seen) if seen.service else ("", "")
    return ClusterStatus(
        name=seen.name,
        namespace=seen.namespace,
        state=state,
        is_ready=ready,
        is_upgraded=ready and state == "ready" and _is_observed(service),
        kuberay_version=_annotation(seen.clusters, KUBERAY_VERSION),
        ray_version=str(config.get("rayVersion") or ""),
        revision=revision,
        image=str(dig(config, "headGroupSpec", "template", "spec", "containers", 0, "image") or ""),
        endpoints=int(dig(service, "status", "numServeEndpoints") or 0),
        clusters=clusters,
        pools=tuple(_pool_lines(seen, clusters)),
        applications=applications,
        findings=sort_findings(_find(seen)),
        address=address,
        from_here=from_here,
        unreadable=seen.unreadable,
    )


def _annotation(objects: tuple[Manifest, ...], key: str) -> str:
    values = (dig(one, "metadata", "annotations", key) for one in objects)
    return str(next((value for value in values if value), ""))


def _answers(service: Manifest) -> bool:
    return condition_of(service, "Ready").get("status") == "True"


def _is_observed(service: Manifest) -> bool:
    generation = dig(service, "metadata", "generation") or 0
    return (dig(service, "status", "observedGeneration") or 0) >= generation


def _is_active(service: Manifest, cluster: str) -> bool:
    return bool(dig(service, "status", "activeServiceStatus", "rayClusterName") == cluster)


def _state(seen: Snapshot, ready: bool) -> State:
    if seen.service is None:
        return "absent"
    if condition_of(seen.service, "Suspended").get("status") == "True":
        return "suspended"
    moving = any(
        condition_of(seen.service, kind).get("status") == "True"
        for kind in ("UpgradeInProgress", "RollbackInProgress")
    )
    if moving:
        return "upgrading"
    if ready:
        return "ready" if _is_observed(seen.service) else "upgrading"
    active = dig(seen.service, "status", "activeServiceStatus", "rayClusterName")
    return "not ready" if active else "starting"


def _cluster_lines(seen: Snapshot) -> Iterator[ClusterLine]:
    born = {
        name_of(one): parse_time(dig(one, "metadata", "creationTimestamp")) for one in seen.clusters
    }
    named: set[str] = set()
    roles: tuple[tuple[Role, str], ...] = (
        ("active", "activeServiceStatus"),
        ("pending", "pendingServiceStatus"),
    )
    for role, field in roles:
        status = dig(seen.service, "status", field) or {}
        name = str(status.get("rayClusterName") or "")
        if name and name not in named:
            named.add(name)
            at_s = born.get(name)
            yield ClusterLine(
                name,
                role,
                None if at_s is None else seen.now_s - at_s,
                status.get("trafficRoutedPercent"),
                status.get("targetCapacity"),
            )
    for name, at_s in born.items():
        if name not in named:
            yield ClusterLine(name, "leaving", at_s and seen.now_s - at_s, None, None)


def _pool_lines(seen: Snapshot, lines: tuple[ClusterLine, ...]) -> Iterator[PoolLine]:
    specs = {name_of(one): one.get("spec") or {} for one in seen.clusters}
    for line in lines:
        # Its own: the autoscaler writes there how many pods it wants.
        spec = specs.get(line.name) or dig(seen.service, "spec", "rayClusterConfig") or {}
        pods = [pod for pod in seen.pods_of(line.name) if not _has_ended(pod)]
        heads = [pod for pod in pods if labels_of(pod).get(NODE_TYPE_LABEL) == "head"]
        yield _pool_line(line.name, "head", heads, (1, 1, 1), spec.get("headGroupSpec") or {})
        for group in spec.get("workerGroupSpecs") or ():
            name = str(group.get("groupName"))
            own = [pod for pod in pods if labels_of(pod).get(GROUP_LABEL) == name]
            hosts = int(group.get("numOfHosts") or 1)
            least, most = int(group.get("minReplicas") or 0), int(group.get("maxReplicas") or 0)
            wanted = group.get("replicas")
            bounds = (hosts * (least if wanted is None else int(wanted)), hosts * least)
            yield _pool_line(line.name, name, own, (*bounds, hosts * most), group)


def _has_ended(pod: Manifest) -> bool:
    return dig(pod, "metadata", "deletionTimestamp") is not None or dig(pod, "status", "phase") in (
        "Succeeded",
        "Failed",
    )


def _pool_line(
    cluster: str, name: str, pods: list[Manifest], bounds: tuple[int, int, int], group: Manifest
) -> PoolLine:
    wanted, least, most = bounds
    ready = sum(is_ready(pod) for pod in pods)
    return PoolLine(cluster, name, wanted, len(pods), ready, least, most, gpus_of(group))


def gpus_of(group: Manifest) -> float:
    """GPUs (or slices) of one pod of a worker group."""
    total = 0.0
    for container in dig(group, "template", "spec", "containers") or ():
        for resource, amount in (dig(container, "resources", "limits") or {}).items():
            if resource.startswith(GPU_PREFIX):
                total += parse_quantity(amount)
    return total


def _application_lines(service: Manifest) -> Iterator[ApplicationLine]:
    for field in ("activeServiceStatus", "pendingServiceStatus"):
        status = dig(service, "status", field) or {}
        for name, app in sorted((status.get("applicationStatuses") or {}).items()):
            deployments = tuple(
                DeploymentLine(deployment, str(told.get("status") or ""))
                for deployment, told in sorted((app.get("serveDeploymentStatuses") or {}).items())
            )
            cluster = str(status.get("rayClusterName") or "")
            yield ApplicationLine(cluster, name, str(app.get("status") or ""), deployments)


def _find(seen: Snapshot) -> Iterator[Finding]:
    """Causes before consequences: an application waits for pods, not the other way round."""
    if not seen.knows_ray:
        yield Finding(
            "broken",
            "the Kubernetes cluster",
            "does not know RayServices: the KubeRay operator is not installed",
            f"{INSTALL_OPERATOR}; then `sm4ll k8s doctor`",
        )
        return
    if seen.service is None:
        others = ", ".join(seen.other_names)
        yield Finding(
            "broken",
            f"namespace {seen.namespace}",
            f"has no RayService {seen.name}" + (f"; there is {others}" if others else ""),
            "`sm4ll k8s apply --overlay OVERLAY`, or another --namespace or --name",
        )
    around = Surroundings(seen.now_s, seen.events, seen.claims, seen.nodes, seen.last_lines)
    pods = [(pod, explain_pod(pod, around)) for pod in seen.pods]
    for claim in _claims_of(seen):
        found = explain_claim(claim, seen.events)
        if found is not None:
            yield found
    for job in seen.jobs:
        own = [found for pod, found in pods if found and _is_of_job(pod, job)]
        found = explain_job(job, own)
        if found is not None:
            yield found
    of_jobs = {name_of(pod) for pod, _ in pods for job in seen.jobs if _is_of_job(pod, job)}
    yield from merge_alike(
        [
            (pool_of(pod), found)
            for pod, found in pods
            # A try of a Job that fails is the Job's affair, as long as it has others.
            if found and not (name_of(pod) in of_jobs and _has_ended(pod))
        ]
    )
    for cluster in seen.clusters:
        yield from explain_cluster(cluster)
    if seen.service is not None:
        yield from explain_service(seen.service, seen.events, seen.now_s)


def _claims_of(seen: Snapshot) -> Iterator[Manifest]:
    """Others may live in the same namespace: those that our pods mount, and those of ours."""
    mounted = {
        dig(volume, "persistentVolumeClaim", "claimName")
        for pod in seen.pods
        for volume in dig(pod, "spec", "volumes") or ()
    }
    for claim in seen.claims:
        if name_of(claim) in mounted or labels_of(claim).get(PART_OF) == "sm4ll":
            yield claim


def _is_of_job(pod: Manifest, job: Manifest) -> bool:
    labels: dict[str, Any] = labels_of(pod)
    return name_of(job) in (labels.get("job-name"), labels.get("batch.kubernetes.io/job-name"))
