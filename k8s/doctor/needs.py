"""Whether what the overlay refers to and does not bring is there: Secrets, volumes, images, tools.

Of Secrets only the names of keys are looked at.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence

from k8s.doctor.checks import Check, Patient
from k8s.state.findings import Manifest, dig, name_of
from k8s.state.secret_needs import SecretNeed, find_secret_needs

DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
# Provisioners whose volumes one node mounts, and those whose volumes many do, where it is known.
# Source: https://kubernetes.io/docs/concepts/storage/persistent-volumes/#access-modes and the
# drivers' own documentation.
ONE_NODE = (
    *("rancher.io/local-path", "k8s.io/minikube-hostpath", "docker.io/hostpath", "ebs.csi.aws.com"),
    *("pd.csi.storage.gke.io", "disk.csi.azure.com", "topolvm", "local.csi", "cinder.csi"),
)
MANY_NODES = (
    *("nfs", "efs.csi.aws.com", "filestore.csi.storage.gke.io", "file.csi.azure.com", "cephfs"),
    *("fsx.csi.aws.com", "fsx.openzfs.csi.aws.com", "lustre", "longhorn", "weka", "quobyte"),
)
MANY_REMEDY = (
    "write a class that many nodes mount at once (NFS, EFS, Filestore, Azure Files, CephFS) into"
    " storageClassName of the claim"
)
KUBECTL = "version 1.32 or later: https://kubernetes.io/docs/tasks/tools/"
MIN_KUBECTL = 27
TIMEOUT_S = 20.0


def check_needs(patient: Patient) -> Iterator[Check]:
    yield from _check_secrets(patient)
    yield from _check_claims(patient)
    yield from _check_images(patient)
    yield from check_tools()


def _check_secrets(patient: Patient) -> Iterator[Check]:
    needs = find_secret_needs(patient.wanted)
    for need in needs:
        yield _check_secret(patient, need)


def _check_secret(patient: Patient, need: SecretNeed) -> Check:
    area, what = "Secrets", f"{need.name} ({', '.join(need.keys + need.optional_keys) or 'any'})"
    there = patient.reader.get("v1", "Secret", need.name, patient.namespace)
    if there is None and not patient.reader.may_read("Secret", need.name):
        return Check("unknown", area, f"whether {what} is there may not be read")
    if there is None and need.is_optional:
        return Check("ok", area, f"{what} is not there, and need not be")
    if there is None:
        keys = "".join(f" --from-literal={key}=..." for key in need.keys)
        kind = f"generic {need.name}{keys}"
        if ".dockerconfigjson" in need.keys:
            kind = f"docker-registry {need.name} --docker-server=... --docker-username=..."
        elif "tls.crt" in need.keys:
            kind = f"tls {need.name} --cert=... --key=..."
        return Check(
            "problem",
            area,
            f"{what} is not there",
            f"`kubectl -n {patient.namespace} create secret {kind}`, or External Secrets",
        )
    has = set(dig(there, "data") or {})
    absent = [key for key in need.keys if key not in has]
    if absent:
        return Check(
            "problem",
            area,
            f"{need.name} has no key {', '.join(absent)}; it has {', '.join(sorted(has)) or 'no'}",
            f"`kubectl -n {patient.namespace} edit secret {need.name}`",
        )
    return Check("ok", area, f"{what} is there")


def _check_claims(patient: Patient) -> Iterator[Check]:
    claims = patient.of_kind("PersistentVolumeClaim")
    if not claims:
        return
    classes = patient.reader.list("storage.k8s.io/v1", "StorageClass", None)
    for claim in claims:
        there = patient.reader.get("v1", "PersistentVolumeClaim", name_of(claim), patient.namespace)
        phase = dig(there, "status", "phase")
        if phase == "Bound":
            size = dig(there, "status", "capacity", "storage") or ""
            yield Check("ok", "Storage", f"claim {name_of(claim)} has its volume {size}".rstrip())
        else:
            yield _check_class(claim, classes)


def _check_class(claim: Manifest, classes: Sequence[Manifest] | None) -> Check:
    area, name = "Storage", name_of(claim)
    wanted = dig(claim, "spec", "storageClassName")
    if classes is None:
        return Check("unknown", area, f"which storage class claim {name} gets may not be read")
    if wanted:
        chosen = next((one for one in classes if name_of(one) == wanted), None)
    else:
        chosen = next((one for one in classes if _is_default(one)), None)
    there = ", ".join(name_of(one) for one in classes) or "none"
    if chosen is None:
        says = (
            f"there is no storage class {wanted}" if wanted else "no storage class is the default"
        )
        return Check(
            "problem",
            area,
            f"{says}, for claim {name}; there is: {there}",
            "write one that is there into storageClassName of the claim",
        )
    provisioner = str(chosen.get("provisioner") or "")
    said = f"claim {name} gets class {name_of(chosen)} ({provisioner})"
    if "ReadWriteMany" not in (dig(claim, "spec", "accessModes") or ()):
        return Check("ok", area, said)
    if any(known in provisioner for known in MANY_NODES):
        return Check("ok", area, f"{said}, which many nodes can mount")
    if any(known in provisioner for known in ONE_NODE):
        return Check(
            "problem", area, f"{said}, which only one node can mount at a time", MANY_REMEDY
        )
    return Check(
        "warning", area, f"{said}; whether many nodes can mount it is not known", MANY_REMEDY
    )


def _is_default(storage_class: Manifest) -> bool:
    return str(dig(storage_class, "metadata", "annotations", DEFAULT_CLASS)) == "true"


def _check_images(patient: Patient) -> Iterator[Check]:
    """A registry is asked by nodes, with their credentials: from here one can only see what they
    have already."""
    images = sorted(set(_images(patient.wanted)))
    nodes = patient.reader.list("v1", "Node", None)
    for image in images:
        if not nodes:
            continue
        has = sum(any(image in (told.get("names") or ()) for told in _images_on(n)) for n in nodes)
        if has:
            yield Check("ok", "Images", f"{image} is on {has} of {len(nodes)} nodes")
    unseen = [
        image
        for image in images
        if not any(image in (t.get("names") or ()) for n in nodes or () for t in _images_on(n))
    ]
    if unseen:
        yield Check(
            "unknown",
            "Images",
            f"whether nodes can pull {', '.join(unseen)} shows when a pod tries; see `sm4ll k8s"
            " status` then",
        )


def _images_on(node: Manifest) -> Sequence[Manifest]:
    """The kubelet tells its 50 largest."""
    return dig(node, "status", "images") or ()


def _images(value: object) -> Iterator[str]:
    if isinstance(value, list):
        for one in value:
            yield from _images(one)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key in ("containers", "initContainers") and isinstance(inner, list):
                yield from (str(one["image"]) for one in inner if one.get("image"))
            else:
                yield from _images(inner)


def check_tools() -> Iterator[Check]:
    """What builds overlays on this machine."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        yield Check("problem", "Here", "kubectl is not installed; it builds the overlays", KUBECTL)
        return
    told = subprocess.run(
        [kubectl, "version", "--client", "-o", "json"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    try:
        versions = json.loads(told.stdout)
        minor = int(str(dig(versions, "clientVersion", "minor")).rstrip("+"))
    except ValueError:
        yield Check("warning", "Here", f"kubectl does not say its version: {told.stderr.strip()}")
        return
    kustomize = versions.get("kustomizeVersion") or "unknown"
    said = f"kubectl {dig(versions, 'clientVersion', 'gitVersion')} with kustomize {kustomize}"
    if minor < MIN_KUBECTL:
        yield Check("problem", "Here", f"{said} is too old for the overlays", KUBECTL)
    else:
        yield Check("ok", "Here", said)
