"""A small deployment, and a control plane with controllers to roll it out on."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from k8s.changes.planning import Plan, Planner
from k8s.control.api import ControlPlane
from k8s.control.objects import with_inputs
from k8s.control.revisions import Revision, Revisions
from k8s.rollout import Rollout, refuse_problems
from serve.settings import Settings
from tests.kube_controllers import Controllers
from tests.kube_kinds import Manifest
from tests.kube_server import KubeServer, open_kube

SERVE_CONFIG = "applications: [{name: sm4ll, deployments: [{name: Top, max_replicas: 2}]}]\n"
LABELS = {"app.kubernetes.io/part-of": "sm4ll"}


def thing(kind: str, name: str, api_version: str = "v1", **more: object) -> Manifest:
    metadata: Manifest = {"name": name, "labels": LABELS}
    if kind not in ("Namespace", "PriorityClass"):
        metadata["namespace"] = "sm4ll"
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **more}


def pods(image: str, name: str) -> Manifest:
    return {"spec": {"containers": [{"name": name, "image": image}]}}


def deployment(image: str = "sm4ll:1", max_pods: int = 2, **words: str) -> list[Manifest]:
    """What an overlay builds, with one of everything that matters."""
    head = {"rayStartParams": {"num-cpus": "0"}, "template": pods(image, "ray-head")}
    group = {"groupName": "router", "minReplicas": 1, "maxReplicas": max_pods, "replicas": 1}
    ray = {
        "serveConfigV2": SERVE_CONFIG,
        "rayClusterConfig": {
            "rayVersion": "2.60.0",
            "headGroupSpec": head,
            "workerGroupSpecs": [{**group, "template": pods(image, "ray-worker")}],
        },
    }
    job = pods(image, "migrate")
    job["spec"]["volumes"] = [{"name": "seeds", "configMap": {"name": "sm4ll-family"}}]
    manifests = [
        thing("PodDisruptionBudget", "router", "policy/v1", spec={"minAvailable": 1}),
        thing("RayService", "sm4ll", "ray.io/v1", spec=ray),
        thing("Job", "sm4ll-migrate", "batch/v1", spec={"template": job}),
        thing("ConfigMap", "sm4ll-family", data={"family.yaml": "experts: []", **words}),
        thing("Secret", "sm4ll-admin", stringData={"token": "very-secret"}),
        thing("PersistentVolumeClaim", "sm4ll-models", spec={"accessModes": ["ReadWriteMany"]}),
        thing("Service", "api", spec={"ports": [{"port": 80}]}),
        thing("Namespace", "sm4ll"),
    ]
    return with_inputs(copy.deepcopy(manifests))


@dataclass
class Told:
    """A `Teller` that remembers, and can be interrupted."""

    lines: list[str] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)
    interrupt_at: int = 10**9

    def said(self, text: str) -> None:
        self.lines.append(text)
        self._count()

    def doing(self, text: str) -> None:
        self.waits.append(text)
        self._count()

    def _count(self) -> None:
        if len(self.lines) + len(self.waits) == self.interrupt_at:
            raise KeyboardInterrupt


class World:
    """A control plane, and somebody at it."""

    def __init__(self, kube: KubeServer, folder: Path):
        self.kube = kube
        self.controllers = Controllers(kube)
        self.settings = Settings(SM4LL_KUBECONFIG=str(kube.kubeconfig(folder)))
        self.api = ControlPlane.configured(self.settings)
        self.api.sleep = lambda seconds: None
        self.revisions = Revisions(self.api, "sm4ll")
        self.told = Told()

    def plan(self, manifests: list[Manifest], force: bool = False, jobs: bool = True) -> Plan:
        return Planner(self.api, "sm4ll", force).plan(manifests, runs_jobs=jobs)

    def apply(
        self,
        manifests: list[Manifest],
        *,
        plan: Plan | None = None,
        told: Told | None = None,
        force: bool = False,
        timeout_s: float = 10.0,
        sure_after_s: float = 0.0,
    ) -> Revision:
        plan = plan or self.plan(manifests, force)
        refuse_problems(plan)
        rollout = Rollout(
            *(self.api, "sm4ll", told or self.told),
            timeout_s=timeout_s,
            force=force,
            sure_after_s=sure_after_s,
        )
        return rollout.carry_out(plan, manifests, "local", None)

    def state(self) -> dict[tuple[str, str], object]:
        """All that was wanted of what is there."""
        hidden = ("Secret", "Pod", "Lease", "RayCluster")
        return {
            (one.object["kind"], one.object["metadata"]["name"]): {
                part: one.object.get(part) for part in ("spec", "data")
            }
            for one in self.kube.objects.values()
            if one.object["kind"] not in hidden or one.object["metadata"]["name"] == "sm4ll-admin"
        }


@contextmanager
def open_world(folder: Path, missing: tuple[str, ...] = ()) -> Iterator[World]:
    """Nobody waits here until the operator has looked twice: these controllers are at once."""
    with open_kube(missing=missing) as kube, pytest.MonkeyPatch.context() as patch:
        patch.setattr("k8s.rollout.SETTLE_S", 0.0)
        yield World(kube, folder)
