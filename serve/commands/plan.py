"""Where every replica would run: as a table, as a picture, as the family's own lines."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich import box
from rich.table import Table
from rich.text import Text

from deployments.bundle import load_family
from deployments.packing.demand import CpuReplicas, Demands, collect_demands
from deployments.packing.placement import Placement
from deployments.packing.plan_file import read_plan, write_plan
from deployments.packing.planner import (
    PackingPlan,
    PlannedGpu,
    Share,
    plan_packing,
    with_planned_resources,
)
from serve.commands.console import Family, out
from serve.commands.drawing import Drawing, to_html, to_png, to_svg
from serve.commands.plan_picture import choose_colours, draw_plan
from serve.config import FamilyConfig, load_yaml
from serve.settings import CONFIGS_DIR, Settings

MAX_BAR = 64
MAX_SHOWN = 48
WRITERS: Mapping[str, Callable[[Drawing], str | bytes]] = {
    ".svg": to_svg,
    ".html": to_html,
    ".png": to_png,
}
PLAN_ENDINGS = (".yaml", ".yml")


def plan(
    family: Family = None,
    placement: Annotated[
        Path | None,
        typer.Option(help="Your GPUs and rules; the shipped configs/placement.yaml when absent."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="A picture (.svg, .png, .html), or the plan itself (.yaml) for --previous.",
        ),
    ] = None,
    previous: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="An earlier plan: what still fits stays where it is."
        ),
    ] = None,
    as_yaml: Annotated[
        bool, typer.Option("--yaml", help="Print the family with num_gpus as planned, only that.")
    ] = False,
) -> None:
    """Pack every replica onto GPUs by what was measured of it.

    Reads the footprints that `sm4ll profile` wrote and the GPUs of the placement file. A version
    that needs more than half a GPU gets one to itself; lighter ones share, replicas of one version
    on different nodes where that costs no GPU, a reserve kept free on each. Exits 1 with the
    reason, in GiB, when something does not fit. Nothing is started or changed.

    For example: sm4ll plan --placement gpus.yaml -o plan.svg
    """
    ending = output.suffix.lower() if output else ""
    if output and ending not in (*WRITERS, *PLAN_ENDINGS):
        known = " ".join([*WRITERS, PLAN_ENDINGS[0]])
        raise typer.BadParameter(f"{output}: the name must end in one of {known}")
    config, bundles = load_family((family or Settings().family).resolve())
    rules = load_yaml(placement or CONFIGS_DIR / "placement.yaml", Placement)
    demands = collect_demands(config, bundles, rules)
    made = plan_packing(demands.gpu, rules, read_plan(previous) if previous else None)
    if as_yaml:
        _print_family(with_planned_resources(config, made))
    else:
        _say(made, demands, rules, previous)
    if output is None:
        return
    if ending in PLAN_ENDINGS:
        write_plan(output, made)
    else:
        drawn = WRITERS[ending](draw_plan(made, demands.cpu, _headline(made), _note(made, rules)))
        output.write_bytes(drawn.encode() if isinstance(drawn, str) else drawn)
    if not as_yaml:
        out.print(f"{output}", markup=False, highlight=False)


def _print_family(family: FamilyConfig) -> None:
    written = family.model_dump(mode="json", exclude_unset=True)
    text = yaml.safe_dump(written, sort_keys=False, default_flow_style=None, width=100)
    out.print(text, markup=False, highlight=False, end="")


def _say(made: PackingPlan, demands: Demands, rules: Placement, previous: Path | None) -> None:
    out.print(_headline(made), style="bold", highlight=False)
    if made.used:
        out.print(_note(made, rules), style="dim", highlight=False)
        if previous is not None:
            moved = made.num_replicas - made.num_kept
            out.print(f"{made.num_kept} replicas stay as in {previous}, {moved} are new or move")
        out.print(_table(made))
        _print_bars(made)
        _print_rest(made)
    _print_cpu(demands.cpu, has_gpu_replicas=bool(demands.gpu))


def _headline(made: PackingPlan) -> str:
    names = made.num_gpus_by_name
    if not names:
        return f"No replica needs a GPU: {_count(len(made.gpus), 'GPU')} stay empty"
    return (
        f"{_count(made.num_replicas, 'replica')} of {_count(len(names), 'deployment')} "
        f"on {len(made.used)} of {_count(len(made.gpus), 'GPU')}"
    )


def _note(made: PackingPlan, rules: Placement) -> str:
    kept = f"{rules.reserve:.0%}"
    if rules.reserve_gib:
        kept += f" or {rules.reserve_gib:g} GiB"
    return (
        f"at least {made.lower_bound} are needed; {kept} of each GPU kept free; "
        f"planned for {rules.replicas}_replicas"
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _table(made: PackingPlan) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("node", no_wrap=True)
    table.add_column("GPU", no_wrap=True)
    table.add_column("replicas")
    for heading in ("num_gpus", "GiB used", "GiB free"):
        table.add_column(heading, justify="right", no_wrap=True)
    for planned in made.used[:MAX_SHOWN]:
        gpu = planned.gpu
        table.add_row(
            gpu.node,
            f"{gpu.id.rsplit('/', 1)[1]}  {gpu.kind}",
            ", ".join(_replicas(planned)),
            f"{planned.num_gpus:.4f}",
            f"{planned.used_gib:.1f}",
            f"{planned.free_gib:.1f}",
        )
    return table


def _replicas(planned: PlannedGpu) -> Iterator[str]:
    """Alike ones together: `3 x klein 0.2601`."""
    for (name, num_gpus), alike in groupby(planned.shares, key=lambda s: (s.name, s.num_gpus)):
        number = len(list(alike))
        yield f"{f'{number} x ' if number > 1 else ''}{name} {num_gpus:g}"


def _print_bars(made: PackingPlan) -> None:
    colours = choose_colours(made)
    shown = made.used[:MAX_SHOWN]
    width = max(len(planned.gpu.id) for planned in shown)
    num_cells = max(20, min(MAX_BAR, out.width - width - 16))
    for planned in shown:
        line = Text(f"{planned.gpu.id:<{width}} ")
        line.append_text(_bar(planned, colours, num_cells))
        line.append(f" {planned.free_gib:.1f} GiB free", style="dim")
        out.print(line, soft_wrap=False, no_wrap=True, overflow="ellipsis")


def _bar(planned: PlannedGpu, colours: Mapping[str, str], num_cells: int) -> Text:
    """The GPU's memory; ends are rounded, not lengths, so that they add up."""
    bar, at, end = Text(), 0, 0.0
    for share in planned.shares:
        end += share.num_gpus
        cells = round(end * num_cells) - at
        bar.append(_segment(share, cells), style=f"#ffffff on {colours[share.name]}")
        at += cells
    reserve = min(num_cells - at, round(planned.reserve_gib / planned.gpu.gib * num_cells))
    bar.append("·" * (num_cells - at - reserve), style="dim")
    bar.append("╱" * reserve, style="dim")
    return bar


def _segment(share: Share, cells: int) -> str:
    """Without colour the neighbours are told apart by their ends."""
    if cells < 1:
        return ""
    name = share.name[: max(0, cells - 2)]
    return f"▏{name:<{cells - 1}}"[:cells]


def _print_rest(made: PackingPlan) -> None:
    hidden = len(made.used) - MAX_SHOWN
    if hidden > 0:
        out.print(f"and {_count(hidden, 'more GPU')} in use; -o plan.html shows them all")
    empty = [planned.gpu.id for planned in made.gpus if not planned.shares]
    if empty:
        named = ", ".join(empty[:8]) + (", ..." if len(empty) > 8 else "")
        out.print(f"{_count(len(empty), 'GPU')} empty: {named}", highlight=False)
    mixed = {name: kinds for name, kinds in made.kinds_by_name.items() if len(kinds) > 1}
    for name, kinds in mixed.items():
        out.print(f"{name} runs on {' and '.join(kinds)}: its num_gpus is that of the smallest")


def _print_cpu(cpu: Sequence[CpuReplicas], has_gpu_replicas: bool) -> None:
    if not cpu:
        return
    cores = sum(replicas.num_cpus * replicas.num_replicas for replicas in cpu)
    number = sum(replicas.num_replicas for replicas in cpu)
    out.print(f"\nWithout a GPU: {_count(number, 'replica')}, {cores:g} CPUs reserved")
    for replicas in cpu:
        out.print(
            f"  {replicas.name}  {replicas.backend} x {replicas.num_replicas}", highlight=False
        )
    if not has_gpu_replicas:
        out.print(
            "None of these versions has weights. A version with a diffusion backend is measured "
            "with\n`sm4ll profile eye@2`, and then has its place here.",
            highlight=False,
        )
