"""The files of observability for one family: rules, dashboards, what scrapes and collects."""

import json
from pathlib import Path

from k8s.burn_rates import burn_groups
from k8s.dashboards.experiment import build_experiment
from k8s.dashboards.expert import build_expert
from k8s.dashboards.gpu_packing import build_gpu_packing
from k8s.dashboards.model import Dashboard
from k8s.dashboards.overview import build_overview
from k8s.dashboards.tenant import build_tenant
from k8s.health import health_groups
from k8s.rules import write_rules
from serve.config import FamilyConfig

HERE = Path(__file__).parent
RULES = "observability/rules"
WRITTEN_BY_HAND = (
    "observability/otel-collector.yaml",
    "observability/prometheus.yaml",
    "observability/collector.yaml",
    "observability/kustomization.yaml",
)
"""What no family changes."""
DASHBOARDS = "dashboards/generated"
HEADLINE = "Written by `sm4ll observability render`: change the family file, not this one."
SLO_HEADLINE = """Source: The Site Reliability Workbook, chapter 5, "Alerting on SLOs", approach 6
(multiwindow, multi-burn-rate alerts), https://sre.google/workbook/alerting-on-slos/
What is left of a budget needs a retention of the objectives' window: --storage.tsdb.retention.time
"""


def build_dashboards() -> tuple[Dashboard, ...]:
    """In the order in which somebody goes through them."""
    return (
        build_overview(),
        build_expert(),
        build_tenant(),
        build_experiment(),
        build_gpu_packing(),
    )


def render_observability(family: FamilyConfig) -> dict[str, str]:
    """By their paths below one folder, which are those below `k8s/` in this repository.

    Args:
        family: one whose objectives were checked (serve/objectives.py).
    """
    files = {
        f"{RULES}/slo.yaml": write_rules(burn_groups(family), f"{HEADLINE}\n{SLO_HEADLINE}"),
        f"{RULES}/health.yaml": write_rules(health_groups(family), HEADLINE),
        **{name: (HERE / name).read_text(encoding="utf-8") for name in WRITTEN_BY_HAND},
    }
    for dashboard in build_dashboards():
        text = json.dumps(dashboard.document(), indent=2, ensure_ascii=False)
        files[f"{DASHBOARDS}/{dashboard.name}.json"] = f"{text}\n"
    return files
