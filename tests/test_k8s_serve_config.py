"""The rendered Serve config is one that Serve takes, and says of each deployment what the family
says."""

from pathlib import Path
from typing import Any

import pytest
from ray.serve._private.build_app import build_app as collect_deployments
from ray.serve.schema import (
    DeploymentSchema,
    RayActorOptionsSchema,
    ServeApplicationSchema,
    ServeDeploySchema,
)

from deployments.bundle import load_family
from deployments.options import expert_options, group_experts, router_options
from k8s.rendering.pools import PlannedCluster
from k8s.rendering.serve_config import build_serve_config, longest_request_s
from serve.app import AppArgs, build_app
from serve.errors import ConfigError
from serve.settings import CONFIGS_DIR
from tests.kubernetes_families import H100, plan, production, write_gpus, write_measured, write_yaml
from tests.measured_family import L4

SHIPPED = CONFIGS_DIR / "family.yaml"


@pytest.fixture(scope="module")
def cluster() -> PlannedCluster:
    return plan(SHIPPED, None)


def config_of(cluster: PlannedCluster) -> dict[str, Any]:
    return build_serve_config(cluster, production(), "cafe")


def overrides(cluster: PlannedCluster) -> dict[str, dict[str, Any]]:
    (application,) = config_of(cluster)["applications"]
    return {override["name"]: override for override in application["deployments"]}


def test_serve_takes_the_config_and_every_key_of_it_means_something(
    cluster: PlannedCluster,
) -> None:
    """Serve ignores keys at the top that it does not know: a typo would pass."""
    config = config_of(cluster)
    parsed = ServeDeploySchema.model_validate(config)
    assert parsed.http_options.host == "0.0.0.0"
    assert parsed.http_options.request_timeout_s == 120
    assert parsed.logging_config is not None
    assert not parsed.logging_config.enable_access_log
    assert config.keys() <= ServeDeploySchema.model_fields.keys()
    (application,) = config["applications"]
    assert application.keys() <= ServeApplicationSchema.model_fields.keys()
    for override in application["deployments"]:
        assert override.keys() <= DeploymentSchema.model_fields.keys()
        assert override["ray_actor_options"].keys() <= RayActorOptionsSchema.model_fields.keys()


def test_its_import_path_is_the_application_and_its_arguments_are_taken(
    cluster: PlannedCluster,
) -> None:
    (application,) = config_of(cluster)["applications"]
    module, name = application["import_path"].split(":")
    assert (module, name) == (build_app.__module__, build_app.__name__)
    args = AppArgs.model_validate(application["args"])
    assert (str(args.family), args.revision) == ("/etc/sm4ll/family.yaml", "cafe")


def test_every_deployment_of_the_graph_has_its_line(cluster: PlannedCluster) -> None:
    """One that has none would start anywhere, with what one machine gives it."""
    built = collect_deployments(build_app(AppArgs(family=SHIPPED)), name="sm4ll")
    assert overrides(cluster).keys() == {deployment.name for deployment in built.deployments}


def test_bounds_are_written_out_with_all_that_the_application_says_beside_them(
    cluster: PlannedCluster,
) -> None:
    """An override replaces the whole dictionary."""
    groups = group_experts(cluster.family, cluster.bundles)
    found = overrides(cluster)
    for options in (router_options(cluster.family.router), *map(expert_options, groups)):
        assert found[options["name"]]["autoscaling_config"] == options["autoscaling_config"]
    assert found["Router"]["autoscaling_config"]["metrics_interval_s"] == 1.0
    policy = found["Expert-top@1"]["autoscaling_config"]["policy"]
    assert policy["policy_kwargs"]["versions"] == ["top@1"]


def test_a_fixed_number_is_bounds_that_meet(tmp_path: Path) -> None:
    """Where an override of autoscaling comes or goes, Serve builds the application anew: from one
    number to bounds is an edit in place only as one of bounds."""
    fixed = {"min_replicas": 2, "max_replicas": 2}
    family = write_yaml(
        tmp_path / "family.yaml",
        {
            "bundles_dir": str(CONFIGS_DIR / "experts"),
            "segmenter": {"autoscaling": fixed},
            "experts": [{"version": "eye@1", "autoscaling": fixed}],
        },
    )
    found = overrides(plan(family, None, production(segmenters=None)))
    for name in ("Expert-eye@1", "Segmenter-classical", "JobRunner"):
        assert "num_replicas" not in found[name]
        bounds = found[name]["autoscaling_config"]
        assert bounds["min_replicas"] == bounds["max_replicas"]


def test_replicas_go_to_pods_of_their_pool(cluster: PlannedCluster) -> None:
    pools = {
        name: override["ray_actor_options"]["label_selector"]["sm4ll.dev/pool"]
        for name, override in overrides(cluster).items()
    }
    assert pools["Router"] == pools["JobRunner"] == "router"
    assert pools["Segmenter-classical"] == "segment"
    assert pools["Expert-eye@1"] == "light-cpu"


def test_one_that_lies_on_two_kinds_of_gpu_may_go_to_either(tmp_path: Path) -> None:
    write_measured(tmp_path, "eye@1", {L4: 10.0, H100: 30.0})
    experts = [{"version": "eye@1", "autoscaling": {"min_replicas": 1, "max_replicas": 5}}]
    family = write_yaml(tmp_path / "family.yaml", {"experts": experts})
    found = plan(family, write_gpus(tmp_path, [("a", 1, L4, 2), ("b", 1, H100, 1)]))
    options = overrides(found)["Expert-eye@1"]["ray_actor_options"]
    assert len(found.places["Expert-eye@1"]) == 2
    (application,) = config_of(found)["applications"]
    added = AppArgs.model_validate(application["args"]).added
    assert added.gpu == options["label_selector"], "and so may one that is added later"
    assert added.cpu == {"sm4ll.dev/pool": "light-cpu"}
    assert options["label_selector"]["sm4ll.dev/pool"] == "in(light-gpu-h100,light-gpu-l4)"
    assert 0 < options["num_gpus"] < 1
    assert ServeDeploySchema.model_validate(config_of(found))


def test_a_new_replica_starts_first_where_there_is_a_pod_to_spare_and_nowhere_else(
    tmp_path: Path,
) -> None:
    write_measured(tmp_path, "top@1", {L4: 15.0})
    experts = [{"version": "top@1", "autoscaling": {"min_replicas": 1, "max_replicas": 2}}]
    family = write_yaml(tmp_path / "family.yaml", {"experts": experts})
    enough, exactly = (
        overrides(plan(family, write_gpus(tmp_path, [("a", 1, L4, num_gpus)])))
        for num_gpus in (3, 2)
    )
    assert enough["Router"]["max_surge_percent"] == exactly["Router"]["max_surge_percent"] == 100
    assert enough["Expert-top@1"]["max_surge_percent"] == 100
    assert "max_surge_percent" not in exactly["Expert-top@1"]


def test_a_request_that_serve_would_cut_off_is_refused(tmp_path: Path) -> None:
    experts = [{"version": "eye@1"}]
    family = write_yaml(
        tmp_path / "family.yaml",
        {
            "bundles_dir": str(CONFIGS_DIR / "experts"),
            "router": {"default_timeout_s": 120},
            "experts": experts,
        },
    )
    with pytest.raises(ConfigError, match=r"default_timeout_s is 120, and Serve cuts .* after 120"):
        longest_request_s(load_family(family)[0])
