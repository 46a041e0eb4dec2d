"""The graph as Ray's own tools see it: `serve run`, and the Serve config file."""

import importlib
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from deployments.bundle import Bundle, load_bundle, load_family
from deployments.options import (
    ExpertGroup,
    expert_options,
    group_experts,
    router_options,
    segmenter_options,
)
from serve.app import AppArgs, build_app
from serve.config import Autoscaling, DeployedVersion, FamilyConfig, Resources
from serve.errors import ConfigError
from serve.messages import EXPERTS
from serve.scaling import POLICY
from serve.settings import CONFIGS_DIR


def test_serve_config_file_fits_serves_schema_and_its_target_imports() -> None:
    text = yaml.safe_load((CONFIGS_DIR / "serve.yaml").read_text())
    schema = ServeDeploySchema.model_validate(text)
    (application,) = schema.applications
    module, _, attribute = application.import_path.partition(":")
    assert getattr(importlib.import_module(module), attribute) is build_app
    AppArgs.model_validate(application.args)
    assert application.autoscaling_policy is not None
    assert application.autoscaling_policy["policy_function"] == POLICY


def test_unknown_argument_is_refused() -> None:
    with pytest.raises(ValidationError, match="famly"):
        AppArgs.model_validate({"famly": "x"})


def test_build_app_names_the_family_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml"):
        build_app(AppArgs(family=tmp_path / "gone.yaml"))


def test_new_version_is_one_file_and_one_line(family: Path) -> None:
    bundle = (family.parent / "experts/eye.1.yaml").read_text().replace('name: "1"', 'name: "2"')
    (family.parent / "experts/eye.2.yaml").write_text(bundle)
    extended = family.with_name("extended.yaml")
    extended.write_text(family.read_text() + "  - version: eye@2\n")
    build_app(AppArgs(family=extended))


def group_of(deployed: DeployedVersion, bundle: Bundle | None = None) -> ExpertGroup:
    bundle = bundle or load_bundle(CONFIGS_DIR / "experts/eye.1.yaml")
    return ExpertGroup(f"Expert-{deployed.version}", deployed, (bundle,))


def test_autoscaling_bounds_and_resources_reach_ray() -> None:
    deployed = DeployedVersion(
        version="top@2",
        autoscaling=Autoscaling(min_replicas=0, max_replicas=5),
        resources=Resources(num_cpus=1, num_gpus=0.25),
    )
    options = expert_options(group_of(deployed))
    assert options["name"] == "Expert-top@2"
    assert options["autoscaling_config"]["min_replicas"] == 0
    assert options["autoscaling_config"]["max_replicas"] == 5
    assert options["ray_actor_options"] == {"num_cpus": 1, "num_gpus": 0.25}


def test_equal_bounds_are_a_fixed_number_of_replicas() -> None:
    fixed = DeployedVersion(version="top@2", autoscaling=Autoscaling(min_replicas=2))
    options = expert_options(group_of(fixed))
    assert options["num_replicas"] == 2
    assert "autoscaling_config" not in options


def test_a_batching_version_has_room_for_the_batch_behind_the_running_one(family: Path) -> None:
    config, bundles = load_family(family)
    groups = {group.name: group for group in group_experts(config, bundles)}
    batching = groups["Experts-klein"]
    assert batching.bundles[0].backend.max_batch_size == 4
    assert expert_options(batching)["max_ongoing_requests"] == 8
    assert expert_options(groups["Expert-eye@1"])["max_ongoing_requests"] == 4
    said = DeployedVersion(version="eye@2", max_ongoing_requests=3)
    assert expert_options(group_of(said))["max_ongoing_requests"] == 3


def test_shared_replicas_are_one_deployment_of_every_version_on_them(family: Path) -> None:
    groups = group_experts(*load_family(family))
    (shared,) = [group for group in groups if group.name == "Experts-klein"]
    assert [bundle.expert for bundle in shared.bundles] == [*EXPERTS, "top"]
    assert len(groups) == 11


def test_every_deployment_drains_longer_than_the_longest_request() -> None:
    family = FamilyConfig(experts=(DeployedVersion(version="eye@1"),))
    for options in (
        router_options(family.router),
        segmenter_options(family.segmenter, "classical"),
        expert_options(group_of(family.experts[0])),
    ):
        assert options["graceful_shutdown_timeout_s"] > family.router.default_timeout_s
