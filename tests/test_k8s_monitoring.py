"""Rules and dashboards reach a cluster as they are on one machine."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from deployments.bundle import load_family
from k8s.observed import render_observability
from k8s.rendering.monitoring import dashboard_config_maps, prometheus_rules
from serve.settings import CONFIGS_DIR
from tests.manifests import OVERLAYS, of_kind, overlay

FAMILY, _ = load_family(CONFIGS_DIR / "family.yaml")
MIB = 1024 * 1024


def test_rules_are_the_same_as_in_files() -> None:
    files = render_observability(FAMILY)
    groups = [
        group
        for name, text in files.items()
        if name.startswith("observability/rules/")
        for group in yaml.safe_load(text)["groups"]
    ]
    assert prometheus_rules(FAMILY)["spec"]["groups"] == groups


def test_rules_in_the_cluster_are_what_prometheus_reads(tmp_path: Path) -> None:
    binary = shutil.which("promtool")
    if binary is None:
        pytest.skip("no promtool on this machine (apt-get install prometheus)")
    (rules,) = of_kind(overlay("production"), "PrometheusRule")
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump(rules["spec"]))
    command = [binary, "check", "rules", "--lint=all", "--lint-fatal", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    num_rules = sum(len(group["rules"]) for group in prometheus_rules(FAMILY)["spec"]["groups"])
    assert f"{num_rules} rules found" in done.stdout
    file.write_text(
        yaml.safe_dump({"groups": [{"name": "a", "rules": [{"alert": "A", "expr": "("}]}]})
    )
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0


def test_a_laptop_has_no_kinds_of_prometheus_operator() -> None:
    assert of_kind(overlay("local"), "PrometheusRule", "PodMonitor", "ServiceMonitor") == []


def test_dashboards_fit_and_are_those_of_the_files() -> None:
    files = render_observability(FAMILY)
    maps = dashboard_config_maps()
    assert len(maps) == sum(name.startswith("dashboards/") for name in files)
    for one in maps:
        assert one["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert len(yaml.safe_dump(one).encode()) < MIB
        ((name, text),) = one["data"].items()
        file = files[f"dashboards/generated/{name.removeprefix('sm4ll-')}"]
        assert json.loads(text) == json.loads(file)


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_dashboard_is_in_the_cluster(name: str) -> None:
    labelled = {
        one["metadata"]["name"]
        for one in of_kind(overlay(name), "ConfigMap")
        if one["metadata"]["labels"].get("grafana_dashboard")
    }
    assert labelled == {one["metadata"]["name"] for one in dashboard_config_maps()}


def test_collector_reads_its_configuration_and_answers_where_it_is_asked() -> None:
    (deployment,) = (
        one
        for one in of_kind(overlay("production"), "Deployment")
        if one["metadata"]["name"] == "sm4ll-otel-collector"
    )
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (volume,) = pod["volumes"]
    (mount,) = container["volumeMounts"]
    (config_map,) = (
        one
        for one in of_kind(overlay("production"), "ConfigMap")
        if one["metadata"]["name"] == volume["configMap"]["name"]
    )
    ((name, text),) = config_map["data"].items()
    assert container["args"] == [f"--config={mount['mountPath']}/{name}"]
    config = yaml.safe_load(text)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for listens, port in (
        (config["receivers"]["otlp"]["protocols"]["http"]["endpoint"], ports["otlp-http"]),
        (config["extensions"]["health_check"]["endpoint"], ports["health"]),
    ):
        assert listens.endswith(f":{port}")
    given = {variable["name"] for variable in container["env"]}
    assert config["exporters"]["otlp_http"]["endpoint"].removeprefix("${env:").rstrip("}") in given
