"""Rules and dashboards as objects of a cluster: for Prometheus' operator and Grafana's sidecar."""

import json
from collections.abc import Mapping
from typing import Any

from k8s.burn_rates import burn_groups
from k8s.health import health_groups
from k8s.observed import build_dashboards
from serve.config import FamilyConfig

LABELS: Mapping[str, str] = {"app.kubernetes.io/part-of": "sm4ll"}
GRAFANA_LABEL = "grafana_dashboard"
"""What Grafana's sidecar looks for by default; its value is not read.

Source: https://github.com/grafana/helm-charts, charts/grafana, `sidecar.dashboards.label`.
"""
FOLDER_ANNOTATION = "grafana_folder"
"""Read where the chart sets `sidecar.dashboards.folderAnnotation` to it."""
FOLDER = "sm4ll"


def prometheus_rules(family: FamilyConfig) -> dict[str, Any]:
    """
    Args:
        family: one whose objectives were checked (serve/objectives.py).

    Source: monitoring.coreos.com/v1, whose `spec` is a rule file of Prometheus.
    """
    groups = [*burn_groups(family), *health_groups(family)]
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "sm4ll", "labels": dict(LABELS)},
        "spec": {"groups": [group.document() for group in groups]},
    }


def dashboard_config_maps() -> list[dict[str, Any]]:
    """One each: a ConfigMap holds 1 MiB, and who edits one dashboard shall not replace all."""
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": f"sm4ll-dashboard-{dashboard.name}",
                "labels": {**LABELS, GRAFANA_LABEL: "1"},
                "annotations": {FOLDER_ANNOTATION: FOLDER},
            },
            "data": {f"sm4ll-{dashboard.name}.json": _text(dashboard.document())},
        }
        for dashboard in build_dashboards()
    ]


def _text(document: dict[str, Any]) -> str:
    return f"{json.dumps(document, indent=1, ensure_ascii=False)}\n"
