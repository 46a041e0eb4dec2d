"""What the API server would take and we do not: each rule here was a trap for somebody."""

import base64
import re
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
import yaml

from serve.settings import Settings
from serve.store.opening import open_blobs, open_database
from serve.telemetry import METRICS
from serve.tenancy.keys import TOKEN
from tests.manifests import (
    DOCUMENTED_SECRETS,
    OVERLAYS,
    Manifest,
    name_of,
    of_kind,
    overlay,
    pod_templates,
    selects,
    the_ray_service,
)

EVERYWHERE = frozenset({"PriorityClass", "Namespace"})
"""Kinds of the whole cluster that an overlay may bring."""


VOLUMES = frozenset(
    ("configMap", "csi", "downwardAPI", "emptyDir")
    + ("ephemeral", "persistentVolumeClaim", "projected", "secret")
)
"""Kinds that the Pod Security Standard `restricted` allows, which the namespace enforces.

Source: kubernetes.io/docs/concepts/security/pod-security-standards/
"""


def containers(template: Manifest) -> list[Manifest]:
    spec = template["spec"]
    return [*spec["containers"], *spec.get("initContainers", ())]


def each_container(name: str) -> Iterator[tuple[str, Manifest, Manifest]]:
    for source, template in pod_templates(overlay(name)):
        for container in containers(template):
            yield f"{source}: {container['name']}", template["spec"], container


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_container_is_closed(name: str) -> None:
    for source, pod, container in each_container(name):
        of_pod, own = pod.get("securityContext", {}), container.get("securityContext", {})
        both = {**of_pod, **own}
        assert both.get("runAsNonRoot") is True, source
        assert both.get("seccompProfile") == {"type": "RuntimeDefault"}, source
        assert own.get("readOnlyRootFilesystem") is True, source
        assert own.get("allowPrivilegeEscalation") is False, source
        assert own.get("capabilities") == {"drop": ["ALL"]}, source
        assert not any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")), source
        for volume in pod.get("volumes", ()):
            assert volume.keys() - {"name"} <= VOLUMES, source


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_container_says_what_it_takes(name: str) -> None:
    for source, _, container in each_container(name):
        resources = container.get("resources", {})
        assert {"cpu", "memory"} <= resources.get("requests", {}).keys(), source
        assert "memory" in resources.get("limits", {}), source
        for key, amount in resources["limits"].items():
            if key.startswith("nvidia.com/"):  # Kubernetes shares none of these out
                assert resources["requests"].get(key, amount) == amount, source


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_image_is_of_a_version(name: str) -> None:
    for source, _, container in each_container(name):
        image, _, digest = container["image"].partition("@")
        _, _, tag = image.rpartition("/")[2].partition(":")
        assert digest or tag not in ("", "latest"), source


@pytest.mark.parametrize("name", OVERLAYS)
def test_jobs_run_what_the_head_runs(name: str) -> None:
    (head,) = (
        containers(template)[0]["image"]
        for source, template in pod_templates(overlay(name))
        if source.endswith(" head")
    )
    for source, template in pod_templates(overlay(name)):
        if source.startswith(("Job/", "CronJob/")):
            assert [one["image"] for one in template["spec"]["containers"]] == [head], source


@pytest.mark.parametrize("name", OVERLAYS)
def test_only_the_head_may_ask_the_api_server(name: str) -> None:
    for source, template in pod_templates(overlay(name)):
        spec = template["spec"]
        account = spec.get("serviceAccountName")
        if source.startswith("RayService"):
            assert account == "sm4ll-ray", source
        elif source.startswith(("Job/", "CronJob/")):
            assert account == "sm4ll-jobs", source
        is_head = source.endswith(" head")
        assert spec.get("automountServiceAccountToken") is is_head, source
    granted = of_kind(
        overlay(name), "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"
    )  # KubeRay makes the autoscaler's itself
    assert granted == []
    accounts = of_kind(overlay(name), "ServiceAccount")
    assert {one["automountServiceAccountToken"] for one in accounts} == {False}


@pytest.mark.parametrize("name", OVERLAYS)
def test_sidecar_of_the_autoscaler_is_as_closed_as_the_rest(name: str) -> None:
    options = the_ray_service(name)["spec"]["rayClusterConfig"]["autoscalerOptions"]
    assert options["securityContext"]["allowPrivilegeEscalation"] is False
    assert options["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert {"cpu", "memory"} <= options["resources"]["requests"].keys()


def find_secret_references(value: object) -> Iterator[tuple[str, str | None]]:
    """Names and keys, wherever they are."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "secretKeyRef":
                yield inner["name"], inner["key"]
            elif key in ("secretRef", "secretName"):
                yield (inner["name"] if isinstance(inner, dict) else inner), None
            else:
                yield from find_secret_references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from find_secret_references(inner)


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_secret_is_one_of_the_documented(name: str) -> None:
    services = [one for one in overlay(name) if one["kind"] not in ("Gateway", "Ingress")]
    references = set(find_secret_references(services))
    assert references
    for secret, key in references:
        assert key is None or key in DOCUMENTED_SECRETS[secret], (secret, key)
        assert secret in DOCUMENTED_SECRETS, secret


def test_secrets_are_in_the_laptops_overlay_alone() -> None:
    made = {one["metadata"]["name"]: one["data"] for one in of_kind(overlay("local"), "Secret")}
    for secret, key in find_secret_references(list(overlay("local"))):
        if secret in made and key not in (None, "fashn", "openai"):
            assert key in made[secret], (secret, key)
    assert made.keys() <= DOCUMENTED_SECRETS.keys()
    assert of_kind(overlay("production"), "Secret") == []


def labels_of_pods(name: str) -> list[dict[str, str]]:
    """Also of those that others make: KubeRay's Job that empties Redis, and Istio's proxies."""
    templates = dict(pod_templates(overlay(name)))
    found = [template["metadata"]["labels"] for template in templates.values()]
    (head,) = (found[at] for at, source in enumerate(templates) if source.endswith(" head"))
    gateways = (one["metadata"]["name"] for one in of_kind(overlay(name), "Gateway"))
    return [
        *found,
        {**head, "ray.io/node-type": "redis-cleanup"},
        *({"gateway.networking.k8s.io/gateway-name": gateway} for gateway in gateways),
    ]


def find_selectors(policy: Manifest) -> Iterator[Manifest]:
    """Of pods of this namespace."""
    spec = policy["spec"]
    yield spec["podSelector"]
    for rule in (*spec.get("ingress", ()), *spec.get("egress", ())):
        for peer in (*rule.get("from", ()), *rule.get("to", ())):
            if "podSelector" in peer and "namespaceSelector" not in peer:
                yield peer["podSelector"]


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_opening_has_a_reason_and_somebody_to_open_for(name: str) -> None:
    pods = labels_of_pods(name)
    for policy in of_kind(overlay(name), "NetworkPolicy"):
        assert policy["metadata"]["annotations"]["sm4ll.dev/reason"], name_of(policy)
        for selector in find_selectors(policy):
            assert any(selects(selector, labels) for labels in pods), (name_of(policy), selector)
            for expression in selector.get("matchExpressions", ()):
                if name == "production" and expression["key"] == "ray.io/node-type":
                    for value in expression["values"]:
                        assert any(one.get(expression["key"]) == value for one in pods), value


@pytest.mark.parametrize("name", OVERLAYS)
def test_everything_is_closed_that_is_not_opened(name: str) -> None:
    policies = of_kind(overlay(name), "NetworkPolicy")
    (closed,) = (one for one in policies if one["metadata"]["name"] == "sm4ll-deny")
    assert closed["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for policy in policies:
        spec = policy["spec"]
        for direction in ("ingress", "egress"):
            if spec.get(direction):
                assert direction.capitalize() in spec["policyTypes"], name_of(policy)
            for rule in spec.get(direction, ()):
                assert rule, f"{name_of(policy)}: an empty rule opens everything"


def opens(policy: Manifest, labels: dict[str, str], port: int, direction: str) -> bool:
    return selects(policy["spec"]["podSelector"], labels) and any(
        any(one["port"] == port for one in rule.get("ports", ()))
        for rule in policy["spec"].get(direction, ())
    )


@pytest.mark.parametrize("name", OVERLAYS)
def test_who_keeps_rows_reaches_them_and_who_runs_weights_reaches_nobody(name: str) -> None:
    """Router and JobRunner open the stores (serve/services.py): wherever they are placed."""
    policies = of_kind(overlay(name), "NetworkPolicy")
    config = yaml.safe_load(the_ray_service(name)["spec"]["serveConfigV2"])
    pools = {
        one["name"]: one["ray_actor_options"]["label_selector"]["sm4ll.dev/pool"]
        for application in config["applications"]
        for one in application["deployments"]
    }
    templates = dict(pod_templates(overlay(name)))
    labels = {
        template["metadata"]["labels"]["sm4ll.dev/pool"]: template["metadata"]["labels"]
        for source, template in templates.items()
        if template["metadata"]["labels"].get("ray.io/node-type") == "worker"
    }
    for deployment in ("Router", "JobRunner"):
        for port in (5432, 6379):
            mine = labels[pools[deployment]]
            assert any(opens(one, mine, port, "egress") for one in policies), (deployment, port)
    closed = [mine for pool, mine in labels.items() if "gpu" in pool or pool == "segment"]
    assert closed
    for mine in closed:
        for port in (443, 5432, 6379):
            assert not any(opens(one, mine, port, "egress") for one in policies), (mine, port)


def test_the_internet_is_not_the_cluster() -> None:
    policies = {
        one["metadata"]["name"]: one for one in of_kind(overlay("production"), "NetworkPolicy")
    }
    (rule,) = policies["sm4ll-to-internet"]["spec"]["egress"]
    blocks = {peer["ipBlock"]["cidr"]: peer["ipBlock"]["except"] for peer in rule["to"]}
    private = {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10"}
    assert private <= set(blocks["0.0.0.0/0"])
    assert {"fc00::/7", "fe80::/10"} <= set(blocks["::/0"])


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_service_has_pods_and_every_port_is_one_of_theirs(name: str) -> None:
    for service in of_kind(overlay(name), "Service"):
        chosen = [
            template
            for _, template in pod_templates(overlay(name))
            if selects({"matchLabels": service["spec"]["selector"]}, template["metadata"]["labels"])
        ]
        assert chosen, name_of(service)
        for template in chosen:
            ports = {
                port["name"] for one in template["spec"]["containers"] for port in one["ports"]
            }
            assert {one["targetPort"] for one in service["spec"]["ports"]} <= ports


@pytest.mark.parametrize("name", OVERLAYS)
def test_disruption_budgets_leave_room_and_are_whole_numbers(name: str) -> None:
    """A percentage needs a scale subresource, which a RayCluster has not: kuberay#2662."""
    groups = the_ray_service(name)["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    templates = [template for _, template in pod_templates(overlay(name))]
    for budget in of_kind(overlay(name), "PodDisruptionBudget"):
        spec = budget["spec"]
        assert "maxUnavailable" not in spec
        assert type(spec["minAvailable"]) is int
        pods = [one for one in templates if selects(spec["selector"], one["metadata"]["labels"])]
        assert len(pods) == 1, name_of(budget)
        pool = pods[0]["metadata"]["labels"]["sm4ll.dev/pool"]
        (group,) = (one for one in groups if one["groupName"] == pool)
        assert 0 < spec["minAvailable"] < group["minReplicas"], name_of(budget)


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_priority_class_is_there(name: str) -> None:
    classes = {one["metadata"]["name"] for one in of_kind(overlay(name), "PriorityClass")}
    assert classes == {"sm4ll-serving", "sm4ll-batch"}
    for source, template in pod_templates(overlay(name)):
        assert template["spec"].get("priorityClassName", "sm4ll-batch") in classes, source


@pytest.mark.parametrize("name", OVERLAYS)
def test_nothing_is_outside_of_the_namespace(name: str) -> None:
    for one in overlay(name):
        if one["kind"] in EVERYWHERE:
            assert "namespace" not in one["metadata"], name_of(one)
        else:
            assert one["metadata"]["namespace"] == "sm4ll", name_of(one)
        assert one["metadata"]["labels"]["app.kubernetes.io/part-of"] == "sm4ll", name_of(one)


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_volume_that_is_mounted_is_there(name: str) -> None:
    """The claims and ConfigMaps that pods name are in the overlay, under that very name."""
    for kind, field, key in (
        ("ConfigMap", "configMap", "name"),
        ("PersistentVolumeClaim", "persistentVolumeClaim", "claimName"),
    ):
        there = {one["metadata"]["name"] for one in of_kind(overlay(name), kind)}
        for source, template in pod_templates(overlay(name)):
            for volume in template["spec"].get("volumes", ()):
                if field in volume:
                    assert volume[field][key] in there, (source, volume)


def test_labels_of_our_metrics_are_not_those_that_a_pod_monitor_sets() -> None:
    """Prometheus would rename ours to exported_..., and no dashboard would find them."""
    (monitor,) = of_kind(overlay("production"), "PodMonitor")
    copied = {
        label.translate(str.maketrans("./-", "___")) for label in monitor["spec"]["podTargetLabels"]
    }
    set_by_target = {"namespace", "pod", "container", "endpoint", "job", "instance", *copied}
    for metric, one in METRICS.items():
        assert not set_by_target & {*one.labels, "application", "deployment", "replica"}, metric


def find_texts(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from find_texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from find_texts(inner)
    elif isinstance(value, str):
        yield value


def secrets_of_the_laptop() -> dict[str, dict[str, str]]:
    return {
        one["metadata"]["name"]: {
            key: base64.b64decode(text).decode() for key, text in one["data"].items()
        }
        for one in of_kind(overlay("local"), "Secret")
    }


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_address_of_ours_is_a_service_of_ours(name: str) -> None:
    services = {
        (one["metadata"]["name"], port["port"])
        for one in of_kind(overlay(name), "Service")
        for port in one["spec"]["ports"]
    }
    texts = [*find_texts([template for _, template in pod_templates(overlay(name))])]
    if name == "local":
        texts += find_texts(secrets_of_the_laptop())
    asked = {
        (host, int(port))
        for text in texts
        for host, port in re.findall(r"(?:://|@)(sm4ll-[a-z0-9-]+):(\d+)", text)
    }
    assert ("sm4ll-otel-collector", 4318) in asked
    assert asked <= services


def test_secrets_of_the_laptop_are_what_the_system_takes() -> None:
    secrets = secrets_of_the_laptop()
    assert TOKEN.fullmatch(secrets["sm4ll-admin"]["token"])
    settings = Settings(
        database_url=secrets["sm4ll-database"]["url"],
        blobs_url=secrets["sm4ll-blobs"]["url"],
    )
    assert "sm4ll-database:5432" in repr(open_database(settings))
    open_blobs(settings)  # raises where the URL means none
    url = urlsplit(secrets["sm4ll-database"]["url"])
    assert url.password == secrets["sm4ll-database"]["password"]
    redis = secrets["sm4ll-redis"]
    assert urlsplit(redis["url"]).password == redis["password"]
