"""What the control plane says of one RayService and all around it, read once.

What this user may not read is left out and named; nothing is judged here.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from k8s.state.explain import CLUSTER_LABEL
from k8s.state.findings import Manifest, dig, labels_of, name_of
from serve.errors import ControlPlaneRefused

if TYPE_CHECKING:
    from k8s.control.api import ControlPlane

RAY = "ray.io/v1"
GATEWAY = "gateway.networking.k8s.io/v1"
PART_OF = "app.kubernetes.io/part-of"
ORIGIN_LABEL = "ray.io/originated-from-cr-name"
MAX_LAST_LINES = 6

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Objects as they were at one moment; an empty tuple is also what may not be read."""

    namespace: str
    name: str
    now_s: float
    knows_ray: bool = True
    """Whether the cluster has KubeRay's kinds at all."""
    service: Manifest | None = None
    other_names: tuple[str, ...] = ()
    """Of the RayServices that there are, where the one asked for is not."""
    clusters: tuple[Manifest, ...] = ()
    pods: tuple[Manifest, ...] = ()
    """Those of the service's clusters, and the others of this system (`part-of`)."""
    events: tuple[Manifest, ...] = ()
    jobs: tuple[Manifest, ...] = ()
    claims: tuple[Manifest, ...] = ()
    services: tuple[Manifest, ...] = ()
    routes: tuple[Manifest, ...] = ()
    """Ingress, Gateway and HTTPRoute."""
    nodes: tuple[Manifest, ...] | None = None
    last_lines: Mapping[tuple[str, str], str] = field(default_factory=dict)
    unreadable: tuple[str, ...] = ()

    def pods_of(self, cluster: str) -> tuple[Manifest, ...]:
        return tuple(pod for pod in self.pods if labels_of(pod).get(CLUSTER_LABEL) == cluster)


class Reader:
    """Reads what may be read; what is forbidden or not installed is nothing."""

    def __init__(self, api: "ControlPlane"):
        self._api = api
        self.unreadable: list[str] = []

    def list(
        self, api_version: str, kind: str, namespace: str | None, labels: str = ""
    ) -> tuple[Manifest, ...] | None:
        """None where it may not be read."""
        if self._api.find_resource(api_version, kind) is None:
            return ()
        return self.attempt(
            f"{kind}s", lambda: self._api.list(api_version, kind, namespace, labels).items
        )

    def get(
        self, api_version: str, kind: str, name: str, namespace: str | None = None
    ) -> Manifest | None:
        """None where it is not there, or may not be read; `may_read` knows which."""
        return self.attempt(
            f"{kind} {name}", lambda: self._api.get(api_version, kind, name, namespace)
        )

    def may_read(self, kind: str, name: str) -> bool:
        return f"{kind} {name}" not in self.unreadable

    def attempt(self, what: str, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except ControlPlaneRefused as exc:
            if exc.http_status not in (403, 404):
                raise
            if exc.http_status == 403:
                self.unreadable.append(what)
            return None


def read_snapshot(
    api: "ControlPlane", namespace: str, name: str, clock: Callable[[], float] = time.time
) -> Snapshot:
    """
    Raises:
        ControlPlaneRefused: even the RayService itself may not be read.
        ControlPlaneUnreachable: nothing answers.
    """
    reader = Reader(api)
    knows_ray = api.find_resource(RAY, "RayService") is not None
    service = api.get(RAY, "RayService", name, namespace) if knows_ray else None
    clusters = _clusters_of(reader, namespace, name)
    pods = _pods_of(reader, namespace, {name_of(cluster) for cluster in clusters}, service)
    return Snapshot(
        namespace=namespace,
        name=name,
        now_s=clock(),
        knows_ray=knows_ray,
        service=service,
        other_names=_names(reader, namespace) if knows_ray and service is None else (),
        clusters=clusters,
        pods=pods,
        events=reader.list("v1", "Event", namespace) or (),
        jobs=_ours(reader.list("batch/v1", "Job", namespace)),
        claims=reader.list("v1", "PersistentVolumeClaim", namespace) or (),
        services=reader.list("v1", "Service", namespace) or (),
        routes=_routes_of(reader, namespace),
        nodes=reader.list("v1", "Node", None),
        last_lines=_read_last_lines(api, reader, namespace, pods),
        unreadable=tuple(reader.unreadable),
    )


def read_revision(api: "ControlPlane", namespace: str) -> str:
    """What was applied last, in words; empty where nothing is kept or it may not be read.

    Apart from the snapshot: a revision brings its manifests along, too many bytes for each look.
    """
    from k8s.control.revisions import Revisions

    found = Reader(api).attempt("revisions", lambda: Revisions(api, namespace).all())
    if not found:
        return ""
    newest = found[0]
    facts = [newest.git_words, f"by {newest.author}", newest.created]
    state = "" if newest.state == "done" else f", {newest.state}"
    return f"{newest.number}{state} ({', '.join(fact for fact in facts if fact)})"


def _clusters_of(reader: Reader, namespace: str, name: str) -> tuple[Manifest, ...]:
    return reader.list(RAY, "RayCluster", namespace, f"{ORIGIN_LABEL}={name}") or ()


def _names(reader: Reader, namespace: str) -> tuple[str, ...]:
    return tuple(name_of(one) for one in reader.list(RAY, "RayService", namespace) or ())


def _pods_of(
    reader: Reader, namespace: str, clusters: set[str], service: Manifest | None
) -> tuple[Manifest, ...]:
    named = clusters | {
        str(dig(service, "status", status, "rayClusterName"))
        for status in ("activeServiceStatus", "pendingServiceStatus")
    }
    return tuple(
        pod
        for pod in reader.list("v1", "Pod", namespace) or ()
        if labels_of(pod).get(CLUSTER_LABEL) in named or labels_of(pod).get(PART_OF) == "sm4ll"
    )


def _ours(objects: tuple[Manifest, ...] | None) -> tuple[Manifest, ...]:
    return tuple(
        one
        for one in objects or ()
        if labels_of(one).get(PART_OF) == "sm4ll" or name_of(one).startswith("sm4ll")
    )


def _routes_of(reader: Reader, namespace: str) -> tuple[Manifest, ...]:
    kinds = (
        ("networking.k8s.io/v1", "Ingress"),
        (GATEWAY, "Gateway"),
        (GATEWAY, "HTTPRoute"),
    )
    return tuple(
        one
        for api_version, kind in kinds
        for one in reader.list(api_version, kind, namespace) or ()
    )


def _read_last_lines(
    api: "ControlPlane", reader: Reader, namespace: str, pods: tuple[Manifest, ...]
) -> Mapping[tuple[str, str], str]:
    """Last words of containers that end again and again: only those, each is a call."""
    lines: dict[tuple[str, str], str] = {}
    for pod in pods:
        for kind in ("initContainerStatuses", "containerStatuses"):
            for status in dig(pod, "status", kind) or ():
                has_ended = dig(status, "lastState", "terminated") is not None
                if dig(status, "state", "waiting", "reason") != "CrashLoopBackOff" or not has_ended:
                    continue
                if len(lines) >= MAX_LAST_LINES:
                    return lines
                key = name_of(pod), str(status["name"])
                lines[key] = _last_line(api, reader, namespace, *key)
    return lines


def _last_line(
    api: "ControlPlane", reader: Reader, namespace: str, pod: str, container: str
) -> str:
    """Empty where nothing of it is left, which is refused with 400."""
    try:
        text = reader.attempt(
            "logs", lambda: api.logs(pod, namespace, container, tail_lines=5, previous=True)
        )
    except ControlPlaneRefused:
        return ""
    lines = [line.strip() for line in (text or "").splitlines() if line.strip()]
    return lines[-1] if lines else ""
