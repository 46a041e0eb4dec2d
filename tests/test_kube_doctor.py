"""Each thing that a cluster may lack is named by `sm4ll k8s doctor`, with what helps."""

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from k8s.control.api import ControlPlane
from k8s.doctor.checks import Check, examine
from k8s.doctor.needs import check_tools
from k8s.doctor.operator import find_unknown
from k8s.state.room import PoolPods, admits, fit_pools, measure_room
from k8s.state.secret_needs import SecretNeed, find_secret_needs
from serve.cli import app
from serve.settings import Settings
from tests.kube_server import Fault, KubeServer, open_kube
from tests.kube_worlds import condition, fill, healthy, node, pod, service

Manifest = dict[str, Any]
NAMESPACES = ("default", "sm4ll", "kuberay-system")


@pytest.fixture
def kube() -> Iterator[KubeServer]:
    with open_kube(namespaces=NAMESPACES) as server:
        yield server


def operator(image: str = "quay.io/kuberay/operator:v1.7.0", *arguments: str) -> Manifest:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": "kuberay-operator",
            "namespace": "kuberay-system",
            "labels": {"app.kubernetes.io/name": "kuberay-operator"},
        },
        "spec": {"template": {"spec": {"containers": [{"image": image, "args": list(arguments)}]}}},
        "status": {"readyReplicas": 1},
    }


def wanted() -> list[Manifest]:
    """What an overlay brings, in small."""
    one = service()
    one["spec"]["upgradeStrategy"] = {
        "type": "NewClusterWithIncrementalUpgrade",
        "clusterUpgradeOptions": {"gatewayClassName": "istio", "maxSurgePercent": 50},
    }
    worker = one["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]
    worker["containers"][0]["env"] = [
        {"name": "U", "valueFrom": {"secretKeyRef": {"name": "sm4ll-database", "key": "url"}}},
        {
            "name": "K",
            "valueFrom": {
                "secretKeyRef": {"name": "sm4ll-providers", "key": "fashn", "optional": True}
            },
        },
    ]
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "sm4ll-models"},
        "spec": {"accessModes": ["ReadWriteMany"]},
    }
    return [one, claim]


def storage_class(provisioner: str, default: bool = True) -> Manifest:
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": "shared",
            "annotations": {"storageclass.kubernetes.io/is-default-class": str(default).lower()},
        },
        "provisioner": provisioner,
    }


def secret(name: str, *keys: str) -> Manifest:
    coded = base64.b64encode(b"hush").decode()
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name},
        "data": dict.fromkeys(keys, coded),
    }


def gateway_class(accepted: bool = True) -> Manifest:
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "GatewayClass",
        "metadata": {"name": "istio"},
        "spec": {"controllerName": "istio.io/gateway-controller"},
        "status": {"conditions": [condition("Accepted", accepted, message="no controller")]},
    }


def crd(*fields: str) -> Manifest:
    properties: Manifest = {name: {"type": "object"} for name in fields}
    schema = {"properties": {"spec": {"properties": properties}}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "rayservices.ray.io"},
        "spec": {"versions": [{"name": "v1", "schema": {"openAPIV3Schema": schema}}]},
    }


def equipped() -> list[Manifest]:
    return [
        operator(),
        crd("rayClusterConfig", "serveConfigV2", "upgradeStrategy"),
        gateway_class(),
        storage_class("nfs.csi.k8s.io"),
        secret("sm4ll-database", "url"),
        *(node(name) for name in ("cpu-a", "cpu-b", "cpu-c")),
        node("gpu-a", gpus=4),
    ]


def look(kube: KubeServer, folder: Path, objects: list[Manifest] | None = None) -> list[Check]:
    plane = ControlPlane.configured(Settings(SM4LL_KUBECONFIG=str(kube.kubeconfig(folder))))
    plane.sleep = lambda seconds: None
    return list(examine(plane, "sm4ll", "sm4ll", wanted() if objects is None else objects))


def bad(checks: list[Check]) -> dict[str, Check]:
    """Problems and warnings by what they say; the local kubectl is another test's."""
    return {
        check.says: check
        for check in checks
        if check.verdict in ("problem", "warning")
        and check.area != "Here"
        and "metrics server" not in check.says
    }


def one(found: dict[str, Check], words: str) -> Check:
    (match,) = (check for says, check in found.items() if words in says)
    return match


def test_a_cluster_that_has_everything_is_told_so(kube: KubeServer, tmp_path: Path) -> None:
    fill(kube, equipped())
    checks = look(kube, tmp_path)
    assert bad(checks) == {}
    said = "\n".join(check.says for check in checks)
    for words in (
        "the operator v1.7.0 runs (kuberay-operator in kuberay-system)",
        "every field of the RayService is known",
        "gateway class istio is there",
        "sm4ll-database (url) is there",
        "sm4ll-providers (fashn) is not there, and need not be",
        "class shared (nfs.csi.k8s.io), which many nodes can mount",
        "NVIDIA-L4: 4 of 4 nvidia.com/gpu free on 1 node, 22.5 GiB each",
        "light-gpu-l4: 1 to 4 pods (4 cpu, 16 GiB memory, 1 nvidia.com/gpu), room for 4 now",
        "an upgrade (50 % of a second cluster) finds room too",
    ):
        assert words in said, words
    assert "hush" not in repr(checks), "values of Secrets are never told"


def test_an_empty_cluster_lacks_everything_and_each_has_a_remedy(tmp_path: Path) -> None:
    with open_kube(
        missing=("ray.io", "gateway.networking.k8s.io"), namespaces=("default",)
    ) as bare:
        found = bad(look(bare, tmp_path))
    for words in (
        "there is no namespace sm4ll",
        "RayServices (ray.io/v1) are not known here: none",
        "no operator is installed",
        "is not installed, and incremental upgrades move traffic",
        "sm4ll-database (url) is not there",
        "no storage class is the default, for claim sm4ll-models; there is: none",
        "0 nodes ready",
        "no node offers nvidia.com/gpu",
        "router: 2 to 4 pods",
    ):
        check = one(found, words)
        assert check.verdict == "problem"
        assert check.remedy, words


@pytest.mark.parametrize(
    ("image", "arguments", "words"),
    [
        ("quay.io/kuberay/operator:v1.4.2", (), "the operator is v1.4.2; incremental upgrades"),
        ("op:v1.7.0", ("--watch-namespace=a,b",), "watches a,b only, not sm4ll"),
        (
            "op:v1.7.0",
            ("--feature-gates=RayServiceIncrementalUpgrade=false",),
            "RayServiceIncrementalUpgrade is switched off",
        ),
    ],
)
def test_an_operator_that_cannot_do_it(
    kube: KubeServer, tmp_path: Path, image: str, arguments: tuple[str, ...], words: str
) -> None:
    fill(kube, equipped())
    kube.put(operator(image, *arguments))
    found = bad(look(kube, tmp_path))
    assert one(found, words).verdict == "problem"
    assert len(found) == 1


def test_an_operator_that_is_down(kube: KubeServer, tmp_path: Path) -> None:
    fill(kube, [*equipped(), {**operator(), "status": {}}])
    check = one(bad(look(kube, tmp_path)), "does not run: no pod of it is ready")
    assert "sm4ll k8s logs --operator" in check.remedy


def test_an_old_crd_would_drop_fields(kube: KubeServer, tmp_path: Path) -> None:
    fill(kube, [*equipped(), crd("rayClusterConfig", "serveConfigV2")])
    check = one(bad(look(kube, tmp_path)), "would drop them: upgradeStrategy")
    assert "kubectl apply --server-side" in check.remedy


def test_unknown_fields_are_found_at_any_depth() -> None:
    schema = {
        "properties": {
            "a": {"items": {"properties": {"b": {}}}},
            "free": {"x-kubernetes-preserve-unknown-fields": True},
            "map": {"additionalProperties": {"type": "string"}},
        }
    }
    value = {"a": [{"b": 1, "c": 2}], "free": {"x": 1}, "map": {"y": "z"}, "d": 3}
    assert list(find_unknown(value, schema)) == ["a[].c", "d"]


def test_the_rendered_service_is_known_to_the_operators_real_kinds() -> None:
    root = Path(__file__).parents[1]
    file = root.parent / "shared/kuberay/ray.io_rayservices.yaml"
    if not file.is_file():
        pytest.skip("KubeRay's CustomResourceDefinitions are not at hand")
    versions = yaml.load(file.read_text(), yaml.CSafeLoader)["spec"]["versions"]
    (schema,) = (one["schema"]["openAPIV3Schema"] for one in versions if one["name"] == "v1")
    rendered = root / "k8s/overlays/production/rendered/rayservice.yaml"
    one = yaml.load(rendered.read_text(), yaml.CSafeLoader)
    assert list(find_unknown(one["spec"], schema["properties"]["spec"])) == []
    one["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["labelz"] = {}
    assert list(find_unknown(one["spec"], schema["properties"]["spec"])) == [
        "rayClusterConfig.workerGroupSpecs[].labelz"
    ]


def test_rights_that_are_missing_are_named_with_what_needs_them(
    kube: KubeServer, tmp_path: Path
) -> None:
    fill(kube, equipped())
    kube.forbidden = {("patch", "rayservices"), ("get", "pods"), ("create", "namespaces")}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "sm4ll"}}
    found = bad(look(kube, tmp_path, [*wanted(), namespace]))
    assert one(found, "may not patch rayservices of ray.io in sm4ll (for apply)")
    assert one(found, "may not get pods/log in sm4ll (for logs)")
    assert one(found, "may not create namespaces").verdict == "warning"


def test_an_admin_of_the_namespace_alone_gets_question_marks_not_failures(
    kube: KubeServer, tmp_path: Path
) -> None:
    fill(kube, equipped())
    for path in (
        *("/apis/apps/v1/deployments", "/gatewayclasses", "/storageclasses", "/resourcequotas"),
        *("/customresourcedefinitions", "/api/v1/nodes", "/api/v1/nodes", "/secrets/"),
    ):
        kube.fail("GET", path, Fault(403, "forbidden: cannot list at the cluster scope"))
    checks = look(kube, tmp_path)
    assert bad(checks) == {}
    unknown = [check.says for check in checks if check.verdict == "unknown"]
    for words in ("operator runs", "gateway class", "storage class", "quotas", "CRDs", "GPUs"):
        assert any(words in says for says in unknown), words


@pytest.mark.parametrize(
    ("change", "words", "verdict"),
    [
        (storage_class("rancher.io/local-path"), "only one node can mount", "problem"),
        (storage_class("acme.io/san"), "is not known", "warning"),
        (storage_class("nfs", default=False), "no storage class is the default", "problem"),
        (secret("sm4ll-database", "uri"), "has no key url; it has uri", "problem"),
        (gateway_class(accepted=False), "no controller takes gateway class istio", "problem"),
    ],
)
def test_each_thing_that_does_not_fit(
    kube: KubeServer, tmp_path: Path, change: Manifest, words: str, verdict: str
) -> None:
    fill(kube, [*equipped(), change])
    found = bad(look(kube, tmp_path))
    assert one(found, words).verdict == verdict
    assert len(found) == 1


def test_a_volume_that_is_there_needs_no_class(kube: KubeServer, tmp_path: Path) -> None:
    bound = {
        **wanted()[1],
        "status": {"phase": "Bound", "capacity": {"storage": "200Gi"}},
    }
    fill(kube, [*equipped(), storage_class("x", default=False), bound])
    assert bad(look(kube, tmp_path)) == {}


def quota(**hard: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "gpus"},
        "spec": {"hard": hard},
        "status": {"hard": hard, "used": dict.fromkeys(hard, "3")},
    }


def test_a_quota_is_held_against_the_fewest_pods(kube: KubeServer, tmp_path: Path) -> None:
    fill(kube, [*equipped(), quota(**{"requests.cpu": "10", "pods": "7"})])
    found = bad(look(kube, tmp_path))
    cpu = one(found, "requests.cpu, 7 of 10 left; the fewest pods of one cluster ask for 20")
    assert cpu.verdict == "problem"
    assert one(found, "pods, 4 of 7 left").verdict == "warning"


def test_what_others_use_is_taken_off_and_our_own_is_not(kube: KubeServer, tmp_path: Path) -> None:
    other = pod("else", "x", gpus=3)
    other["metadata"] |= {"namespace": "default", "labels": {}}
    other["spec"]["nodeName"] = "gpu-a"
    own = pod("sm4ll-4fkxq-light-0", "light-gpu-l4", gpus=1)
    own["spec"]["nodeName"] = "gpu-a"
    fill(kube, [*equipped(), other, own])
    checks = look(kube, tmp_path)
    assert any("NVIDIA-L4: 1 of 4" in check.says for check in checks)
    grows = one(bad(checks), "light-gpu-l4: 1 to 4 pods")
    assert grows.verdict == "warning"
    assert "room for 1 now. 3 of the nodes: no nvidia.com/gpu; 1 of the nodes: too little" in (
        grows.says
    )
    assert one(bad(checks), "no room for a second cluster").verdict == "warning"


def test_without_an_overlay_what_runs_is_looked_at(kube: KubeServer, tmp_path: Path) -> None:
    fill(kube, [*equipped(), *healthy()])
    said = [check.says for check in look(kube, tmp_path, [])]
    assert any(says.startswith("light-gpu-l4: 1 to 4 pods") for says in said)


def test_taints_labels_and_affinity_decide_which_nodes_count() -> None:
    tainted = node("a", gpus=1)
    tainted["spec"]["taints"] = [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}]
    asks = pod("p", gpus=1)
    assert not admits(tainted, asks)
    asks["spec"]["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    assert admits(tainted, asks)
    asks["spec"]["tolerations"] = [{"key": "nvidia.com/gpu", "value": "other"}]
    assert not admits(tainted, asks)
    tainted["spec"]["taints"][0]["effect"] = "PreferNoSchedule"
    assert admits(tainted, asks)
    rule = {"key": "nvidia.com/gpu.product", "operator": "In", "values": ["NVIDIA-L4"]}
    wants = {"nodeSelectorTerms": [{"matchExpressions": [rule]}]}
    asks["spec"]["affinity"] = {
        "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": wants}
    }
    assert admits(tainted, asks)
    rule["operator"] = "NotIn"
    assert not admits(tainted, asks)
    rule |= {"key": "nvidia.com/gpu.memory", "operator": "Gt", "values": ["20000"]}
    assert admits(tainted, asks)
    asks["spec"]["nodeSelector"] = {"zone": "b"}
    assert not admits(tainted, asks)
    down = node("b")
    down["status"]["conditions"] = [condition("Ready", False)]
    assert not admits(down, pod("p"))


def test_large_pods_are_placed_before_small_ones_take_their_room() -> None:
    rooms = measure_room([node("a", gpus=1)], [])
    small = PoolPods("small", pod("s", "x"), 7, 7)
    large = PoolPods("large", pod("l", "x", gpus=1), 1, 1)
    fits = {fit.pool.name: fit.fitting for fit in fit_pools([small, large], rooms)}
    assert fits == {"small": 6, "large": 1}, "31.85 CPUs hold seven pods of four"


def test_secrets_are_found_wherever_they_are_referred_to() -> None:
    objects = [
        {
            "kind": "Pod",
            "spec": {
                "imagePullSecrets": [{"name": "registry"}],
                "containers": [{"envFrom": [{"secretRef": {"name": "env", "optional": True}}]}],
                "volumes": [
                    {"name": "v", "secret": {"secretName": "file", "items": [{"key": "k"}]}}
                ],
            },
        },
        {"kind": "RayService", "authOptions": {"mode": "token", "secretName": "ray"}},
        {"kind": "Ingress", "spec": {"tls": [{"secretName": "web"}]}},
        {"kind": "Secret", "metadata": {"name": "brought"}},
        {"kind": "X", "valueFrom": {"secretKeyRef": {"name": "brought", "key": "k"}}},
        {"kind": "ExternalSecret", "metadata": {"name": "es"}, "spec": {"target": {"name": "far"}}},
        {"kind": "X", "valueFrom": {"secretKeyRef": {"name": "far", "key": "k"}}},
    ]
    assert find_secret_needs(objects) == [
        SecretNeed("env", (), (), True),
        SecretNeed("file", ("k",), (), False),
        SecretNeed("ray", ("auth_token",), (), False),
        SecretNeed("registry", (".dockerconfigjson",), (), False),
        SecretNeed("web", ("tls.crt", "tls.key"), (), False),
    ]


def test_an_absent_kubectl_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    (check,) = check_tools()
    assert check.verdict == "problem"


def test_the_command_exits_1_on_problems_and_says_what_helps(
    kube: KubeServer, tmp_path: Path
) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl, which builds the overlay, is not installed")
    fill(kube, equipped())
    env = {"SM4LL_KUBECONFIG": str(kube.kubeconfig(tmp_path))}
    shown = CliRunner().invoke(
        app, ["k8s", "doctor", "--overlay", "production", "--quiet"], env=env
    )
    assert shown.exit_code == 1
    for name in ("sm4ll-blobs", "sm4ll-redis", "sm4ll-admin", "sm4ll-ray-token"):
        assert f"PROBLEM {name}" in shown.output
        assert f"create secret generic {name}" in shown.output
    assert "sm4ll-database" not in shown.output, "it is there, and --quiet"
    assert shown.output.rstrip().endswith("in order")
