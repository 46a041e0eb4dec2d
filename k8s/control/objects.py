"""Which object is meant, and in which order objects are written; pure."""

import copy
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from k8s.control.connection import Manifest

PREFETCH, MIGRATION = "sm4ll-prefetch", "sm4ll-migrate"
INPUTS = "sm4ll.dev/inputs"
"""Annotation of a Job: a digest of all that it was made of."""

# What others need comes first; what only looks at the pods, or leads to them, comes after them.
STAGES: tuple[tuple[str, ...], ...] = (
    ("Namespace",),
    ("CustomResourceDefinition", "PriorityClass", "ResourceQuota", "LimitRange"),
    ("ServiceAccount", "Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"),
    ("ExternalSecret", "Secret", "ConfigMap", "PersistentVolumeClaim"),
    # Gateways: the one that KubeRay would make has a public address, ours of its name has none.
    ("NetworkPolicy", "Service", "Gateway"),
    (),  # what is named nowhere here
    ("StatefulSet", "Deployment", "DaemonSet"),
    ("Job",),
    ("RayService", "RayCluster"),
    ("PodDisruptionBudget", "CronJob", "HorizontalPodAutoscaler"),
    ("PodMonitor", "ServiceMonitor", "PrometheusRule"),
    ("HTTPRoute", "Ingress"),
)
OTHERS = STAGES.index(())
SERVICE_STAGE = next(i for i, kinds in enumerate(STAGES) if "RayService" in kinds)
MIGRATION_STAGE = SERVICE_STAGE - 0.5


@dataclass(frozen=True, slots=True, order=True)
class Ref:
    """One object by name."""

    kind: str
    name: str
    namespace: str
    api_version: str

    @classmethod
    def of(cls, manifest: Manifest) -> "Ref":
        metadata = manifest["metadata"]
        return cls(
            manifest["kind"],
            metadata["name"],
            metadata.get("namespace", ""),
            manifest["apiVersion"],
        )

    @property
    def is_same_as(self) -> tuple[str, str, str, str]:
        """Versions of a group are views of one object."""
        return self.kind, self.name, self.namespace, self.api_version.rpartition("/")[0]

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


def stage_of(manifest: Manifest) -> float:
    kind = manifest["kind"]
    if is_awaited(manifest) and manifest["metadata"]["name"] == MIGRATION:
        return MIGRATION_STAGE
    found = (i for i, kinds in enumerate(STAGES) if kind in kinds)
    return float(next(found, OTHERS))


def in_order(manifests: Iterable[Manifest]) -> list[Manifest]:
    """As they are to be written: the migration last before the RayService."""
    return sorted(manifests, key=stage_of)


def is_awaited(manifest: Manifest) -> bool:
    """A Job that ends before the RayService is touched: no replica starts without its weights, and
    Serve gives up on one that fails; no router starts on other tables."""
    return bool(manifest["kind"] == "Job" and manifest["metadata"]["name"] in (PREFETCH, MIGRATION))


def namespace_of(manifests: Sequence[Manifest]) -> str | None:
    """Where the RayService is, or else the first thing that is in a namespace at all."""
    first = sorted(manifests, key=lambda one: one["kind"] != "RayService")
    found = (one["metadata"].get("namespace") for one in first)
    return next((name for name in found if name), None)


def image_of(manifests: Sequence[Manifest]) -> str:
    """Of the RayService's head."""
    for one in manifests:
        if one["kind"] == "RayService":
            head = one["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]
            return str(head["containers"][0].get("image", ""))
    return ""


def digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def with_inputs(manifests: Sequence[Manifest]) -> list[Manifest]:
    """Each Job with the digest of itself and of the ConfigMaps that it reads.

    A Job runs once: that what it reads has changed must show in the Job to make it run again.
    """
    maps = {one["metadata"]["name"]: one for one in manifests if one["kind"] == "ConfigMap"}
    return [_with_inputs(one, maps) if one["kind"] == "Job" else one for one in manifests]


def _with_inputs(job: Manifest, maps: dict[str, Manifest]) -> Manifest:
    template = job["spec"]["template"]
    read = sorted(set(_strings(template)) & maps.keys())
    made = copy.deepcopy(job)
    annotations = made["metadata"].setdefault("annotations", {})
    annotations[INPUTS] = digest([job, [maps[name].get("data") for name in read]])[:32]
    return made


def inputs_of(job: Manifest) -> str:
    return str((job["metadata"].get("annotations") or {}).get(INPUTS, ""))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _strings(one)
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one)
