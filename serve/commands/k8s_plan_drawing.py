"""What an apply would change, as a person reads it before saying yes."""

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from k8s.changes.difference import Difference, in_words
from k8s.changes.planning import Act, Plan, Step
from k8s.control.objects import is_awaited
from k8s.control.revisions import Revision

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
            is_first = is_awaited(step.manifest)
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
    gap = [Text()] if parts else []
    return Group(*parts, *gap, _sum(plan))


def _head(act: Act, what: str, says: str) -> Text:
    mark, style = MARKS[act]
    line = Text()
    line.append(f"{mark} ", style=f"bold {style}")
    line.append(what, style="bold")
    line.append(f"  {says}", style=style)
    return line


def _created(steps: Sequence[Step]) -> Iterator[RenderableType]:
    by_kind: dict[str, list[str]] = {}
    for step in steps:
        by_kind.setdefault(step.ref.kind, []).append(step.ref.name)
    for kind, names in by_kind.items():
        more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
        yield _head("create", kind, f"new: {', '.join(names[:MAX_NAMES])}{more}")


def _changed(step: Step) -> Iterator[RenderableType]:
    if step.new_cluster:
        yield _head("change", str(step.ref), "NEW CLUSTER")
        told = (
            "KubeRay builds a second cluster beside the one that answers, and switches when it is"
        )
        told += " ready: twice the pods until then. The fields marked ! are why."
        yield Padding(Text(told), (0, 0, 0, 2), expand=False)
    elif step.ref.kind == "RayService":
        yield _head("change", str(step.ref), "in place: the cluster stays, no pod is replaced")
    else:
        yield _head("change", str(step.ref), "changes")
    shown = [f"spec.{path}" for path in step.new_cluster]
    alike = _alike(step.differences, shown)
    for (is_why, *_), found in alike[:MAX_FIELDS]:
        yield Padding(_difference(found, is_why), (0, 0, 0, 2), expand=False)
    # Such as an order, which is no field.
    seen = [one.where for one in step.differences]
    for path in shown:
        if not any(_is_within(where, path) or _is_within(path, where) for where in seen):
            yield Padding(Text(f"! {path}", style="bold yellow"), (0, 0, 0, 2), expand=False)
    if len(alike) > MAX_FIELDS:
        rest = len(alike) - MAX_FIELDS
        yield Padding(Text(f"  and {rest} more fields", style="dim"), (0, 0, 0, 2), expand=False)


def _alike(
    differences: Sequence[Difference], reasons: Sequence[str]
) -> list[tuple[tuple[bool, str, str, str], list[Difference]]]:
    """The same edit in many places, such as an image in every pool, is read once."""
    groups: dict[tuple[bool, str, str, str], list[Difference]] = {}
    for one in differences:
        is_why = any(_is_within(one.where, path) for path in reasons)
        key = (is_why, one.path[-1], repr(one.before), repr(one.after))
        groups.setdefault(key, []).append(one)
    return list(groups.items())


def _is_within(where: str, path: str) -> bool:
    return where == path or where.startswith((f"{path}.", f"{path}["))


def _difference(found: Sequence[Difference], is_why: bool) -> Text:
    one = found[0]
    line = Text()
    line.append("! " if is_why else "  ", style="bold yellow")
    line.append(one.where, style="bold" if is_why else "")
    if len(found) > 1:
        line.append(f" and {len(found) - 1} more like it", style="dim")
    if one.is_text:
        changed = one.lines()
        for told in changed[:MAX_LINES]:
            style = {"+": "green", "-": "red"}.get(told[:1], "dim")
            line.append(f"\n    {told}", style=style)
        if len(changed) > MAX_LINES:
            line.append(f"\n    and {len(changed) - MAX_LINES} more lines", style="dim")
        return line
    line.append("  ")
    line.append(in_words(one.before), style="red")
    line.append(" → ")
    line.append(in_words(one.after), style="green")
    return line


def _sum(plan: Plan) -> Text:
    counts = Counter(step.act for step in plan.steps)
    if not plan.changes:
        return Text(
            f"Nothing to do: all {len(plan.steps)} objects are as they should be.", style="green"
        )
    told = ", ".join(f"{counts[act]} {word}" for act, word in DONE.items() if counts[act])
    stays = _stays(counts["keep"])
    return Text(f"{told}{stays}.", style="bold")


def _stays(number: int) -> str:
    if number == 0:
        return ""
    return "; 1 stays as it is" if number == 1 else f"; {number} stay as they are"


def draw_history(revisions: Sequence[Revision]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("", "when (UTC)", "who", "git", "image", "overlay", "state"):
        table.add_column(
            column,
            justify="right" if not column else "left",
            overflow="fold",
            no_wrap=column in ("", "when (UTC)", "git"),
        )
    if any(one.is_dirty for one in revisions):
        table.caption, table.caption_justify = "* with uncommitted changes", "left"
    for one in revisions:
        state: str = one.state
        if one.rolled_back_to is not None:
            state += f", back to {one.rolled_back_to}"
        table.add_row(
            Text(str(one.number), style="bold"),
            one.created[:16].replace("T", " "),
            one.author,
            f"{one.git[:10]}{'*' if one.is_dirty else ''}",
            one.image,
            one.overlay,
            Text(state, style=STATE_STYLES[one.state]),
        )
    return table
