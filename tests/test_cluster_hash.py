"""What is said to change in place does: no edit of experts, versions, bundles or bounds makes
KubeRay build another cluster, and every edit of what a pod is does."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from k8s.rendering.cluster_hash import PodBounds, appended_groups, changed_bounds, needs_new_cluster
from serve.settings import CONFIGS_DIR
from tests.kubernetes_families import (
    SHAPES,
    plan_production,
    serve_config_of,
    write_gpus,
    write_measured,
    write_seven,
    write_yaml,
)
from tests.measured_family import L4

Document = dict[str, Any]
Edit = Callable[[Document], None]
BOUNDS = {"min_replicas": 1, "max_replicas": 3}


@pytest.fixture(scope="module")
def shipped() -> Document:
    """Of the configuration as it is."""
    return rendered(CONFIGS_DIR)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The shipped configuration, to be edited."""
    shutil.copytree(CONFIGS_DIR, tmp_path, dirs_exist_ok=True)
    return tmp_path


def edit(path: Path, change: Edit) -> None:
    document = yaml.safe_load(path.read_text())
    change(document)
    write_yaml(path, document)


def rendered(folder: Path) -> Document:
    return plan_production(folder / "family.yaml", shapes=folder / SHAPES.name).service


def add_version(folder: Path) -> None:
    bundle = yaml.safe_load((folder / "experts/eye.1.yaml").read_text())
    write_yaml(folder / "experts/eye.2.yaml", {**bundle, "name": "2", "crop": {"context": 1.7}})
    edit(folder / "family.yaml", lambda family: family["experts"].append({"version": "eye@2"}))


def change_bounds(folder: Path) -> None:
    def change(family: Document) -> None:
        family["experts"][0]["autoscaling"] = {"min_replicas": 2, "max_replicas": 12}
        family["experts"][3]["autoscaling"] = {"min_replicas": 0, "max_replicas": 20}

    edit(folder / "family.yaml", change)


def take_version_away(folder: Path) -> None:
    edit(folder / "family.yaml", lambda family: family["experts"].pop())


def change_bundle(folder: Path) -> None:
    edit(folder / "experts/top.1.yaml", lambda bundle: bundle.update(blend={"feather": 0.1}))


def change_limits(folder: Path) -> None:
    edit(folder / "family.yaml", lambda family: family.update(router={"max_body_mib": 40}))


def change_experiment(folder: Path) -> None:
    arms = [{"name": "a", "version": "eye@1", "weight": 5000}, {"name": "b", "version": "eye@1"}]
    edit(folder / "experiments.yaml", lambda file: file.update(experiments=[{"arms": arms}]))


def change_toleration(folder: Path) -> None:
    shape = {"gpu_tolerations": [{"key": "gpu", "value": "l4"}]}
    edit(folder / SHAPES.name, lambda shapes: shapes["production"].update(shape))


def more_routers(folder: Path) -> None:
    shape = {"routers": {"min_replicas": 3, "max_replicas": 20}}
    edit(folder / SHAPES.name, lambda shapes: shapes["production"].update(shape))


@pytest.mark.parametrize(
    "change",
    [
        *(add_version, take_version_away, change_bounds, change_bundle, change_limits),
        *(change_experiment, change_toleration, more_routers),
    ],
)
def test_edits_of_what_is_served_are_taken_in_place(
    shipped: Document, folder: Path, change: Callable[[Path], None]
) -> None:
    change(folder)
    assert needs_new_cluster(shipped, rendered(folder)) == []


@pytest.mark.parametrize(
    ("shape", "path"),
    [
        ({"image": "other"}, "headGroupSpec.template.spec.containers[ray-head].image"),
        ({"env": {"A": "1"}}, "workerGroupSpecs[router].template.spec.containers[ray-worker].env"),
        ({"head": {"cpu": 2}}, "headGroupSpec.template.spec.containers[ray-head].resources"),
        ({"priority_class": "x"}, "workerGroupSpecs[segment].template.spec.priorityClassName"),
        ({"idle_timeout_s": 9}, "autoscalerOptions.idleTimeoutSeconds"),
        ({"model_cache": {"kind": "node"}}, "volumes[models]"),
    ],
)
def test_edits_of_what_a_pod_is_make_another_cluster_and_are_named(
    shipped: Document, folder: Path, shape: Document, path: str
) -> None:
    edit(folder / SHAPES.name, lambda shapes: shapes["production"].update(shape))
    paths = needs_new_cluster(shipped, rendered(folder))
    assert any(path in found for found in paths), paths


def test_bounds_reach_serve_and_the_groups_and_leave_the_application_as_it_is(
    shipped: Document, folder: Path
) -> None:
    edit(folder / "family.yaml", lambda f: f["experts"][0].update(autoscaling={"max_replicas": 20}))
    after = rendered(folder)
    assert changed_bounds(shipped, after) == {"light-cpu": PodBounds(1, 6)}
    old, new = (serve_config_of(service)["applications"][0] for service in (shipped, after))
    assert old["args"] == new["args"]
    assert old["deployments"] != new["deployments"]


def test_a_changed_bundle_is_another_revision_of_the_application(
    shipped: Document, folder: Path
) -> None:
    change_bundle(folder)
    old, new = (serve_config_of(one)["applications"][0] for one in (shipped, rendered(folder)))
    assert old["args"]["revision"] != new["args"]["revision"]


def test_versions_with_weights_come_and_scale_in_place(tmp_path: Path) -> None:
    """The same on GPUs: another light version, more replicas, a new measurement."""
    family = write_seven(tmp_path, {L4: 5.0}, {L4: 15.0}, light=BOUNDS, heavy=BOUNDS)
    gpus = write_gpus(tmp_path, [("l4", 10, L4, 4)])
    before = plan_production(family, gpus).service
    write_measured(tmp_path, "eye@2", {L4: 6.5})
    write_measured(tmp_path, "face@1", {L4: 7.0})
    edit(family, lambda f: f["experts"].append({"version": "eye@2", "autoscaling": BOUNDS}))
    edit(family, lambda f: f["experts"][0].update(autoscaling={**BOUNDS, "max_replicas": 9}))
    after = plan_production(family, gpus).service
    assert needs_new_cluster(before, after) == []
    assert changed_bounds(before, after).keys() == {"light-gpu-l4"}


def test_the_first_version_on_a_gpu_brings_its_pool_to_the_running_cluster(
    shipped: Document, folder: Path
) -> None:
    write_measured(folder, "top@2", {L4: 15.0})
    edit(folder / "family.yaml", lambda f: f["experts"].append({"version": "top@2"}))
    after = rendered(folder)
    assert needs_new_cluster(shipped, after) == []
    assert appended_groups(shipped, after) == ["heavy-gpu-l4"]


def test_a_pool_that_goes_or_comes_in_between_makes_another_cluster(shipped: Document) -> None:
    service = shipped
    fewer = copy.deepcopy(service)
    groups = fewer["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    groups.append({**groups.pop(1), "groupName": "new"})
    assert needs_new_cluster(service, fewer) == [
        "rayClusterConfig.workerGroupSpecs[segment]",
        "rayClusterConfig.workerGroupSpecs[new]",
    ]
    turned = copy.deepcopy(service)
    turned["spec"]["rayClusterConfig"]["workerGroupSpecs"].reverse()
    assert needs_new_cluster(service, turned) == ["rayClusterConfig.workerGroupSpecs (order)"]


def test_what_the_autoscaler_and_the_api_server_write_is_no_edit(shipped: Document) -> None:
    service = shipped
    stored = copy.deepcopy(service)
    stored["spec"]["rayClusterConfig"]["upgradeStrategy"] = {"type": "Recreate"}
    for group in stored["spec"]["rayClusterConfig"]["workerGroupSpecs"]:
        group["replicas"], group["numOfHosts"] = 7, 1
        group["scaleStrategy"] = {"workersToDelete": ["pod-1"]}
        group["template"]["spec"]["schedulingGates"] = [{"name": "queue"}]
        for port in group["template"]["spec"]["containers"][0]["ports"]:
            port["protocol"] = "TCP"
    assert needs_new_cluster(service, stored) == []
    stored["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["idleTimeoutSeconds"] = 5
    assert needs_new_cluster(service, stored) == [
        "rayClusterConfig.workerGroupSpecs[router].idleTimeoutSeconds"
    ]
