"""Rules and dashboards for the family, and what the dashboards show, without Grafana."""

from pathlib import Path
from typing import Annotated

import typer

from deployments.bundle import load_family
from k8s.observed import render_observability
from serve.commands.console import Family, out
from serve.settings import Settings


def render(
    output: Annotated[
        Path, typer.Option("-o", "--output", file_okay=False, help="Folder to write into.")
    ],
    family: Family = None,
) -> None:
    """Write Prometheus rules, Grafana dashboards and the collector's configuration.

    Alerts follow the objectives (slo) of the family file; the dashboards are the same for all.
    Rules are for `rule_files` of Prometheus, dashboards for Grafana's import or provisioning.

    For example: sm4ll observability render --output monitoring
    """
    config, _ = load_family((family or Settings().family).resolve())
    for name, text in render_observability(config).items():
        path = output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        out.print(str(path), markup=False, highlight=False)
