"""Whether the control plane is new enough, and what this user may do there."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from k8s.doctor.checks import Check, Patient
from k8s.state.findings import dig, labels_of

if TYPE_CHECKING:
    from k8s.control.api import Resource

AREA = "Control plane"
RIGHTS = "Rights"
# KubeRay's kinds have rules (CEL), which are stable from here on.
# Source: https://kubernetes.io/docs/reference/using-api/cel/
MIN_VERSION = (1, 29)
APPLY_VERBS = ("get", "create", "patch")
# Beside what apply writes: (verb, group, plural, subresource, what for).
OTHERS = (
    ("list", "", "pods", "", "status"),
    ("watch", "", "pods", "", "status --watch, wait and logs -f"),
    ("list", "", "events", "", "status, to say why"),
    ("get", "", "pods", "log", "logs"),
    ("list", "ray.io", "rayclusters", "", "status"),
    ("watch", "ray.io", "rayservices", "", "wait"),
    ("delete", "batch", "jobs", "", "apply, of a Job that has ended"),
    ("delete", "ray.io", "rayservices", "", "delete"),
    ("create", "", "secrets", "", "apply, to keep revisions"),
    ("list", "", "secrets", "", "history and rollback"),
)
Right = tuple[str, str, str, str, str]


def check_access(patient: Patient) -> Iterator[Check]:
    version = patient.api.version()
    found = re.match(r"v?(\d+)\.(\d+)", version)
    if found and (int(found[1]), int(found[2])) < MIN_VERSION:
        least = ".".join(map(str, MIN_VERSION))
        yield Check("problem", AREA, f"Kubernetes {version} is too old", f"{least} or later")
    else:
        yield Check("ok", AREA, f"Kubernetes {version} answers at {patient.api.host}")
    yield _check_namespace(patient)
    yield from _check_rights(patient)


def _check_namespace(patient: Patient) -> Check:
    name = patient.namespace
    there = patient.reader.get("v1", "Namespace", name)
    if there is None:
        if not patient.reader.may_read("Namespace", name):
            return Check("unknown", AREA, f"namespace {name} may not be read")
        if any(dig(one, "metadata", "name") == name for one in patient.of_kind("Namespace")):
            return Check("ok", AREA, f"namespace {name} is not there yet; apply makes it")
        return Check(
            "problem",
            AREA,
            f"there is no namespace {name}",
            f"`kubectl create namespace {name}`, or let `sm4ll k8s apply` make it",
        )
    level = labels_of(there).get("pod-security.kubernetes.io/enforce")
    return Check(
        "ok", AREA, f"namespace {name} is there" + (f", pod security {level}" if level else "")
    )


def _check_rights(patient: Patient) -> Iterator[Check]:
    missing: list[Right] = []
    cluster_wide: list[Right] = []
    rights = list(_needed(patient))
    for verb, group, plural, sub, purpose in rights:
        if not patient.api.may(verb, group, plural, patient.namespace, sub):
            missing.append((verb, group, plural, sub, purpose))
    scoped = list(_needed_cluster_wide(patient))
    for verb, group, plural, sub, purpose in scoped:
        if not patient.api.may(verb, group, plural):
            cluster_wide.append((verb, group, plural, sub, purpose))
    for verbs, group, plural, purpose in _grouped(missing):
        yield Check(
            "problem",
            RIGHTS,
            f"may not {verbs} {plural}{f' of {group}' if group else ''} in {patient.namespace}"
            f" (for {purpose})",
            "ask who runs the cluster for a Role with it in this namespace",
        )
    for verbs, group, plural, _ in _grouped(cluster_wide):
        yield Check(
            "warning",
            RIGHTS,
            f"may not {verbs} {plural}{f' of {group}' if group else ''}, which belong to no"
            " namespace",
            "ask who runs the cluster to apply these once, and take them out of the overlay",
        )
    if not missing:
        number = len(rights) + len(scoped) - len(cluster_wide)
        yield Check("ok", RIGHTS, f"{number} rights that apply, status and logs need are there")


def _grouped(rights: list[Right]) -> Iterator[tuple[str, str, str, str]]:
    verbs: dict[tuple[str, str], list[str]] = {}
    purposes: dict[tuple[str, str], list[str]] = {}
    for verb, group, plural, sub, purpose in rights:
        key = group, f"{plural}/{sub}" if sub else plural
        verbs.setdefault(key, []).append(verb)
        purposes.setdefault(key, []).append(purpose)
    for (group, plural), them in verbs.items():
        why = "; ".join(dict.fromkeys(purposes[group, plural]))
        yield ", ".join(dict.fromkeys(them)), group, plural, why


def _needed(patient: Patient) -> Iterator[Right]:
    """In the namespace; of kinds that are installed."""
    seen: set[tuple[str, str, str, str]] = set()
    for found in _kinds(patient):
        if found.namespaced:
            for verb in APPLY_VERBS:
                seen.add((verb, found.group, found.plural, ""))
                yield verb, found.group, found.plural, "", "apply"
    for right in OTHERS:
        knows_ray = patient.api.find_resource("ray.io/v1", "RayService") is not None
        if right[:4] not in seen and (knows_ray or right[1] != "ray.io"):
            yield right


def _needed_cluster_wide(patient: Patient) -> Iterator[Right]:
    for found in _kinds(patient):
        if not found.namespaced:
            for verb in APPLY_VERBS:
                yield verb, found.group, found.plural, "", "apply"


def _kinds(patient: Patient) -> "Iterator[Resource]":
    for api_version, kind in dict.fromkeys(
        (str(one["apiVersion"]), str(one["kind"])) for one in patient.wanted
    ):
        found = patient.api.find_resource(api_version, kind)
        if found is not None:
            yield found
