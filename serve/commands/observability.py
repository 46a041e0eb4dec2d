"""Rules and dashboards for the family, and what the dashboards show, without Grafana."""

import time
from pathlib import Path
from typing import Annotated

import httpx2
import typer

from deployments.bundle import load_family
from k8s.dashboards.model import Dashboard
from k8s.observed import build_dashboards, render_observability
from serve.commands.console import Family, out
from serve.commands.panel_page import Shown, render_page
from serve.commands.panels import TIMEOUT, Span, read_panel
from serve.settings import Settings


def render(
    output: Annotated[
        Path, typer.Option("-o", "--output", file_okay=False, help="Folder to write into.")
    ],
    family: Family = None,
) -> None:
    """Write Prometheus rules, Grafana dashboards, and configurations of what scrapes and collects.

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


NUM_STEPS = 120


def preview(
    prometheus: Annotated[str, typer.Option(help="Address of a Prometheus server.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", dir_okay=False, help="The page, an HTML file.")
    ] = Path("dashboards.html"),
    dashboard: Annotated[
        list[str] | None, typer.Option(help="Only this one; repeat for several.")
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.1, help="How far back.")] = 30.0,
    window: Annotated[
        float, typer.Option(min=1.0, help="Seconds that rates are of: four scrapes at least.")
    ] = 60.0,
) -> None:
    """Draw every panel of the dashboards from a Prometheus server, as one page without Grafana.

    For example: sm4ll observability preview --prometheus http://127.0.0.1:9090 --minutes 15
    """
    dashboards = {one.name: one for one in build_dashboards()}
    unknown = set(dashboard or ()) - dashboards.keys()
    if unknown:
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: take {', '.join(dashboards)}")
    chosen = [dashboards[name] for name in dashboard or dashboards]
    end_s = time.time()
    span = Span(end_s - 60 * minutes, end_s, 60 * minutes / NUM_STEPS, window)
    with httpx2.Client(timeout=TIMEOUT) as http:
        shown = read_dashboards(http, prometheus, chosen, span)
    output.write_text(render_page(chosen, shown, span, prometheus), encoding="utf-8")
    empty = sum(not lines for lines in shown.values())
    out.print(f"{output}: {len(shown)} panels, {empty} of them without data", highlight=False)


def read_dashboards(
    http: httpx2.Client, url: str, dashboards: list[Dashboard], span: Span
) -> Shown:
    """
    Raises:
        NotFound: it does not answer as Prometheus.
    """
    return {
        (one.name, row.title, panel.title): read_panel(http, url, panel, span)
        for one in dashboards
        for row in one.rows
        for panel in row.panels
    }
