"""A version on its way to being the default: begun, watched and steered."""

from collections.abc import Callable
from pathlib import Path
from time import sleep
from typing import Annotated, Any, get_args

import typer
import yaml
from pydantic import ValidationError
from rich import box
from rich.live import Live
from rich.table import Table

from serve.client import Client
from serve.commands.connection import connect
from serve.commands.console import Url, err, out, tell_misfit
from serve.commands.patience import patiently
from serve.commands.rollout_drawing import draw_rollout, tell_decision, tell_stage, tell_status
from serve.designs import BUCKETS, USUAL_STAGES, Stage, UnitKind
from serve.schemas.rollouts import NewRollout, RolloutCard

POLL_S = 1.0
ID_LENGTH = 30
NUM_DECISIONS = 5
WIDE = 120
"""Columns of a terminal from which on lists say why; `show` always does."""
PERCENT = BUCKETS // 100
RolloutId = Annotated[str, typer.Argument(help="As `sm4ll rollouts list` shows it.")]


def start(
    version: Annotated[
        str | None, typer.Argument(help="The challenger, for example eye@2; or the plan names it.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="What it is to replace; the default when absent.")
    ] = None,
    stages: Annotated[
        str | None, typer.Option(help="Percent of the units; 0,1,5,25,50,100 when absent.")
    ] = None,
    shadow: Annotated[
        float | None,
        typer.Option(min=0, max=100, help="Percent of the requests, in stage 0; 10 when absent."),
    ] = None,
    min_exposures: Annotated[
        int | None, typer.Option(min=0, help="The challenger's, in every stage but the last.")
    ] = None,
    unit: Annotated[
        str | None, typer.Option(help=f"{', '.join(get_args(UnitKind))}; user when absent.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done after the first stage.")
    ] = False,
    approve_at: Annotated[
        list[float] | None, typer.Option(help="A person must approve before this percent is left.")
    ] = None,
    webhook_url: Annotated[str | None, typer.Option(help="Told every decision.")] = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="A plan as YAML; options that are given go before it."
        ),
    ] = None,
    url: Url = None,
) -> None:
    """Let a version become the default step by step, or go back by itself. Prints the rollout's
    id. Needs a key with the scope `admin`.

    For example: sm4ll rollouts start eye@2 --stages 0,1,10,100 --approve-at 10
    """
    told = _read_plan(plan) if plan else {}
    if version is None and "version" not in told:
        raise typer.BadParameter("say which version, for example eye@2, here or in --plan")
    if version is not None and "@" not in version:
        raise typer.BadParameter(f"{version}: write expert@name, for example eye@2")
    given = {
        "version": version,
        "expert": version and version.partition("@")[0],
        "against": against,
        "unit": unit,
        "is_dry_run": dry_run or None,
        "webhook_url": webhook_url,
        "stages": _read_stages(stages, shadow, min_exposures, approve_at or [], told.get("stages")),
    }
    told |= {name: value for name, value in given.items() if value is not None}
    request = _validate(told)
    with connect(url) as client:
        card = client.rollouts.start(request)
    out.print(card.id, markup=False, highlight=False)
    words = " -> ".join(map(tell_stage, card.plan.stages))
    dry = " (dry run)" if card.dry_run else ""
    told_words = f"{card.version} against {card.against}: {words}{dry}. "
    err.print(
        f"{told_words}Watch it: sm4ll rollouts show {card.id} --follow",
        markup=False,
        highlight=False,
    )


def _read_plan(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise typer.BadParameter(f"{path}: not readable as YAML: {exc}") from exc
    if not isinstance(document, dict):
        raise typer.BadParameter(f"{path}: must be a mapping, got {type(document).__name__}")
    return document


def _read_stages(
    percents: str | None,
    shadow: float | None,
    min_exposures: int | None,
    approve_at: list[float],
    planned: Any,
) -> list[dict[str, Any]] | None:
    """None where no option says anything about them."""
    if percents is None and shadow is None and min_exposures is None and not approve_at:
        return None
    usual = {stage.share: stage.model_dump(mode="json") for stage in USUAL_STAGES}
    if percents is not None:
        shares = [_share(text) for text in percents.split(",")]
        if shares[-1] != BUCKETS:
            raise typer.BadParameter("--stages: the last must be 100, for example 0,50,100")
        rows = [usual.get(share, Stage(share=share).model_dump(mode="json")) for share in shares]
    else:
        rows = [dict(row) for row in planned] if planned else list(usual.values())
    gates = {round(percent * PERCENT) for percent in approve_at}
    strangers = gates - {row["share"] for row in rows}
    if strangers:
        raise typer.BadParameter(f"--approve-at: no stage has {min(strangers) / PERCENT:g} %")
    for row in rows:
        if shadow is not None and row["share"] == 0:
            row["shadow"] = round(shadow * PERCENT)
        if min_exposures is not None and row["share"] < BUCKETS:
            row["min_exposures"] = min_exposures
        row["approval"] = row.get("approval", False) or row["share"] in gates
    return rows


def _share(text: str) -> int:
    try:
        return round(float(text) * PERCENT)
    except ValueError:
        raise typer.BadParameter(f"--stages: {text!r} is no percentage") from None


def _validate(told: dict[str, Any]) -> NewRollout:
    try:
        return NewRollout.model_validate(told)
    except ValidationError as exc:
        raise typer.BadParameter(tell_misfit(exc)) from exc


def list_rollouts(
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many at most.")] = 20,
    url: Url = None,
) -> None:
    """List rollouts, newest first.

    For example: sm4ll rollouts list --limit 5
    """
    with connect(url) as client:
        items = client.rollouts.list(limit=limit).items
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("rollout", no_wrap=True, min_width=ID_LENGTH)
    for heading in ("version", "against", "share"):
        table.add_column(heading, overflow="fold")
    table.add_column("status", no_wrap=True)
    is_wide = out.width >= WIDE
    if is_wide:
        table.add_column("why", overflow="fold")
    for one in items:
        share, status = f"{one.share / PERCENT:g} %", tell_status(one)
        why = (one.reason,) if is_wide else ()
        table.add_row(one.id, one.version, one.against, share, status, *why)
    out.print(table, markup=False)


def show(
    rollout: RolloutId,
    follow: Annotated[bool, typer.Option("--follow", help="Until it ends.")] = False,
    url: Url = None,
) -> None:
    """Show where a rollout is, its numbers and its last decisions. With --follow it exits 1 when
    the version was not promoted.

    For example: sm4ll rollouts show rol_0123456789abcdefghjkmnpqrs --follow
    """
    with connect(url) as client:
        card, picture = _look(client, rollout)
        if not follow:
            out.print(picture)
            return
        with Live(picture, console=out, auto_refresh=False) as live:
            while card.finished_at is None:
                sleep(POLL_S)
                card, picture = _look(client, rollout)
                live.update(picture, refresh=True)
    if card.status != "promoted":
        raise typer.Exit(1)


def _look(client: Client, rollout_id: str) -> tuple[RolloutCard, Table]:
    card = patiently(lambda: client.rollouts.get(rollout_id))
    decisions = patiently(lambda: client.rollouts.last_decisions(rollout_id, NUM_DECISIONS))
    return card, draw_rollout(card, decisions)


def decisions(
    rollout: RolloutId,
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many at most.")] = 50,
    url: Url = None,
) -> None:
    """List what was decided and why, newest first.

    For example: sm4ll rollouts decisions rol_0123456789abcdefghjkmnpqrs
    """
    with connect(url) as client:
        for one in client.rollouts.last_decisions(rollout, limit):
            out.print(tell_decision(one), markup=False, highlight=False)


def pause(rollout: RolloutId, url: Url = None) -> None:
    """Decide nothing for a while; weights stay as they are.

    For example: sm4ll rollouts pause rol_0123456789abcdefghjkmnpqrs
    """
    _act(lambda client: client.rollouts.pause(rollout), url)


def resume(rollout: RolloutId, url: Url = None) -> None:
    """Go on; a stage that was frozen begins anew.

    For example: sm4ll rollouts resume rol_0123456789abcdefghjkmnpqrs
    """
    _act(lambda client: client.rollouts.resume(rollout), url)


def abort(rollout: RolloutId, url: Url = None) -> None:
    """Go back at once and for good: everybody gets the version it was against.

    For example: sm4ll rollouts abort rol_0123456789abcdefghjkmnpqrs
    """
    _act(lambda client: client.rollouts.abort(rollout), url)


def approve(rollout: RolloutId, url: Url = None) -> None:
    """Let the present stage be left, as soon as its numbers say so too.

    For example: sm4ll rollouts approve rol_0123456789abcdefghjkmnpqrs
    """
    _act(lambda client: client.rollouts.approve(rollout), url)


def _act(call: Callable[[Client], RolloutCard], url: str | None) -> None:
    with connect(url) as client:
        card = call(client)
    line = f"{card.id}  {tell_status(card)}, {card.share / PERCENT:g} %: {card.reason}"
    out.print(line, markup=False, highlight=False)
