"""What an experiment has shown, as a table and as files."""

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from serve.client import ApiError, Client
from serve.commands.connection import connect
from serve.commands.console import Url, out
from serve.commands.experiments import ExperimentId
from serve.experiments.analysis import tell_effect, tell_value
from serve.experiments.metrics import METRICS
from serve.imaging.limits import ImageLimits
from serve.reporting.page import draw_plots, render_report
from serve.reporting.thumbnails import make_thumbnail
from serve.reporting.verdicts import find_shadow, find_worse, tell_next, tell_title
from serve.schemas.reports import ArmResult, Decision, MetricResult, Report

WIDE = 100
"""Columns of a terminal from which on tables say what they are made of."""
SHORT: dict[Decision, str] = {
    "better": "better", "worse": "worse", "equal": "equal", "not_worse": "not worse",
    "unknown": "open", "no_data": "-",
}  # fmt: skip
COLOURS: dict[Decision, str] = {
    "better": "green", "equal": "green", "not_worse": "green", "worse": "red",
}  # fmt: skip


def report(
    experiment: ExperimentId,
    output: Annotated[
        Path | None, typer.Option(help="Folder for report.html and its plots as .svg.")
    ] = None,
    revision: Annotated[
        int | None, typer.Option(min=1, help="Only under this allocation of the weights.")
    ] = None,
    url: Url = None,
) -> None:
    """Show what an experiment has shown so far, and what to make of it.

    For example: sm4ll experiments report eye-2 --output report
    """
    with connect(url) as client:
        found = client.experiments.report(experiment, revision)
        say_report(found)
        if output is not None:
            path = write_report(found, output, load_thumbnails(client, found))
            out.print(f"Written: {path}", markup=False, highlight=False)


def say_report(found: Report) -> None:
    """Tables of arms and of pairs, and the decision last: where the eye is."""
    if found.metrics:
        out.print(draw_results(found, found.metrics, out.width))
    if found.shadows:
        number = max(one.control.exposures for one in found.shadows)
        out.print(f"Shadows, the same inputs and seed on both, {number} pairs:", highlight=False)
        out.print(draw_results(found, found.shadows, out.width))
    if found.metrics or found.shadows:
        out.print("Above 0 is worse. equal: within the margin; open: no difference shown yet.")
    for note in found.notes:
        out.print(f"Note: {note}", markup=False, highlight=False)
    words = found.split.words
    out.print(f"{words[0].upper()}{words[1:]}.", markup=False, highlight=False)
    for one in found.headlines:
        colour = "yellow" if found.split.is_mismatch else COLOURS.get(one.decision, "yellow")
        out.print(f"[bold {colour}]{escape(tell_title(found, one))}[/]", highlight=False)
        lines = [one.words]
        shadow = find_shadow(found, one)
        if shadow is not None:
            lines.append(f"On the same requests (shadows): {shadow.words}.")
        worse = find_worse(found, one)
        if worse:
            lines.append(f"Worse in other things: {', '.join(worse)}.")
        following = tell_next(found, one)
        if following:
            lines.append(f"Next: {following}")
        for line in lines:
            out.print(f"  {line}", markup=False, highlight=False)


def draw_results(found: Report, results: tuple[MetricResult, ...], width: int = WIDE) -> Table:
    """One row a metric; a star at the one that decides. On 80 columns all of it is readable."""
    is_wide, has_several = width >= WIDE, len(found.arms) > 2
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("metric")
    if has_several:
        table.add_column("challenger")
    for heading in ("control", "challenger", "worse by", "between"):
        table.add_column(heading, justify="right", no_wrap=True)
    if is_wide:
        table.add_column("units", justify="right", no_wrap=True)
    table.add_column("decision", no_wrap=True)
    for one in results:
        metric = METRICS[one.metric]
        unit = "%" if metric.kind == "share" else metric.unit
        name = f"{one.title}{' *' if one.metric == found.primary else ''}"
        effect = "-" if one.effect is None else _bare(tell_effect(metric, one.effect))
        table.add_row(
            f"{name}{f', {unit}' if unit else ''}",
            *((escape(one.challenger.arm),) if has_several else ()),
            _mean(one, one.control),
            _mean(one, one.challenger),
            f"{effect} %" if metric.is_relative and one.effect is not None else effect,
            _interval(one),
            *((f"{one.control.units} / {one.challenger.units}",) if is_wide else ()),
            f"[{COLOURS.get(one.decision, 'default')}]{SHORT[one.decision]}[/]",
        )
    return table


def _bare(text: str) -> str:
    """Without its unit, which stands beside the metric."""
    return text.split(" ")[0]


def _mean(one: MetricResult, arm: ArmResult) -> str:
    return "-" if arm.mean is None else _bare(tell_value(METRICS[one.metric], arm.mean))


def _interval(one: MetricResult) -> str:
    metric = METRICS[one.metric]
    if one.low is None or one.high is None or metric.is_never:
        return "-"
    low, high = (_bare(tell_effect(metric, end)) for end in (one.low, one.high))
    return f"{low} .. {high}"


def load_thumbnails(client: Client, found: Report) -> dict[str, str]:
    """Of the pictures that are kept still and that the key may read."""
    thumbnails: dict[str, str] = {}
    for asset_id in found.picture_ids():
        try:
            data = client.assets.content(asset_id)
        except ApiError as exc:
            if exc.problem.status not in (403, 404):
                raise
            continue
        thumbnail = make_thumbnail(data, ImageLimits())
        if thumbnail is not None:
            thumbnails[asset_id] = thumbnail
    return thumbnails


def write_report(found: Report, folder: Path, thumbnails: dict[str, str]) -> Path:
    """The page, and each of its plots as a file beside it.

    Returns:
        Of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for plot in draw_plots(found):
        (folder / f"{plot.name}.svg").write_text(plot.svg, encoding="utf-8")
    path = folder / "report.html"
    path.write_text(render_report(found, thumbnails), encoding="utf-8")
    return path
