"""Every object that an overlay builds is one that the API server takes, and keeps whole."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

from k8s.control.objects import in_order, is_awaited
from k8s.observed import HERE
from tests.crd_schema import Schema, apply_defaults, find_problems, load_schema
from tests.manifests import (
    COMPONENTS,
    DOCUMENTED_SECRETS,
    OVERLAYS,
    Manifest,
    build,
    name_of,
    of_kind,
    overlay,
    pod_templates,
    selects,
    the_ray_service,
)

VERSION = "1.32"
"""Of Kubernetes. Nothing here needs a newer one."""
SCHEMAS = f"kubernetes-json-schema/v{VERSION}.0-local-strict"
KUBERAY = Path(__file__).resolve().parents[2] / "shared/kuberay"
GATEWAY_API = "gateway.networking.k8s.io/v1"


@cache
def core_validator(kind: str, group: str, version: str) -> jsonschema.Draft202012Validator:
    """As kubernetes_validate.validate(strict=True) has it, which reads a megabyte every time."""
    prefix = f"{group.split('.')[0]}-" if group else ""
    schema = schema_contents(f"{SCHEMAS}/{kind.lower()}-{prefix}{version}.json", VERSION)
    return jsonschema.Draft202012Validator(schema, registry=definitions())


@cache
def definitions() -> "Registry[Any]":
    resource = Resource.from_contents(schema_contents(f"{SCHEMAS}/_definitions.json", VERSION))
    registry: Registry[Any] = resource @ Registry()
    return registry


def find_core_problems(manifest: Manifest) -> Iterator[str]:
    group, _, version = manifest["apiVersion"].rpartition("/")
    for error in core_validator(manifest["kind"], group, version).iter_errors(manifest):
        yield f"{name_of(manifest)}: {error.json_path}: {error.message}"


def is_core(manifest: Manifest) -> bool:
    group = manifest["apiVersion"].rpartition("/")[0]
    return "." not in group or group.endswith(".k8s.io") and group.count(".") == 2 and (
        "gateway" not in group and "kueue" not in group
    )  # fmt: skip


@pytest.mark.parametrize("name", OVERLAYS)
def test_kinds_of_kubernetes_are_valid(name: str) -> None:
    objects = [one for one in overlay(name) if is_core(one)]
    assert {"NetworkPolicy", "Job", "CronJob", "ConfigMap"} <= {one["kind"] for one in objects}
    assert [problem for one in objects for problem in find_core_problems(one)] == []


def test_what_is_wrong_is_found() -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": []}}
    assert list(find_core_problems(pod)) == []
    assert list(find_core_problems({**pod, "spec": {"containers": [], "nodename": "b"}}))
    assert list(find_core_problems({**pod, "spec": {"containers": "none"}}))


@pytest.mark.parametrize("name", OVERLAYS)
def test_pods_that_operators_make_are_valid_too(name: str) -> None:
    for source, template in pod_templates(overlay(name)):
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {**template["metadata"], "name": "any"},
            "spec": template["spec"],
        }
        assert list(find_core_problems(pod)) == [], source


@cache
def ray_service_schema() -> Schema:
    path = KUBERAY / "ray.io_rayservices.yaml"
    if not path.is_file():
        pytest.skip(f"no KubeRay CRDs in {path.parent}")
    return load_schema(path, "v1")


@cache
def ray_cluster_spec() -> Schema:
    path = KUBERAY / "ray.io_rayclusters.yaml"
    if not path.is_file():
        pytest.skip(f"no KubeRay CRDs in {path.parent}")
    spec: Schema = load_schema(path, "v1")["properties"]["spec"]
    return spec


@pytest.mark.parametrize("name", OVERLAYS)
def test_ray_service_is_what_its_definition_says(name: str) -> None:
    stored = apply_defaults(ray_service_schema(), the_ray_service(name))
    assert list(find_problems(ray_service_schema(), stored, stored)) == []


@pytest.mark.parametrize("name", OVERLAYS)
def test_cluster_that_is_made_of_it_is_one(name: str) -> None:
    cluster = the_ray_service(name)["spec"]["rayClusterConfig"]
    stored = apply_defaults(ray_cluster_spec(), cluster)
    assert list(find_problems(ray_cluster_spec(), stored, stored)) == []


def test_definition_finds_what_the_server_would_drop_or_refuse() -> None:
    service: Manifest = yaml.safe_load("""
        apiVersion: ray.io/v1
        kind: RayService
        metadata: {name: a, labels: {b: c}}
        spec:
          managedBy: ray.io/kuberay-operator
          serveConfigV2: ""
          rayClusterConfig:
            headGroupSpec: {template: {spec: {containers: [{name: ray-head, image: a}]}}}
            workerGroupSpecs:
              - {groupName: one, minReplicas: 1, maxReplicas: 2,
                 template: {spec: {containers: [{name: a, resources: {limits: {cpu: 1.5}}}]}}}
    """)
    schema = ray_service_schema()

    def problems(old: Any = None, **spec: Any) -> list[str]:
        changed = {**service, "spec": {**service["spec"], **spec}}
        return list(find_problems(schema, apply_defaults(schema, changed), old))

    (fraction,) = problems()  # a quantity is a whole number, or text
    assert "workerGroupSpecs[0].template.spec.containers[0].resources.limits.cpu" in fraction
    group = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"] = "1.5"
    assert problems() == []
    assert problems(serveConfig="") == [".spec.serveConfig: is unknown, and would be dropped"]
    assert problems(serveConfigV2=7) == [".spec.serveConfigV2: 7 is no string"]
    managed = problems(managedBy="somebody")
    assert managed == [
        ".spec.managedBy: the managedBy field value must be either 'ray.io/kuberay-operator'"
        " or 'kueue.x-k8s.io/multikueue'"
    ]
    assert problems(old=service, managedBy="kueue.x-k8s.io/multikueue") == [
        ".spec.managedBy: the managedBy field is immutable"
    ]
    stored = apply_defaults(schema, service)
    assert stored["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["numOfHosts"] == 1
    group["template"]["spec"]["containers"].append({"name": "a"})
    assert problems() == [
        ".spec.rayClusterConfig.workerGroupSpecs[0].template.spec.containers: ('a',) is there twice"
    ]


@pytest.mark.parametrize("component", COMPONENTS)
def test_components_build_on_production(component: str, tmp_path: Path) -> None:
    manifests = build(_with_component(component, tmp_path))
    before = {name_of(one) for one in overlay("production")}
    added = [one for one in manifests if name_of(one) not in before]
    assert added
    assert [problem for one in added if is_core(one) for problem in find_core_problems(one)] == []
    assert {one["metadata"]["namespace"] for one in added} == {"sm4ll"}


def _with_component(component: str, folder: Path) -> Path:
    text = yaml.safe_dump(
        {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "namespace": "sm4ll",
            "resources": [_relative(HERE / "overlays/production", folder)],
            "components": [_relative(HERE / "components" / component, folder)],
        }
    )
    (folder / "kustomization.yaml").write_text(text)
    return folder


def _relative(target: Path, folder: Path) -> str:
    """kustomize takes no absolute path."""
    up = [".."] * len(folder.resolve().parts[1:])
    return "/".join([*up, *target.resolve().parts[1:]])


def test_kueue_gets_the_service_by_its_label(tmp_path: Path) -> None:
    manifests = tuple(build(_with_component("kueue", tmp_path)))
    (service,) = of_kind(manifests, "RayService")
    (queue,) = of_kind(manifests, "LocalQueue")
    assert service["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == queue["metadata"]["name"]
    assert service["spec"] == the_ray_service("production")["spec"]


def test_external_secrets_bring_every_secret_that_pods_read(tmp_path: Path) -> None:
    manifests = tuple(build(_with_component("external-secrets", tmp_path)))
    brought = {
        one["spec"]["target"]["name"]: {item["secretKey"] for item in one["spec"]["data"]}
        for one in of_kind(manifests, "ExternalSecret")
    }
    for name, keys in brought.items():
        assert keys == DOCUMENTED_SECRETS[name] - (
            {"password"} if name == "sm4ll-database" else set()
        )


def test_way_in_ends_tls_and_leads_to_the_gateway_that_kuberay_weighs() -> None:
    production = overlay("production")
    gateways = {one["metadata"]["name"]: one for one in of_kind(production, "Gateway")}
    inner = the_ray_service("production")["metadata"]["name"] + "-gateway"
    # As KubeRay builds it, or it would write it again and again (createGateway, v1.7.0).
    upgrade = the_ray_service("production")["spec"]["upgradeStrategy"]["clusterUpgradeOptions"]
    assert gateways[inner]["spec"]["gatewayClassName"] == upgrade["gatewayClassName"]
    (listener,) = gateways[inner]["spec"]["listeners"]
    assert (listener["protocol"], listener["port"], "hostname" in listener) == ("HTTP", 80, False)
    routes = {one["metadata"]["name"]: one for one in of_kind(production, "HTTPRoute")}
    (rule,) = routes["sm4ll-public"]["spec"]["rules"]
    (backend,) = rule["backendRefs"]
    assert backend == {"name": f"{inner}-{upgrade['gatewayClassName']}", "port": 80}
    public = gateways["sm4ll-public"]["spec"]["listeners"]
    (tls,) = (one for one in public if one["protocol"] == "HTTPS")
    assert (tls["tls"]["mode"], tls["hostname"]) == (
        "Terminate",
        *routes["sm4ll-public"]["spec"]["hostnames"],
    )
    assert [one["sectionName"] for one in routes["sm4ll-public"]["spec"]["parentRefs"]] == ["https"]
    (redirect,) = routes["sm4ll-public-redirect"]["spec"]["rules"]
    assert "backendRefs" not in redirect
    config = yaml.safe_load(the_ray_service("production")["spec"]["serveConfigV2"])
    timeout_s = int(rule["timeouts"]["request"].removesuffix("s"))
    assert timeout_s > config["http_options"]["request_timeout_s"]


def test_ingress_takes_what_the_router_takes(tmp_path: Path) -> None:
    from serve.config import RouterConfig

    (ingress,) = of_kind(tuple(build(_with_component("ingress", tmp_path))), "Ingress")
    annotations = ingress["metadata"]["annotations"]
    size = f"{RouterConfig().max_body_mib}m"
    assert annotations["nginx.ingress.kubernetes.io/proxy-body-size"] == size
    assert annotations["nginx.org/client-max-body-size"] == size
    (path,) = ingress["spec"]["rules"][0]["http"]["paths"]
    service = the_ray_service("production")["metadata"]["name"]
    assert path["backend"]["service"]["name"] == f"{service}-serve-svc"


def test_prometheus_finds_the_ports_it_is_told_and_may_ask_them() -> None:
    production = overlay("production")
    (monitor,) = of_kind(production, "PodMonitor")
    told = {one["port"] for one in monitor["spec"]["podMetricsEndpoints"]}
    (policy,) = (
        one
        for one in of_kind(production, "NetworkPolicy")
        if one["metadata"]["name"] == "sm4ll-from-prometheus"
    )
    (rule,) = policy["spec"]["ingress"]
    opened = {one["port"] for one in rule["ports"]}
    found = set()
    for source, template in pod_templates(production):
        if not source.startswith("RayService"):
            continue
        (container,) = template["spec"]["containers"]
        ports = {one["name"]: one["containerPort"] for one in container["ports"]}
        assert ports["metrics"] == 8080, source
        assert opened >= {port for name, port in ports.items() if name in told}
        found |= told & ports.keys()
        assert selects(monitor["spec"]["selector"], template["metadata"]["labels"]), source
    assert found == told


def test_weights_tables_and_gateway_are_there_before_the_cluster() -> None:
    order = [name_of(one) for one in in_order(overlay("production"))]
    service = order.index("RayService/sm4ll")
    assert order[service - 1] == "Job/sm4ll-migrate"
    for kind, name in (
        ("Job", "prefetch"),
        ("Gateway", "gateway"),
        ("PersistentVolumeClaim", "models"),
    ):
        assert order.index(f"{kind}/sm4ll-{name}") < service
    awaited = {name_of(one) for one in overlay("production") if is_awaited(one)}
    assert awaited == {"Job/sm4ll-migrate", "Job/sm4ll-prefetch"}
