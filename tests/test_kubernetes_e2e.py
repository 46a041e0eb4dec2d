"""From an empty namespace to a try-on, an upgrade under load, and nothing left: on a real control
plane with KubeRay's operator, by the command line alone.

`SM4LL_KUBECONFIG` names the control plane, `SM4LL_E2E_*` what its pods need (tests/kubernetes/
overlay.py). The tests below build on each other, in this order.
"""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from k8s.control.api import ControlPlane
from serve.designs import Arm
from serve.schemas.experiments import NewExperiment
from serve.settings import Settings
from tests.kubernetes.cluster import RAY, SERVICE, E2eCluster
from tests.kubernetes.overlay import E2eOverlay, E2eSettings
from tests.test_cli import fresh_environ

WEIGHTS = {"old": 2_500, "new": 7_500}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[E2eCluster]:
    """Not applied yet. Whatever happens, nothing of it stays."""
    if not os.environ.get("SM4LL_KUBECONFIG"):
        pytest.skip("SM4LL_KUBECONFIG names no control plane with KubeRay's operator 1.7")
    settings = E2eSettings()
    api = ControlPlane.configured(Settings())
    if api.find_resource(RAY, "RayService") is None:
        pytest.skip(f"{api.host} has no KubeRay operator")
    if api.get("v1", "Namespace", settings.namespace) is not None:
        pytest.fail(f"namespace {settings.namespace} is somebody's: set SM4LL_E2E_NAMESPACE")
    overlay = E2eOverlay(tmp_path_factory.mktemp("e2e"), sm4ll, settings)
    cluster = E2eCluster(api, sm4ll, overlay, settings)
    yield cluster
    if cluster.exists():
        cluster.delete()


def sm4ll(*arguments: str) -> str:
    command = [sys.executable, "-m", "serve.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=fresh_environ())
    assert done.returncode == 0, (
        f"{' '.join(arguments)}: {done.stdout[-4000:]}{done.stderr[-4000:]}"
    )
    return done.stdout


def test_applied_cluster_answers_a_try_on(cluster: E2eCluster) -> None:
    cluster.apply()
    assert "ready" in cluster.wait("ready")
    assert SERVICE in cluster.status()
    assert cluster.try_on("1") == "eye@1"
    assert cluster.list_clusters() == [cluster.active_cluster()]


def test_weights_and_bounds_change_in_the_running_cluster(cluster: E2eCluster) -> None:
    before = (cluster.active_cluster(), cluster.list_pods(), cluster.list_replicas())
    arms = (
        Arm(name="old", version="eye@1", weight=9_000),
        Arm(name="new", version="eye@2", weight=1_000),
    )
    with cluster.client() as client:
        client.experiments.create(
            NewExperiment(id="e2e", title="End to end", expert="eye", arms=arms, start=True)
        )
        client.experiments.set_weights("e2e", WEIGHTS)
    assert (cluster.active_cluster(), cluster.list_pods(), cluster.list_replicas()) == before
    with cluster.steady_stream() as stream:
        cluster.apply(max_replicas=2)
        cluster.wait("upgraded")
    assert stream.failures == []
    assert stream.num_answered > 0
    name, pods, replicas = before
    assert cluster.list_clusters() == [name]
    assert pods.items() <= cluster.list_pods().items(), "no pod was replaced or started again"
    assert replicas.items() <= cluster.list_replicas().items(), "nor a replica"


def test_new_image_makes_another_cluster_and_no_request_fails(cluster: E2eCluster) -> None:
    before = cluster.active_cluster()
    with cluster.steady_stream() as stream:
        cluster.apply(generation=2, max_replicas=2)
        cluster.wait("upgraded")
        # The old one goes after the last request that was sent to it.
        cluster.wait_until(lambda: before not in cluster.list_clusters(), "the old cluster is gone")
    assert stream.failures == []
    assert stream.num_answered > 0
    assert cluster.active_cluster() != before
    assert cluster.read_generation() == "2"
    with cluster.client() as client:
        kept = {arm.name: arm.weight for arm in client.experiments.get("e2e").design.arms}
    assert kept == WEIGHTS, "rows are not in the cluster"


def test_rolled_back_cluster_is_the_one_before(cluster: E2eCluster) -> None:
    before = cluster.active_cluster()
    with cluster.steady_stream() as stream:
        cluster.roll_back(2)
        cluster.wait("upgraded")
    assert stream.failures == []
    assert cluster.active_cluster() != before
    assert cluster.read_generation() == "1"


def test_deleting_leaves_nothing(cluster: E2eCluster) -> None:
    cluster.delete()
    cluster.wait_until(lambda: not cluster.exists(), "the namespace is gone")
    assert cluster.list_clusters() == []
