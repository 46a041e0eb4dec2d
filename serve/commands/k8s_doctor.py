"""What a cluster lacks before the family can run there, one line each."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from serve.commands.console import out
from serve.commands.k8s_access import (
    DEFAULT_NAMESPACE,
    SERVICE,
    Context,
    Name,
    Namespace,
    open_control_plane,
)

if TYPE_CHECKING:
    from k8s.doctor.checks import Check, Verdict

MARKS: "dict[Verdict, tuple[str, str]]" = {
    "ok": ("OK     ", "green"),
    "warning": ("WARNING", "yellow"),
    "problem": ("PROBLEM", "bold red"),
    "unknown": ("?      ", "dim"),
}


def doctor(
    overlay: Annotated[
        str | None,
        typer.Option(help="What is to run: local, production or a folder; what runs when absent."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Not what is in order.")] = False,
    namespace: Namespace = DEFAULT_NAMESPACE,
    name: Name = SERVICE,
    context: Context = None,
) -> None:
    """Look whether the cluster can run the overlay: rights, KubeRay, GPUs, Secrets, room.

    Before the first apply, and when something is odd. Changes nothing. The rights of a namespace's
    admin are enough; what may not be read is marked with a question mark. Exits 1 on problems.

    For example: sm4ll k8s doctor --overlay production
    """
    from k8s.control.kustomize import build, find_overlay
    from k8s.doctor.checks import examine
    from serve.commands.k8s_drawing import show

    wanted = build(find_overlay(overlay), namespace) if overlay else []
    numbers: dict[Verdict, int] = dict.fromkeys(MARKS, 0)
    area = remedy = ""
    for check in examine(open_control_plane(context), namespace, name, wanted):
        numbers[check.verdict] += 1
        if quiet and check.verdict == "ok":
            continue
        if check.area != area:
            area = check.area
            out.print(Text(area, style="bold"))
        for line in draw_check(check, with_remedy=check.remedy != remedy):
            show(line, out)
        remedy = check.remedy
    out.print(_sum_up(numbers))
    raise typer.Exit(1 if numbers["problem"] else 0)


def draw_check(check: "Check", with_remedy: bool = True) -> list[RenderableType]:
    """What helps several in a row is said once."""
    mark, style = MARKS[check.verdict]
    line = Table.grid(padding=(0, 1, 0, 0))
    line.add_column(width=len(mark) + 2)
    line.add_column(overflow="fold")
    line.add_row(Text(f"  {mark}", style), Text(check.says, "" if check.verdict != "ok" else "dim"))
    drawn: list[RenderableType] = [line]
    if with_remedy and check.remedy and check.verdict != "ok":
        helps = Text(f"What helps: {check.remedy}", style="cyan")
        drawn.append(Padding(helps, (0, 0, 0, 10), expand=False))
    return drawn


def _sum_up(numbers: "dict[Verdict, int]") -> Text:
    from k8s.state.quantity import count

    said = [
        count(numbers["problem"], "problem"),
        count(numbers["warning"], "warning"),
        f"{numbers['unknown']} not known",
        f"{numbers['ok']} in order",
    ]
    style = "bold red" if numbers["problem"] else "yellow" if numbers["warning"] else "bold green"
    return Text(f"\n{', '.join(said)}", style=style)
