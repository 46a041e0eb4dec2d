"""The state of the cluster on Kubernetes as one screen of a terminal."""

import io
from collections.abc import Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from k8s.state.findings import Finding, Weight
from k8s.state.quantity import count, tell_age
from k8s.state.status import ApplicationLine, ClusterStatus, PoolLine, State

STATE_STYLES: dict[State, str] = {
    "ready": "bold green",
    "upgrading": "bold yellow",
    "starting": "bold yellow",
    "not ready": "bold red",
    "suspended": "bold yellow",
    "absent": "bold red",
}
STATE_WORDS: dict[State, str] = {
    "ready": "READY",
    "upgrading": "UPGRADING",
    "starting": "STARTING",
    "not ready": "NOT READY",
    "suspended": "SUSPENDED",
    "absent": "NOT THERE",
}
# A letter as well as a colour: for who sees no colours, and for files.
MARKS: dict[Weight, tuple[str, str]] = {
    "broken": ("✗", "bold red"),
    "waiting": ("…", "yellow"),
    "note": ("·", "dim"),
}
GOOD = ("HEALTHY", "RUNNING")
FAILED = ("DEPLOY_FAILED", "UNHEALTHY")
EXPERT = "Expert-"
NAME_DIGITS = 40


WIDE = 2000


def show(drawn: RenderableType, console: Console) -> None:
    """Broken into lines of the terminal; one line each where something else reads them."""
    if console.is_terminal:
        console.print(drawn, highlight=False, soft_wrap=False)
        return
    # `print(width=...)` never goes beyond the console's own, and padding fills whatever it has.
    wide = Console(file=io.StringIO(), width=WIDE)
    with wide.capture() as captured:
        wide.print(drawn, highlight=False, soft_wrap=False)
    for line in captured.get().splitlines():
        console.print(line.rstrip(), markup=False, highlight=False)


def draw_status(
    status: ClusterStatus, *, footer: str = "", trouble: str = "", max_findings: int = 0
) -> Group:
    """
    Args:
        trouble: why the picture may be old.
        max_findings: so many at most; all of them when 0.
    """
    parts: list[RenderableType] = [_header(status)]
    if trouble:
        parts.append(Text(f"This picture is old: {trouble}", style="yellow"))
    # On a picture of the whole screen what is wrong comes first: a low terminal cuts the end.
    watched = bool(footer)
    if watched:
        parts.append(Text(footer, style="dim"))
    if status.clusters:
        parts += [Text(), _clusters(status)]
    if watched:
        parts += [Text(), *_findings(status, max_findings)]
    if status.pools:
        parts += [Text(), _pools(status.pools, several=len(status.clusters) > 1)]
    if status.applications:
        parts += [Text(), *_applications(status.applications)]
    if not watched:
        parts += [Text(), *_findings(status, max_findings)]
    if status.address:
        inside = " (inside the cluster)" if status.from_here else ""
        parts += [Text(), Text(f"Call it: {status.address}{inside}")]
    if status.from_here:
        parts.append(Text(f"   here: {status.from_here}"))
    if status.unreadable:
        named = ", ".join(status.unreadable)
        parts.append(Text(f"Not read, for want of the right: {named}", style="dim"))
    return Group(*parts)


def _header(status: ClusterStatus) -> Text:
    line = Text()
    line.append(f"{status.name}", style="bold")
    line.append(f" in namespace {status.namespace}  ")
    line.append(f" {STATE_WORDS[status.state]} ", style=f"{STATE_STYLES[status.state]} reverse")
    if status.state == "upgrading" and status.is_ready:
        line.append("  requests are answered", style="green")
    facts = [
        f"revision {status.revision}" if status.revision else "",
        f"KubeRay {status.kuberay_version}" if status.kuberay_version else "",
        f"Ray {status.ray_version}" if status.ray_version else "",
        status.image,
    ]
    told = ", ".join(fact for fact in facts if fact)
    if told:
        line.append(f"\n{told}", style="dim")
    return line


def _clusters(status: ClusterStatus) -> Table:
    table = _table("cluster", "", "age", "traffic", "capacity")
    for line in status.clusters:
        words = {"active": "answers", "pending": "comes", "leaving": "goes"}[line.role]
        table.add_row(
            line.name,
            Text(words, style={"active": "green", "pending": "yellow"}.get(line.role, "dim")),
            "" if line.age_s is None else tell_age(line.age_s),
            "" if line.weight_percent is None else f"{line.weight_percent} %",
            "" if line.capacity_percent is None else f"{line.capacity_percent} %",
        )
    return table


def _pools(pools: Sequence[PoolLine], several: bool) -> Table:
    columns = ("pool", "ready", "wanted", "bounds", "GPUs")
    table = _table(*(("cluster", *columns) if several else columns))
    for pool in pools:
        row = [
            pool.pool,
            Text(f"{pool.ready}/{pool.present}", style=_pool_style(pool)),
            str(pool.wanted),
            "" if pool.pool == "head" else f"{pool.min_pods}-{pool.max_pods}",
            f"{pool.ready * pool.gpus:g} of {pool.wanted * pool.gpus:g}" if pool.gpus else "",
        ]
        table.add_row(*((pool.cluster, *row) if several else row))
    return table


def _pool_style(pool: PoolLine) -> str:
    if pool.ready >= pool.wanted:
        return "green" if pool.wanted else "dim"
    return "yellow" if pool.ready else "red"


def _applications(applications: Sequence[ApplicationLine]) -> Iterator[RenderableType]:
    several = len({app.cluster for app in applications}) > 1
    for app in applications:
        line = Text(f"application {app.name} ")
        line.append(app.status.lower().replace("_", " "), style=_serve_style(app.status))
        if several:
            line.append(f"  on {app.cluster}", style="dim")
        yield line
        words = Text()
        for deployment in app.deployments:
            name = deployment.name.removeprefix(EXPERT)
            words.append("   " if words else "  ")
            if deployment.status in GOOD:
                words.append(name, style="green")
                continue
            words.append(name, style=_serve_style(deployment.status))
            words.append(f" ({deployment.status.lower().replace('_', ' ')})")
        if words:
            yield words


def _serve_style(status: str) -> str:
    if status in GOOD:
        return "green"
    return "bold red" if status in FAILED else "yellow"


def _findings(status: ClusterStatus, max_findings: int) -> Iterator[RenderableType]:
    if not status.findings:
        said = "Nothing is wrong." if status.is_ready else "Nothing is known to be wrong yet."
        yield Text(said, style="green" if status.is_ready else "yellow")
        return
    shown = status.findings[:max_findings] if max_findings else status.findings
    for found in shown:
        yield draw_finding(found)
    if len(shown) < len(status.findings):
        yield Text(f"  and {len(status.findings) - len(shown)} more", style="dim")


def draw_finding(found: Finding) -> RenderableType:
    mark, style = MARKS[found.weight]
    line = Text()
    line.append(found.subject, style="bold" if found.weight != "note" else "dim")
    if found.others:
        line.append(f" and {found.others} more like it", style="dim")
    line.append(f": {found.says}", style="dim" if found.weight == "note" else "")
    drawn = Table.grid(padding=(0, 1, 0, 0))
    drawn.add_row(Text(mark, style=style), line)
    if found.remedy:
        dim = "dim" if found.weight == "note" else "cyan"
        drawn.add_row("", Text(f"What helps: {found.remedy}", style=dim))
    return drawn


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def tell_progress(status: ClusterStatus) -> str:
    """One line: how far it is. Two with the same words are the same step."""
    if status.state == "absent":
        return "there is no RayService yet"
    latest = status.clusters[-1].name if status.clusters else ""
    pools = [pool for pool in status.pools if not latest or pool.cluster == latest]
    ready, wanted = sum(pool.ready for pool in pools), sum(pool.wanted for pool in pools)
    said = [f"{status.state}: {ready} of {count(wanted, 'pod')} ready"]
    healthy = [d.status in GOOD for app in status.applications for d in app.deployments]
    if healthy:
        said.append(f"{sum(healthy)} of {count(len(healthy), 'deployment')} healthy")
    weights = [
        f"{line.weight_percent} %" for line in status.clusters if line.weight_percent is not None
    ]
    if len(weights) > 1:
        said.append(f"traffic {' / '.join(weights)}")
    waiting = next((found for found in status.findings if found.weight != "note"), None)
    if waiting is not None:
        more = f" and {waiting.others} more" if waiting.others else ""
        said.append(f"{waiting.subject}{more}: {waiting.says}")
    return ", ".join(said[:-1]) + (". " if waiting else ", ") + said[-1] if said[1:] else said[0]
