"""Whether KubeRay is there and new enough, and what else the overlay's kinds come from."""

import re
from collections.abc import Iterator

from k8s.doctor.checks import Check, Patient
from k8s.state.findings import (
    INSTALL_OPERATOR,
    OPERATOR_CHART,
    Manifest,
    condition_of,
    dig,
    name_of,
)
from k8s.state.snapshot import GATEWAY, RAY

AREA = "KubeRay"
OPERATOR_LABEL = "app.kubernetes.io/name=kuberay-operator"
UPGRADE = f"`helm upgrade {OPERATOR_CHART}`"
INCREMENTAL = "NewClusterWithIncrementalUpgrade"
# Before, the gate RayServiceIncrementalUpgrade is alpha and off; deployed and tested with this one.
MIN_VERSION = (1, 7)
BRINGERS = {
    "monitoring.coreos.com": "the Prometheus operator (kube-prometheus-stack)",
    "gateway.networking.k8s.io": "the Gateway API (a controller such as Istio brings it)",
    "kueue.x-k8s.io": "Kueue",
    "external-secrets.io": "the External Secrets operator",
}
MAX_UNKNOWN = 6


def check_operator(patient: Patient) -> Iterator[Check]:
    known = patient.api.find_resource(RAY, "RayService") is not None
    if not known:
        versions = patient.api.served_versions("ray.io")
        said = f"only {', '.join(versions)} of them" if versions else "none"
        yield Check(
            "problem", AREA, f"RayServices (ray.io/v1) are not known here: {said}", INSTALL_OPERATOR
        )
    else:
        yield Check("ok", AREA, "RayServices and RayClusters (ray.io/v1) are known")
        yield from _check_fields(patient)
    yield from _check_deployment(patient)
    if _is_incremental(patient):
        yield from _check_gateway(patient)
    yield from _check_kinds(patient)


def _is_incremental(patient: Patient) -> bool:
    return bool(dig(patient.service, "spec", "upgradeStrategy", "type") == INCREMENTAL)


def _check_fields(patient: Patient) -> Iterator[Check]:
    """An older CRD drops what it does not know, silently."""
    service = patient.service
    if service is None:
        return
    crd = patient.reader.get(
        "apiextensions.k8s.io/v1", "CustomResourceDefinition", "rayservices.ray.io"
    )
    versions = dig(crd, "spec", "versions") or ()
    schema = next(
        (
            dig(one, "schema", "openAPIV3Schema", "properties", "spec")
            for one in versions
            if one.get("name") == "v1"
        ),
        None,
    )
    if not schema:
        yield Check(
            "unknown",
            AREA,
            "whether its kinds have every field cannot be told: their CRDs may not be read",
        )
        return
    unknown = list(find_unknown(service.get("spec") or {}, schema))
    if not unknown:
        yield Check("ok", AREA, "every field of the RayService is known to it")
        return
    more = [f"{len(unknown) - MAX_UNKNOWN} more"] if len(unknown) > MAX_UNKNOWN else []
    fields = ", ".join([*unknown[:MAX_UNKNOWN], *more])
    yield Check(
        "problem",
        AREA,
        f"does not know these fields, and would drop them: {fields}",
        "newer CRDs, which Helm does not upgrade: `kubectl apply --server-side --force-conflicts"
        " -k github.com/ray-project/kuberay/ray-operator/config/crd?ref=v1.7.0`",
    )


def find_unknown(value: object, schema: Manifest, path: str = "") -> Iterator[str]:
    """Paths of what a structural schema has no place for."""
    if isinstance(value, list):
        for one in value:
            yield from find_unknown(one, schema.get("items") or {}, f"{path}[]")
        return
    if not isinstance(value, dict) or schema.get("x-kubernetes-preserve-unknown-fields"):
        return
    properties, others = schema.get("properties"), schema.get("additionalProperties")
    for key, inner in value.items():
        where = f"{path}.{key}" if path else str(key)
        if properties and key in properties:
            yield from find_unknown(inner, properties[key], where)
        elif isinstance(others, dict):
            yield from find_unknown(inner, others, where)
        elif properties is not None and not others:
            yield where


def _check_deployment(patient: Patient) -> Iterator[Check]:
    found = patient.reader.list("apps/v1", "Deployment", None, OPERATOR_LABEL)
    if found is None:
        yield Check(
            "unknown",
            AREA,
            "whether the operator runs may not be read (Deployments of other namespaces)",
            "ask who runs the cluster for its version: 1.7 or later",
        )
        return
    if not found:
        yield Check(
            "problem", AREA, "no operator is installed, under its usual label", INSTALL_OPERATOR
        )
        return
    for deployment in found:
        yield from _judge_operator(patient, deployment)


def _judge_operator(patient: Patient, deployment: Manifest) -> Iterator[Check]:
    where = f"{name_of(deployment)} in {dig(deployment, 'metadata', 'namespace')}"
    container = dig(deployment, "spec", "template", "spec", "containers", 0) or {}
    image = str(container.get("image") or "")
    arguments = " ".join([*(container.get("command") or ()), *(container.get("args") or ())])
    if not dig(deployment, "status", "readyReplicas"):
        yield Check(
            "problem",
            AREA,
            f"the operator ({where}) does not run: no pod of it is ready",
            "`sm4ll k8s logs --operator`",
        )
    watched = re.search(r"--watch-namespace[= ](\S+)", arguments)
    if watched and patient.namespace not in watched[1].strip("\"'").split(","):
        yield Check(
            "problem",
            AREA,
            f"the operator watches {watched[1]} only, not {patient.namespace}",
            "add the namespace to watchNamespace of its Helm chart",
        )
    version = re.search(r":v?(\d+)\.(\d+)(\.\d+)?", image)
    if version is None:
        yield Check("unknown", AREA, f"its version cannot be told from its image, {image}")
    elif (int(version[1]), int(version[2])) < MIN_VERSION:
        says = f"the operator is {version[0].lstrip(':')}; incremental upgrades need 1.7"
        yield Check("problem" if _is_incremental(patient) else "warning", AREA, says, UPGRADE)
    else:
        yield Check("ok", AREA, f"the operator {version[0].lstrip(':')} runs ({where})")
    gates = re.search(r"--feature-gates[= ](\S+)", arguments)
    if gates and "RayServiceIncrementalUpgrade=false" in gates[1] and _is_incremental(patient):
        yield Check(
            "problem",
            AREA,
            "its gate RayServiceIncrementalUpgrade is switched off, and the overlay needs it",
            "take it out of featureGates of the Helm chart",
        )


def _check_gateway(patient: Patient) -> Iterator[Check]:
    area = "Gateway API"
    if patient.api.find_resource(GATEWAY, "HTTPRoute") is None:
        yield Check(
            "problem",
            area,
            "is not installed, and incremental upgrades move traffic through a Gateway",
            "install a controller of it (Istio, Envoy Gateway, your cloud's), or take"
            " upgrade.strategy NewCluster in configs/kubernetes.yaml",
        )
        return
    options = dig(patient.service, "spec", "upgradeStrategy", "clusterUpgradeOptions") or {}
    name = str(options.get("gatewayClassName") or "")
    classes = patient.reader.list(GATEWAY, "GatewayClass", None)
    if classes is None:
        yield Check("unknown", area, f"whether there is a gateway class {name} may not be read")
        return
    chosen = next((one for one in classes if name_of(one) == name), None)
    if chosen is None:
        there = ", ".join(name_of(one) for one in classes) or "none"
        yield Check(
            "problem",
            area,
            f"there is no gateway class {name}; there is: {there}",
            "name one that is there in upgrade.gateway_class of configs/kubernetes.yaml",
        )
    elif condition_of(chosen, "Accepted").get("status") == "False":
        message = condition_of(chosen, "Accepted").get("message")
        yield Check("problem", area, f"no controller takes gateway class {name}: {message}")
    else:
        yield Check("ok", area, f"gateway class {name} is there")


def _check_kinds(patient: Patient) -> Iterator[Check]:
    kinds = dict.fromkeys((str(one["apiVersion"]), str(one["kind"])) for one in patient.wanted)
    for api_version, kind in kinds:
        group = api_version.partition("/")[0]
        if group == "ray.io" or patient.api.find_resource(api_version, kind) is not None:
            continue
        bringer = BRINGERS.get(group, f"what brings {group}")
        yield Check(
            "problem",
            "Kinds",
            f"the overlay has {kind} ({api_version}), which is not known here",
            f"install {bringer}, or take it out of the overlay",
        )
    if not patient.api.served_versions("metrics.k8s.io"):
        yield Check(
            "ok",
            "Kinds",
            "there is no metrics server, and none is needed: only `kubectl top` asks it",
        )
