"""Change the cluster on Kubernetes: look, agree, apply; and the way back."""

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serve.commands.console import err, out
from serve.commands.k8s_access import (
    DEFAULT_NAMESPACE,
    Context,
    Namespace,
    check_label,
    open_control_plane,
)
from serve.commands.k8s_status import parse_duration
from serve.errors import (
    ClusterError,
    ConfigError,
    NotFound,
    RolloutRefused,
    RolloutTimedOut,
)

if TYPE_CHECKING:
    from k8s.changes.planning import Plan
    from k8s.control.api import ControlPlane
    from k8s.control.connection import Manifest
    from k8s.control.revisions import Revision, Revisions

FAILED, REFUSED, LATE, DIFFERS = 1, 2, 3, 4
DATABASE_STAYS = (
    "The database stays as it is: its migrations expand first, so older code runs on it. No Job "
    "runs."
)

Overlay = Annotated[str, typer.Option(help="local, production, or the folder of your own.")]
OverlayNamespace = Annotated[
    str | None,
    typer.Option("-n", "--namespace", callback=check_label, help="Instead of the overlay's own."),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Timeout = Annotated[str, typer.Option(help="Of the whole, such as 90s, 30m or 1h.")]
Force = Annotated[
    bool,
    typer.Option("--force-conflicts", help="Take fields over that another field manager owns."),
]


@contextmanager
def exit_codes() -> Iterator[None]:
    """Failures in words, and the exit code by which a CI tells them apart."""
    try:
        yield
    except (ClusterError, ConfigError, NotFound) as exc:
        err.print(str(exc), markup=False, highlight=False)
        remedy = getattr(exc, "remedy", "")
        if remedy:
            err.print(f"What helps: {remedy}", markup=False, highlight=False)
        code = FAILED
        if isinstance(exc, RolloutRefused):
            code = REFUSED
        elif isinstance(exc, RolloutTimedOut):
            code = LATE
        raise typer.Exit(code) from exc
    except KeyboardInterrupt:
        err.print(
            "\nStopped. What was written stays; `sm4ll k8s apply` again goes on from there, "
            "`sm4ll k8s rollback` goes back."
        )
        raise typer.Exit(130) from None


def agree(question: str, yes: bool, expected: str = "y") -> None:
    """
    Args:
        expected: What must be typed; y also stands for yes.

    Raises:
        RolloutRefused: nobody is there to be asked, or the answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise RolloutRefused(
            "There is no terminal to ask at", remedy="add --yes when the difference above is right"
        )
    try:
        answer = input(f"{question} ").strip()
    except (EOFError, KeyboardInterrupt):
        answer = ""
    if answer != expected and not (expected == "y" and answer.lower() in ("y", "yes")):
        raise RolloutRefused("Nothing was changed")


def apply(
    overlay: Overlay,
    yes: Yes = False,
    timeout: Timeout = "30m",
    wait: Annotated[bool, typer.Option(help="Until the RayService is ready.")] = True,
    force_conflicts: Force = False,
    namespace: OverlayNamespace = None,
    context: Context = None,
) -> None:
    """Make the cluster what an overlay says, after showing what differs and asking.

    Everything is tried by the server first (dry run), so what it would refuse shows before
    anything changes. Then, as field manager `sm4ll`: what the RayService needs, the migration Job
    to its end, the RayService and what looks at it; at the end, deleted, what earlier revisions
    brought and this one does not (never volumes, Secrets or namespaces). Cut off, it goes on when
    it is run again. Each apply is kept as a revision for `sm4ll k8s rollback`.

    Exits 0 when all is as it should be, 1 when something failed, 2 when nothing was begun (nobody
    agreed, somebody else is at it, bad usage), 3 when it is not ready in time.

    For example: sm4ll k8s apply --overlay production --yes --timeout 45m
    """
    with exit_codes():
        timeout_s = parse_duration(timeout)
        built = _build(overlay, namespace)
        api = open_control_plane(context)
        _say_where(f"Overlay {overlay}", built.namespace, api)
        plan = _plan_and_show(api, built.namespace, built.manifests, force_conflicts)
        if not plan.changes and not _is_unfinished(api, plan, built.manifests):
            return
        agree(_question(plan), yes)
        _carry_out(api, plan, built, timeout_s, force_conflicts, wait)


def diff(
    overlay: Overlay,
    force_conflicts: Force = False,
    namespace: OverlayNamespace = None,
    context: Context = None,
) -> None:
    """Show what `apply` would change; for the RayService, whether that makes a new cluster.

    Compared is what the server says each object would become, so its own defaults and what others
    own are no difference. A Secret's values are shown as digests.

    Exits 0 without a difference, 4 with one, 1 when something failed or would be refused, 2 for
    bad usage.

    For example: sm4ll k8s diff --overlay production
    """
    with exit_codes():
        built = _build(overlay, namespace)
        api = open_control_plane(context)
        _say_where(f"Overlay {overlay}", built.namespace, api)
        plan = _plan_and_show(api, built.namespace, built.manifests, force_conflicts)
        if plan.changes:
            raise typer.Exit(DIFFERS)


def rollback(
    to: Annotated[
        int | None, typer.Option(help="Revision; the last good one before this when absent.")
    ] = None,
    yes: Yes = False,
    timeout: Timeout = "30m",
    force_conflicts: Force = False,
    namespace: Namespace = DEFAULT_NAMESPACE,
    context: Context = None,
) -> None:
    """Apply a revision from before again, after showing what differs and asking.

    The database is not rolled back, and needs not be: migrations expand first and contract a
    version later, so the code of the version before runs on today's tables. Jobs do not run.

    Exits as `sm4ll k8s apply` does.

    For example: sm4ll k8s rollback --to 4
    """
    from k8s.changes.planning import Planner
    from k8s.control.revisions import Revisions
    from k8s.rollout import Rollout, refuse_problems
    from serve.commands.k8s_plan_drawing import draw_plan
    from serve.commands.k8s_progress import Progress

    with exit_codes():
        timeout_s = parse_duration(timeout)
        api = open_control_plane(context)
        revisions = Revisions(api, namespace)
        target = _find_target(revisions, to)
        _say_where(_back_to(target), namespace, api)
        manifests = revisions.manifests(target.number)
        plan = Planner(api, namespace, force_conflicts).plan(manifests, runs_jobs=False)
        _show(draw_plan(plan))
        refuse_problems(plan)
        if not plan.changes:
            return
        out.print(DATABASE_STAYS, style="dim")
        agree("Go back? [y/N]", yes)
        with Progress(out) as progress:
            rollout = Rollout(
                *(api, namespace, progress), timeout_s=timeout_s, force=force_conflicts
            )
            made = rollout.carry_out(plan, manifests, target.overlay, None, target.number)
        out.print(f"Done: revision {made.number} is revision {target.number} again.")


def _find_target(revisions: "Revisions", to: int | None) -> "Revision":
    """
    Raises:
        NotFound: there is none to go back to.
    """
    from k8s.control.revisions import previous_done

    if to is not None:
        return revisions.find(to)
    found = previous_done(revisions.all())
    if found is None:
        raise NotFound(
            "There is no revision to go back to",
            remedy="`sm4ll k8s history` shows what there is; apply an overlay of an earlier commit "
            "instead",
        )
    return found


def _back_to(target: "Revision") -> str:
    words = f", git {target.git_words}" if target.git_words else ""
    bad = "" if target.state == "done" else f", which was never ready ({target.state})"
    return f"Back to revision {target.number} ({target.created}{words}){bad}"


def history(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for machines.")] = False,
    namespace: Namespace = DEFAULT_NAMESPACE,
    context: Context = None,
) -> None:
    """List what was applied, the newest first: who, when, from which commit, which image.

    The last ten are kept, in Secrets of the namespace (sm4ll-revision-N).

    For example: sm4ll k8s history --json
    """
    from k8s.control.revisions import Revisions
    from serve.commands.k8s_plan_drawing import draw_history

    with exit_codes():
        revisions = Revisions(open_control_plane(context), namespace).all()
        if as_json:
            out.print_json(json.dumps([dataclasses.asdict(one) for one in revisions]))
        elif revisions:
            _show(draw_history(revisions))
        else:
            out.print(f"Nothing was applied to {namespace} yet.")


def delete(
    yes: Yes = False,
    with_data: Annotated[
        bool,
        typer.Option("--with-data", help="Also volumes, Secrets and the namespace: data is lost."),
    ] = False,
    timeout: Timeout = "30m",
    namespace: Namespace = DEFAULT_NAMESPACE,
    context: Context = None,
) -> None:
    """Delete everything that was applied, and wait until nothing of it is left.

    The RayService goes first, then what it needs. Volumes, Secrets and the namespace stay, unless
    --with-data. Asks for the namespace's name.

    Exits 0 when all is gone, 1 when something failed, 2 when nothing was begun, 3 when something
    is still there.

    For example: sm4ll k8s delete
    """
    from k8s.changes.removal import Remover
    from serve.commands.k8s_progress import Progress

    with exit_codes():
        api = open_control_plane(context)
        timeout_s = parse_duration(timeout)
        with Progress(out) as progress:
            remover = Remover(api, namespace, progress, timeout_s=timeout_s)
            removal = remover.plan(with_data)
            _say_where("Delete what was applied", namespace, api)
            _say_objects("Deleted", removal.gone)
            _say_objects("Kept", removal.kept)
            if not removal.gone:
                more = " but what is kept; --with-data deletes it" if removal.kept else ""
                out.print(f"Nothing of ours is in {namespace}{more}.", highlight=False)
                return
            agree(f"Type {namespace} to delete it:", yes, expected=namespace)
            remover.carry_out(removal)
        out.print("Nothing of it is left." if with_data else "Gone; what is kept is named above.")


@dataclasses.dataclass(frozen=True, slots=True)
class _Built:
    overlay: str
    folder: Path
    namespace: str
    manifests: "list[Manifest]"


def _build(overlay: str, namespace: str | None) -> _Built:
    from k8s.control.kustomize import build, find_overlay
    from k8s.control.objects import namespace_of, with_inputs

    folder = find_overlay(overlay)
    manifests = with_inputs(build(folder, namespace))
    found = namespace_of(manifests)
    if found is None:
        raise ConfigError(f"{overlay}: nothing in it is in a namespace; set `namespace:` there")
    return _Built(overlay, folder, found, manifests)


def _plan_and_show(
    api: "ControlPlane", namespace: str, manifests: "Sequence[Manifest]", force: bool
) -> "Plan":
    from k8s.changes.planning import Planner
    from k8s.rollout import refuse_problems
    from serve.commands.k8s_plan_drawing import draw_plan

    plan = Planner(api, namespace, force).plan(manifests)
    _show(draw_plan(plan))
    refuse_problems(plan)
    return plan


def _is_unfinished(api: "ControlPlane", plan: "Plan", manifests: "Sequence[Manifest]") -> bool:
    from k8s.control.revisions import Revisions
    from k8s.rollout import is_unfinished

    revisions = [] if plan.is_namespace_new else Revisions(api, plan.namespace).all()
    if revisions and is_unfinished(revisions[0], manifests):
        out.print(f"Revision {revisions[0].number} was begun and is not done: it is finished now.")
        return True
    return False


def _question(plan: "Plan") -> str:
    if not plan.changes:
        return "Wait for it? [y/N]"
    if any(step.new_cluster for step in plan.steps):
        return "Apply this, with a NEW CLUSTER? [y/N]"
    return "Apply this? [y/N]"


def _carry_out(
    api: "ControlPlane", plan: "Plan", built: _Built, timeout_s: float, force: bool, wait: bool
) -> None:
    from k8s.rollout import Rollout
    from serve.commands.k8s_progress import Progress

    with Progress(out) as progress:
        rollout = Rollout(
            *(api, built.namespace, progress), timeout_s=timeout_s, force=force, is_waiting=wait
        )
        made = rollout.carry_out(plan, built.manifests, built.overlay, built.folder)
    called = " `sm4ll k8s status` says how to call it."
    end = called if wait else " It is not waited for: `sm4ll k8s wait --for upgraded` does."
    out.print(f"Done: revision {made.number} in {built.namespace}.{end}", highlight=False)


def _say_where(what: str, namespace: str, api: "ControlPlane") -> None:
    out.print(f"{what}, namespace {namespace}, at {api.host}", highlight=False, markup=False)
    out.print()


def _say_objects(word: str, manifests: "Sequence[Manifest]") -> None:
    names: dict[str, list[str]] = {}
    for one in manifests:
        names.setdefault(one["kind"], []).append(one["metadata"]["name"])
    for kind, of_kind in names.items():
        out.print(f"{word}: {kind} {', '.join(of_kind)}", highlight=False, markup=False)


def _show(drawn: object) -> None:
    from serve.commands.k8s_drawing import show

    show(drawn, out)  # type: ignore[arg-type]
