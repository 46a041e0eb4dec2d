"""How the cluster on Kubernetes is, and waiting for it."""

import dataclasses
import json
import time
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.live import Live

from serve.commands.console import err, out
from serve.commands.k8s_access import (
    DEFAULT_NAMESPACE,
    SERVICE,
    Context,
    Name,
    Namespace,
    open_control_plane,
)
from serve.errors import ClusterError

if TYPE_CHECKING:
    from k8s.state.status import ClusterStatus
    from k8s.state.waiting import Outcome, Verdict

LATE = 3


class Goal(StrEnum):
    """What `wait` waits for."""

    READY = "ready"
    UPGRADED = "upgraded"


def status(
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Draw it again whenever something changes.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for machines.")] = False,
    namespace: Namespace = DEFAULT_NAMESPACE,
    name: Name = SERVICE,
    context: Context = None,
) -> None:
    """Show how the cluster is: pools, experts, what is wrong and what helps.

    Exits 0 when requests are answered and every application runs, 1 otherwise.

    For example: sm4ll k8s status --watch
    """
    from k8s.state.snapshot import read_revision, read_snapshot
    from k8s.state.status import judge
    from serve.commands.k8s_drawing import draw_status, show

    if watch and not as_json:
        _follow(namespace, name, context)
        return
    api = open_control_plane(context)
    told = judge(read_snapshot(api, namespace, name), read_revision(api, namespace))
    if as_json:
        out.print_json(json.dumps(dataclasses.asdict(told)))
    else:
        show(draw_status(told), out)
    raise typer.Exit(0 if told.is_ready else 1)


def _follow(namespace: str, name: str, context: str | None) -> None:
    """Until Ctrl-C; what fails meanwhile is said above the last picture."""
    from k8s.state.snapshot import read_revision, read_snapshot
    from k8s.state.status import judge
    from k8s.state.waiting import next_look, watch_changes
    from serve.commands.k8s_drawing import draw_status, show

    api = open_control_plane(context)
    revision = read_revision(api, namespace)
    told = judge(read_snapshot(api, namespace, name), revision)
    console = Console()
    try:
        with (
            watch_changes(lambda: open_control_plane(context), namespace) as changed,
            Live(console=console, screen=True, auto_refresh=False) as live,
        ):
            num_findings = max(2, console.size.height // 8)
            first = draw_status(told, footer=_footer(), max_findings=num_findings)
            live.update(first, refresh=True)
            while True:
                next_look(changed)
                trouble = ""
                try:
                    told = judge(read_snapshot(api, namespace, name), revision)
                except ClusterError as exc:  # it may come back
                    trouble = str(exc)
                num_findings = max(2, console.size.height // 8)
                drawn = draw_status(
                    told, footer=_footer(), trouble=trouble, max_findings=num_findings
                )
                live.update(drawn, refresh=True)
    except KeyboardInterrupt:
        show(draw_status(told), out)


def _footer() -> str:
    return time.strftime("%H:%M:%S, drawn again when something changes; Ctrl-C ends")


def wait(
    goal: Annotated[
        Goal,
        typer.Option("--for", help="ready: requests are answered. upgraded: by the last applied."),
    ] = Goal.READY,
    timeout: Annotated[str, typer.Option(help="Such as 90s, 20m or 1h.")] = "20m",
    patience: Annotated[
        float, typer.Option(min=0, help="Seconds that an error must last to end the waiting.")
    ] = 20.0,
    namespace: Namespace = DEFAULT_NAMESPACE,
    name: Name = SERVICE,
    context: Context = None,
) -> None:
    """Wait until the cluster answers, or until the last change has arrived everywhere.

    Prints a line whenever something has moved. Exits 0 when it is so; 1 when something is broken
    that waiting does not cure (an image that is not there, a deployment that fails); 3 when the
    time is over.

    For example: sm4ll k8s wait --for upgraded --timeout 30m
    """
    from k8s.state.waiting import Verdict
    from serve.commands.k8s_drawing import draw_finding, show

    verdict = Verdict(goal.value, parse_duration(timeout), patience)
    outcome, told = _wait_until(verdict, namespace, name, context)
    if outcome == "reached":
        where = f": {told.address}" if told.address else ""
        out.print(f"It is {goal.value}{where}", markup=False, highlight=False)
        return
    for found in verdict.fatal or told.findings:
        show(draw_finding(found), err)
    if outcome == "failed":
        err.print("Waiting does not cure that.")
        raise typer.Exit(1)
    err.print(f"Not {goal.value} after {timeout}.")
    raise typer.Exit(LATE)


def _wait_until(
    verdict: "Verdict", namespace: str, name: str, context: str | None
) -> "tuple[Outcome, ClusterStatus]":
    """Prints a line at each step; what came of it, and the last that was seen."""
    from k8s.state.snapshot import read_snapshot
    from k8s.state.status import judge
    from k8s.state.waiting import next_look, watch_changes
    from serve.commands.k8s_drawing import tell_progress

    api = open_control_plane(context)
    began_s, said = time.monotonic(), ""
    with watch_changes(lambda: open_control_plane(context), namespace) as changed:
        while True:
            told = judge(read_snapshot(api, namespace, name))
            elapsed_s = time.monotonic() - began_s
            outcome = verdict.look(told, elapsed_s)
            step = tell_progress(told)
            if step != said:
                said = step
                out.print(f"{_clock(elapsed_s)} {step}", markup=False, highlight=False)
            if outcome is not None:
                return outcome, told
            next_look(changed, verdict.pause_s(elapsed_s))


def _clock(elapsed_s: float) -> str:
    minutes, seconds = divmod(round(elapsed_s), 60)
    return f"[{minutes:3d}:{seconds:02d}]"


SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_duration(text: str) -> float:
    """`90s`, `20m`, `1h`; seconds where no unit is named.

    Raises:
        BadParameter: it is none of these.
    """
    number, unit = (text[:-1], text[-1:]) if text[-1:] in SECONDS else (text, "s")
    try:
        return float(number) * SECONDS[unit]
    except ValueError:
        raise typer.BadParameter(f"{text}: such as 90s, 20m or 1h") from None
