"""What an apply would change, as a person reads it before saying yes."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from k8s.difference import Difference, in_words
from k8s.objects import is_migration
from k8s.planning import Act, Plan, Step
from k8s.revisions import Revision

MARKS: dict[Act, tuple[str, str]] = {
    "create": ("+", "green"),
    "change": ("~", "yellow"),
    "run": (">", "cyan"),
    "delete": ("-", "red"),
    "keep": (" ", "dim"),
}
DONE: dict[Act, str] = {
    "create": "new",
    "change": "changed",
    "run": "run",
    "delete": "deleted",
}
MAX_FIELDS = 40
MAX_LINES = 12
MAX_NAMES = 12
STATE_STYLES = {"done": "green", "pending": "yellow", "failed": "red"}


def draw_plan(plan: Plan) -> Group:
    """Every change grouped by object; what is new by kind, because there is nothing to compare."""
    parts: list[RenderableType] = []
    for step in plan.steps:
        if step.act == "change":
            parts += [*_changed(step)]
        elif step.act == "run":
            is_first = is_migration(step.manifest)
            when = "runs to its end before the RayService is touched" if is_first else "runs once"
            parts.append(_head("run", str(step.ref), when))
    parts += _created([step for step in plan.steps if step.act == "create"])
    for step in plan.steps:
        if step.act == "delete":
            why = "DELETED: an earlier revision brought it, this one does not"
            parts.append(_head("delete", str(step.ref), why))
    parts += [Text(f"Note: {note}", style="yellow") for note in plan.notes]
    if plan.is_namespace_new:
        parts.append(
            Text(
                f"The namespace {plan.namespace} is new: what is in it is tried by the server as "
                "soon as there is one, and before anything else is written.",
                style="dim",
            )
        )
    return Group(*parts, Text(), _sum(plan))


def _head(act: Act, what: str, says: str) -> Text:
    mark, style = MARKS[act]
    line = Text(f"{mark} ", style=f"bold {style}")
    line.append(what, style="bold")
    line.append(f"  {says}", style=style)
    return line


def _created(steps: Sequence[Step]) -> Iterator[RenderableType]:
    for kind, of_kind in groupby(sorted(steps, key=lambda one: one.ref), lambda one: one.ref.kind):
        names = [step.ref.name for step in of_kind]
        more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
        yield _head("create", kind, f"new: {', '.join(names[:MAX_NAMES])}{more}")


def _changed(step: Step) -> Iterator[RenderableType]:
    if step.new_cluster:
        yield _head("change", str(step.ref), "NEW CLUSTER")
        told = Text(
            "KubeRay builds a second cluster beside the one that answers (twice the pods), "
        )
        told.append("and switches when it is ready. Because of:\n")
        for path in step.new_cluster:
            told.append(f"  {path}\n", style="bold yellow")
        told.rstrip()
        yield Padding(told, (0, 0, 0, 2))
    elif step.ref.kind == "RayService":
        yield _head("change", str(step.ref), "in place: the cluster stays, no pod is replaced")
    else:
        yield _head("change", str(step.ref), "changes")
    fields = step.differences[:MAX_FIELDS]
    for difference in fields:
        yield Padding(_difference(difference), (0, 0, 0, 4))
    if len(step.differences) > len(fields):
        rest = len(step.differences) - len(fields)
        yield Padding(Text(f"and {rest} more fields", style="dim"), (0, 0, 0, 4))


def _difference(one: Difference) -> Text:
    line = Text(one.where)
    if one.is_text:
        changed = one.lines()
        for told in changed[:MAX_LINES]:
            style = {"+": "green", "-": "red"}.get(told[:1], "dim")
            line.append(f"\n  {told}", style=style)
        if len(changed) > MAX_LINES:
            line.append(f"\n  and {len(changed) - MAX_LINES} more lines", style="dim")
        return line
    line.append("  ")
    line.append(in_words(one.before), style="red")
    line.append(" → ")
    line.append(in_words(one.after), style="green")
    return line


def _sum(plan: Plan) -> Text:
    counts = Counter(step.act for step in plan.steps)
    if not plan.changes:
        return Text(f"Nothing to do: {_objects(len(plan.steps))} as they should be.", style="green")
    told = ", ".join(f"{counts[act]} {word}" for act, word in DONE.items() if counts[act])
    stays = f"; {counts['keep']} stay as they are" if counts["keep"] else ""
    return Text(f"{told}{stays}.", style="bold")


def _objects(number: int) -> str:
    return f"{number} object{'' if number == 1 else 's'}"


def draw_history(revisions: Sequence[Revision]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("", "when (UTC)", "who", "git", "image", "overlay", "state"):
        table.add_column(column, justify="right" if not column else "left", overflow="fold")
    for one in revisions:
        state = one.state
        if one.rolled_back_to is not None:
            state += f", back to {one.rolled_back_to}"
        table.add_row(
            Text(str(one.number), style="bold"),
            one.created.rstrip("Z").replace("T", " "),
            one.author,
            one.git_words,
            one.image,
            one.overlay,
            Text(state, style=STATE_STYLES[one.state]),
        )
    return table
