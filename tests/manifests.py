"""The overlays as `kubectl kustomize` builds them, once for all tests of a process."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from k8s.observed import HERE

Manifest = dict[str, Any]
OVERLAYS = ("local", "production")
COMPONENTS = ("quota", "kueue", "external-secrets", "ingress")
DOCUMENTED_SECRETS: Mapping[str, frozenset[str]] = {
    "sm4ll-database": frozenset({"url", "password"}),
    "sm4ll-redis": frozenset({"url", "address", "password"}),
    "sm4ll-blobs": frozenset({"url", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}),
    "sm4ll-admin": frozenset({"token"}),
    "sm4ll-providers": frozenset({"fashn", "openai"}),
    "sm4ll-hub": frozenset({"token"}),
    "sm4ll-ray-token": frozenset({"auth_token"}),
}


def need_kubectl() -> str:
    """Skips without it; not in continuous integration, where nothing that can run is left out."""
    binary = shutil.which("kubectl")
    if binary is None and os.environ.get("CI"):
        pytest.fail("no kubectl, and CI is set: .ci/run installs it")
    if binary is None:
        pytest.skip("no kubectl on this machine (apt-get install kubernetes-client)")
    return binary


def build(folder: Path) -> list[Manifest]:
    done = subprocess.run(
        [need_kubectl(), "kustomize", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr, done.stderr
    return [one for one in yaml.load_all(done.stdout, Loader=yaml.CSafeLoader) if one]


@cache
def overlay(name: str) -> tuple[Manifest, ...]:
    return tuple(build(HERE / "overlays" / name))


def of_kind(manifests: tuple[Manifest, ...], *kinds: str) -> list[Manifest]:
    return [one for one in manifests if one["kind"] in kinds]


def the_ray_service(name: str) -> Manifest:
    (service,) = of_kind(overlay(name), "RayService")
    return service


def name_of(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def pod_templates(manifests: tuple[Manifest, ...]) -> Iterator[tuple[str, Manifest]]:
    """Of whatever makes pods, with where they come from; Ray's with the labels that KubeRay adds.

    Source: kuberay ray-operator/controllers/ray/common/pod.go, labelPod (v1.7.0).
    """
    for one in manifests:
        spec = one.get("spec") or {}
        if one["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job"):
            yield name_of(one), spec["template"]
        elif one["kind"] == "CronJob":
            yield name_of(one), spec["jobTemplate"]["spec"]["template"]
        elif one["kind"] == "RayService":
            cluster = spec["rayClusterConfig"]
            yield name_of(one) + " head", _with_ray_labels(cluster["headGroupSpec"], "head")
            for group in cluster["workerGroupSpecs"]:
                yield f"{name_of(one)} {group['groupName']}", _with_ray_labels(group, "worker")


def _with_ray_labels(group: Mapping[str, Any], node_type: str) -> Manifest:
    template = group["template"]
    metadata = template.get("metadata") or {}
    labels = {
        **(metadata.get("labels") or {}),
        "ray.io/is-ray-node": "yes",
        "ray.io/node-type": node_type,
        "ray.io/group": group.get("groupName", "headgroup"),
    }
    return {**template, "metadata": {**metadata, "labels": labels}}


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """As the API server reads a label selector; an empty one is for all."""
    exact = selector.get("matchLabels") or {}
    return all(labels.get(key) == value for key, value in exact.items()) and all(
        _meets(one, labels) for one in selector.get("matchExpressions") or ()
    )


def _meets(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    key, operator = expression["key"], expression["operator"]
    if operator in ("Exists", "DoesNotExist"):
        return (key in labels) == (operator == "Exists")
    is_in = labels.get(key) in expression["values"]
    return is_in if operator == "In" else not is_in
