"""The rendered Serve config runs on real Ray nodes, given to the dashboard as the operator does it,
and what changes in place restarts nothing.

The nodes are started by the command that the operator writes, with the environment, the labels and
the files of the rendered pods. Only addresses, ports and the store are of this machine.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from k8s.render import render_overlay
from k8s.rendering.family_map import FamilyFiles
from serve.client import Client
from serve.demo.cases import demo_cases
from serve.designs import Arm
from serve.schemas.experiments import NewExperiment
from serve.schemas.tryon import TryOnOptions
from serve.settings import CONFIGS_DIR, free_port
from tests.ray_nodes import RayNodes, own_environment
from tests.rendered_pods import Rendered
from tests.test_cli import sm4ll

pytestmark = pytest.mark.ray

SELECTED = "sm4ll.dev/pool"
PATH = "/api/serve/applications/"
RENDERED = Path(__file__).parents[1] / "k8s/overlays/local/rendered"

Replicas = Mapping[str, tuple[str, int, str]]
"""Deployment, process and node by replica."""


@dataclass(frozen=True)
class Deployed:
    """Ray nodes that were given the rendered config."""

    nodes: RayNodes
    folder: Path
    """Below which lies what pods have mounted."""
    rendered: Rendered
    http_port: int
    key: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def put(self, rendered: Rendered) -> None:
        rendered.write_files(self.folder)
        config = rendered.read_serve_config(self.folder)
        config["http_options"] |= {"host": "127.0.0.1", "port": self.http_port}
        answer = self.nodes.call("PUT", PATH, config)
        assert answer.is_success, answer.text
        self.nodes.wait_for(self._is_running, "the application")

    def _is_running(self) -> bool:
        app = self.read_app()
        assert app.get("status") not in ("DEPLOY_FAILED", "UNHEALTHY"), json.dumps(app, indent=1)
        return app.get("status") == "RUNNING"

    def read_apps(self) -> dict[str, Any]:
        apps: dict[str, Any] = self.nodes.call("GET", PATH).json()["applications"]
        return apps

    def read_app(self) -> dict[str, Any]:
        app: dict[str, Any] = self.read_apps().get("sm4ll", {})
        return app

    def list_replicas(self, app: str = "sm4ll") -> Replicas:
        return {
            replica["replica_id"]: (name, replica["pid"], replica["node_id"])
            for name, deployment in self.read_apps()[app]["deployments"].items()
            for replica in deployment["replicas"]
            if replica["state"] == "RUNNING"
        }

    def list_labels(self) -> dict[str, dict[str, str]]:
        """Of every node that Ray knows, by its id."""
        answer = self.nodes.call("GET", "/api/v0/nodes?detail=true").json()
        return {node["node_id"]: node["labels"] for node in answer["data"]["result"]["result"]}


@pytest.fixture(scope="module")
def deployed() -> Iterator[Deployed]:
    rendered = Rendered({file.name: file.read_text() for file in RENDERED.glob("*.yaml")})
    # Not below pytest's folders: the names of Ray's sockets may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    nodes = RayNodes(folder)
    try:
        rendered.write_files(folder)
        own = {
            "SM4LL_DATA_DIR": str(folder / "data"),
            "SM4LL_LOG_PIPE": "/dev/null",  # the first process here is not a container's
            "OTEL_EXPORTER_OTLP_ENDPOINT": "",
        }
        key = prepare_store(own)
        head = rendered.read_head(folder)
        nodes.start_head(head.num_cpus, {**head.environment, **own})
        for pod in rendered.read_workers(folder):
            nodes.start_worker(pod.name, pod.num_cpus, pod.labels, {**pod.environment, **own})
        deployed = Deployed(nodes, folder, rendered, free_port(), key)
        deployed.put(rendered)
        yield deployed
    finally:
        nodes.stop()
        shutil.rmtree(folder)


def prepare_store(own: Mapping[str, str]) -> str:
    """What the migration Job does; answers the first administrator's key."""
    environment = {**own_environment(), **own}
    command = [sys.executable, "-m", "serve.cli", "store", "prepare"]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return (Path(own["SM4LL_DATA_DIR"]) / "local.key").read_text().strip()


def rendered_again(folder: Path, changes: Mapping[str, Mapping[str, int]]) -> Rendered:
    """The shipped family with other autoscaling bounds of these versions."""
    configs = shutil.copytree(CONFIGS_DIR, folder / "configs")
    file = configs / "family.yaml"
    family = yaml.safe_load(file.read_text())
    for expert in family["experts"]:
        if expert["version"] in changes:
            expert.setdefault("autoscaling", {}).update(changes[expert["version"]])
    file.write_text(yaml.safe_dump(family))
    files = FamilyFiles(file, configs / "tenants.yaml", configs / "experiments.yaml")
    return Rendered(render_overlay("local", configs / "kubernetes.yaml", files).files)


def try_on(deployed: Deployed, version: str) -> None:
    """The bundled demo pictures, over the port that the serve service leads to."""
    expert, _, name = version.partition("@")
    case = next(case for case in demo_cases() if case.expert == expert)
    options = TryOnOptions(expert=case.expert, version=name, seed=1, format="png")
    person, product = case.person_path.read_bytes(), case.product_path.read_bytes()
    with Client(deployed.url, deployed.key) as client:
        answer = client.tryon(options, person, product)
    assert answer.receipt.version == version
    assert answer.receipt.outside.lossless
    assert answer.receipt.outside.max_abs_diff == 0
    assert answer.pictures[0].data != person


def test_deployed_config_answers_a_try_on(deployed: Deployed) -> None:
    try_on(deployed, "eye@1")


def test_every_replica_runs_in_the_pool_of_its_deployment(deployed: Deployed) -> None:
    (app,) = deployed.rendered.read_serve_config(deployed.folder)["applications"]
    pools = {
        one["name"]: one["ray_actor_options"]["label_selector"][SELECTED]
        for one in app["deployments"]
    }
    labels = deployed.list_labels()
    where = {
        name: labels[node].get(SELECTED) for name, _, node in deployed.list_replicas().values()
    }
    assert where == pools, "every deployment has a pool, and runs there"
    assert set(labels) >= {node for _, _, node in deployed.list_replicas().values()}


def test_other_bounds_restart_no_replica(deployed: Deployed, tmp_path: Path) -> None:
    before = deployed.list_replicas()
    # Further, to a fixed number, and to more than there are now.
    bounds = {
        "eye@1": {"max_replicas": 5},
        "shoes@1": {"min_replicas": 1, "max_replicas": 1},
        "bg@1": {"min_replicas": 2, "max_replicas": 2},
    }
    deployed.put(rendered_again(tmp_path, bounds))
    after = deployed.list_replicas()
    assert before.items() <= after.items()
    assert [after[one][0] for one in after.keys() - before] == ["Expert-bg@1"]
    config = deployed.read_app()["deployments"]["Expert-eye@1"]["deployment_config"]
    assert config["autoscaling_config"]["max_replicas"] == 5


BUNDLE = """
expert: eye
name: second
title: of the tests
status: benchmark
licence: {name: none, commercial_use: true}
backend: {kind: warp}
crop: {context: 1.6, size_px: 256}
"""


def test_versions_and_weights_of_an_experiment_are_not_in_the_config(
    deployed: Deployed, tmp_path: Path
) -> None:
    """What is deployed and changed through the API stays when the operator writes again."""
    bundle = tmp_path / "eye.second.yaml"
    bundle.write_text(BUNDLE)
    settings = {"SM4LL_URL": deployed.url, "SM4LL_API_KEY": deployed.key}
    added = sm4ll("experts", "deploy", "eye@second", "--bundle", str(bundle), **settings)
    assert added.returncode == 0, added.stderr
    arms = (
        Arm(name="old", version="eye@1", weight=9_000),
        Arm(name="new", version="eye@second", weight=1_000),
    )
    before, apps = deployed.list_replicas(), deployed.read_apps().keys()
    with Client(deployed.url, deployed.key) as client:
        client.experiments.create(
            NewExperiment(id="eye-2", title="Two", expert="eye", arms=arms, start=True)
        )
        client.experiments.set_weights("eye-2", {"old": 2_500, "new": 7_500})
        deployed.put(deployed.rendered)
        assert deployed.list_replicas() == before
        assert deployed.read_apps().keys() == apps, "the added version is still an application"
        weights = {arm.name: arm.weight for arm in client.experiments.get("eye-2").design.arms}
    assert weights == {"old": 2_500, "new": 7_500}
    try_on(deployed, "eye@second")
    labels = deployed.list_labels()
    (of_added,) = [app for app in apps if "eye@second" in app]
    pools = {labels[node].get(SELECTED) for _, _, node in deployed.list_replicas(of_added).values()}
    assert pools == {"light-cpu"}, "not where routers need the processors"
