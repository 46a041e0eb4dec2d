"""The overlay of the end-to-end test is one that an API server takes, and every container in it is
what the environment says; its steps do on the test control plane what they will do on a real one.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from k8s.control.api import ControlPlane
from k8s.control.connection import Manifest
from serve.cli import app
from serve.settings import Settings, free_port
from tests.crd_schema import apply_defaults, find_problems
from tests.kube_controllers import Controllers
from tests.kube_server import open_kube
from tests.kubernetes.cluster import E2eCluster
from tests.kubernetes.overlay import GENERATION, E2eOverlay, E2eSettings, list_pods, read_token
from tests.manifests import need_kubectl
from tests.test_k8s_manifests import find_core_problems, is_core, ray_service_schema

PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
RESOURCES = {"requests": {"cpu": "20m"}}
SETTINGS = {
    "IMAGE": "nothing:1",
    "NEW_IMAGE": "nothing:2",
    "DATABASE_URL": "sqlite:////tmp/none/e2e.db",
    "BLOBS_URL": "/tmp/none/blobs",
    "BIN": "/opt/python/bin",
    "MOUNTED": "true",
    "CONTAINER": (
        '{"securityContext": null, "livenessProbe": null, "readinessProbe": null,'
        ' "startupProbe": null, "resources": {"requests": {"cpu": "20m"}}}'
    ),
    "POD": '{"securityContext": null}',
    "START_PARAMS": '{"temp-dir": "/tmp/$RAY_CLOUD_INSTANCE_ID"}',
}


def sm4ll(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, f"{' '.join(arguments)}: {done.output}"
    return done.stdout


@pytest.fixture
def overlay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> E2eOverlay:
    need_kubectl()
    for name, value in SETTINGS.items():
        monkeypatch.setenv(f"SM4LL_E2E_{name}", value)
    return E2eOverlay(tmp_path, sm4ll, E2eSettings())


def containers(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    for manifest in manifests:
        for path, spec in list_pods(manifest):
            for container in (*spec.get("initContainers", ()), *spec["containers"]):
                yield f"{manifest['kind']} {path} {container['name']}", container


def test_every_container_is_what_the_environment_says(overlay: E2eOverlay) -> None:
    manifests = overlay.write(generation=2)
    assert [one for m in manifests if is_core(m) for one in find_core_problems(m)] == []
    (service,) = (one for one in manifests if one["kind"] == "RayService")
    stored = apply_defaults(ray_service_schema(), service)
    assert list(find_problems(ray_service_schema(), stored, stored)) == []
    assert len(list(containers(manifests))) >= 6
    for where, container in containers(manifests):
        assert container["image"] == "nothing:2", where
        assert container["resources"] == RESOURCES, where
        assert not {*PROBES, "securityContext"} & container.keys(), where
        assert container.get("command", ["/opt/python/bin/"])[0].startswith("/opt/python/bin/")
        env = {one["name"]: one.get("value", "") for one in container["env"]}
        assert env["PATH"].startswith("/opt/python/bin:"), where
        assert env[GENERATION] == "2", where
        assert "/etc/sm4ll" not in str(container["env"]), where
        assert "sm4ll-redis" not in str(container["env"]), where
    cluster = service["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert group["rayStartParams"]["temp-dir"] == "/tmp/$RAY_CLOUD_INSTANCE_ID"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    beside = cluster["autoscalerOptions"]
    assert (beside["image"], beside["resources"]) == ("nothing:2", RESOURCES)
    kinds = {one["kind"] for one in manifests}
    assert not kinds & {"Deployment", "StatefulSet", "PrometheusRule"}, (
        "no store, no operator's kind"
    )
    assert "/etc/sm4ll" not in service["spec"]["serveConfigV2"]
    assert {one["metadata"].get("namespace") for one in manifests} <= {"sm4ll-e2e", None}


def test_steps_do_what_their_names_say(
    overlay: E2eOverlay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The controllers here are done when a write is answered.
    monkeypatch.setattr("k8s.rollout.SETTLE_S", 0.0)
    with open_kube() as kube:
        Controllers(kube)
        monkeypatch.setenv("SM4LL_KUBECONFIG", str(kube.kubeconfig(tmp_path)))
        cluster = E2eCluster(ControlPlane.configured(Settings()), sm4ll, overlay, E2eSettings())
        assert not cluster.exists()
        cluster.apply()
        assert "ready" in cluster.wait("ready")
        first = cluster.active_cluster()
        assert (cluster.list_clusters(), cluster.read_generation()) == ([first], "1")
        cluster.apply(max_replicas=2)
        assert cluster.list_clusters() == [first], "other bounds, the same cluster"
        cluster.apply(generation=2, max_replicas=2)
        cluster.wait("upgraded")
        assert first not in cluster.list_clusters()
        assert cluster.read_generation() == "2"
        cluster.roll_back(2)
        assert cluster.read_generation() == "1"
        cluster.delete()
        assert (cluster.exists(), cluster.list_clusters()) == (False, [])


def test_callers_take_ready_pods_in_turn_and_tell_what_fails(
    overlay: E2eOverlay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = free_port()
    ready = {"addresses": ["127.0.0.1", "127.0.0.2"], "conditions": {"ready": True}}
    with open_kube(namespaces=("sm4ll-e2e",)) as kube:
        monkeypatch.setenv("SM4LL_KUBECONFIG", str(kube.kubeconfig(tmp_path)))
        cluster = E2eCluster(ControlPlane.configured(Settings()), sm4ll, overlay, E2eSettings())
        with pytest.raises(AssertionError, match="no ready endpoint"):
            cluster.client()
        kube.put(
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": "sm4ll-serve-svc-1",
                    "namespace": "sm4ll-e2e",
                    "labels": {"kubernetes.io/service-name": "sm4ll-serve-svc"},
                },
                "ports": [{"name": "serve", "port": nobody}, {"name": "metrics", "port": 8080}],
                "endpoints": [
                    ready,
                    {"addresses": ["127.0.0.3"], "conditions": {"ready": False}},
                ],
            }
        )
        urls = [cluster.client().url for _ in range(3)]
        assert urls == [f"http://127.0.0.{last}:{nobody}" for last in (1, 2, 1)]
        with cluster.steady_stream() as stream:
            cluster.wait_until(lambda: bool(stream.failures), "a failure")
    assert stream.num_answered == 0
    assert "ApiUnreachable" in stream.failures[0]


def test_without_settings_it_is_the_local_overlay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_kubectl()
    overlay = E2eOverlay(tmp_path, sm4ll, E2eSettings())
    manifests = overlay.write()
    assert read_token(manifests).startswith("sk_")
    assert {"Deployment", "RayService"} <= {one["kind"] for one in manifests}
    assert [one for m in manifests if is_core(m) for one in find_core_problems(m)] == []


def test_stores_are_given_together(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="SM4LL_E2E_BLOBS_URL, or neither"):
        E2eSettings(database_url="postgresql://db/e2e")
