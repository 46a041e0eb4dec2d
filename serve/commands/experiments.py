"""Experiments: which versions are compared, on whom, and who gets which."""

from pathlib import Path
from typing import Annotated

import typer
import yaml
from pydantic import ValidationError
from rich import box
from rich.markup import escape
from rich.table import Table

from serve.commands.connection import connect
from serve.commands.console import Url, err, out, tell_misfit
from serve.designs import BUCKETS, ExperimentDesign, WantedExperiment
from serve.schemas.experiments import ExperimentCard, NewExperiment

ExperimentId = Annotated[
    str, typer.Argument(metavar="EXPERIMENT", help="As `sm4ll experiments list` shows it.")
]
Reason = Annotated[str, typer.Option(help="Kept with it, for who looks later.")]


def list_experiments(url: Url = None) -> None:
    """List experiments, newest first.

    For example: sm4ll experiments list
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("id", no_wrap=True)
    for heading in ("status", "expert", "by", "arms", "title"):
        table.add_column(heading, overflow="fold")
    with connect(url) as client:
        for card in client.experiments.list():
            design = card.design
            arms = ", ".join(f"{arm.name} {percent(arm.weight)}" for arm in design.arms)
            facts = (card.status, design.expert, design.unit, arms)
            table.add_row(card.id, *facts, escape(design.title))
    out.print(table)


def show(experiment: ExperimentId, url: Url = None) -> None:
    """Show one experiment: its arms, whom it is about, and what its weights were.

    For example: sm4ll experiments show eye-2
    """
    with connect(url) as client:
        card = client.experiments.get(experiment)
        history = client.experiments.allocations(experiment).items
    _say(card)
    for line in describe_design(card.design):
        out.print(f"  {line}", markup=False, highlight=False)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("arm", "version", "weight"):
        table.add_column(heading, no_wrap=True)
    for arm in card.design.arms:
        table.add_row(arm.name, arm.version, percent(arm.weight))
    out.print(table)
    for each in history[1:]:
        weights = ", ".join(f"{arm} {percent(share)}" for arm, share in each.weights.items())
        said = f"revision {each.revision}, {each.at:%Y-%m-%d %H:%M}: {weights}; "
        moved = f"{percent(each.num_moved)} changed hands"
        out.print(said + moved + (f"; {each.reason}" if each.reason else ""), markup=False)


def create(
    file: Annotated[
        Path,
        typer.Argument(
            exists=True,
            dir_okay=False,
            help="YAML or JSON, an entry as in configs/experiments.yaml.",
        ),
    ],
    start: Annotated[bool, typer.Option("--start", help="At once, not as a draft.")] = False,
    url: Url = None,
) -> None:
    """Make an experiment from a file; the same file again is the same experiment.

    For example: sm4ll experiments create eye-2.yaml --start
    """
    wanted = read_design(file)
    said = wanted.model_dump(mode="json", exclude_unset=True)
    new = NewExperiment.model_validate({**said, "start": start or wanted.start})
    with connect(url) as client:
        card = client.experiments.create(new)
    _say(card)
    follows = "start" if card.status == "draft" else "report"
    err.print(f"Next: sm4ll experiments {follows} {card.id}", markup=False, highlight=False)


def start(experiment: ExperimentId, reason: Reason = "", url: Url = None) -> None:
    """Let a draft assign, on every router within 5 seconds.

    For example: sm4ll experiments start eye-2
    """
    with connect(url) as client:
        _say(client.experiments.start(experiment, reason))


def pause(experiment: ExperimentId, reason: Reason = "", url: Url = None) -> None:
    """Let an experiment assign nobody for a while; who comes back gets the same arm afterwards.

    For example: sm4ll experiments pause eye-2 --reason "sale"
    """
    with connect(url) as client:
        _say(client.experiments.pause(experiment, reason))


def resume(experiment: ExperimentId, reason: Reason = "", url: Url = None) -> None:
    """Let an experiment go on that was paused, or that was frozen.

    For example: sm4ll experiments resume eye-2
    """
    with connect(url) as client:
        _say(client.experiments.resume(experiment, reason))


def end(experiment: ExperimentId, reason: Reason = "", url: Url = None) -> None:
    """End an experiment for good; what it showed stays.

    For example: sm4ll experiments end eye-2 --reason "no difference"
    """
    with connect(url) as client:
        _say(client.experiments.end(experiment, reason))


def weights(
    experiment: ExperimentId,
    arms: Annotated[
        list[str],
        typer.Argument(metavar="ARM=WEIGHT...", help="Hundredths of a percent, or 12.5%."),
    ],
    revision: Annotated[
        int | None, typer.Option(help="The one you have seen; refused if it is another by now.")
    ] = None,
    reason: Reason = "",
    url: Url = None,
) -> None:
    """Move the weights of all arms; only units of arms that shrink change hands.

    For example: sm4ll experiments weights eye-2 control=9000 new=1000
    """
    wanted = parse_weights(arms)
    with connect(url) as client:
        _say(client.experiments.set_weights(experiment, wanted, revision=revision, reason=reason))


def assign(
    experiment: ExperimentId,
    unit: Annotated[str | None, typer.Option(help="A user, as requests name it.")] = None,
    sku: Annotated[str | None, typer.Option()] = None,
    collection: Annotated[str | None, typer.Option()] = None,
    tenant: Annotated[str | None, typer.Option(help="Your own when absent.")] = None,
    url: Url = None,
) -> None:
    """Say which arm somebody gets, or why none; nothing comes of asking.

    For example: sm4ll experiments assign eye-2 --unit customer-4711
    """
    with connect(url) as client:
        found = client.experiments.assignment(
            experiment, unit=unit, sku=sku, collection=collection, tenant=tenant
        )
    gets = f"{found.arm}, {found.version}" if found.arm else "no arm"
    why = f" ({found.reason})" if found.reason else ""
    out.print(f"{gets}{why}", markup=False, highlight=False)
    if found.unit is not None:
        out.print(f"  {found.unit} is in bucket {found.bucket}", markup=False, highlight=False)


def read_design(file: Path) -> WantedExperiment:
    """
    Raises:
        typer.BadParameter: not an experiment; names what does not fit.
    """
    try:
        return WantedExperiment.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except ValidationError as exc:
        raise typer.BadParameter(f"{file}: {tell_misfit(exc)}") from exc
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise typer.BadParameter(f"{file}: not readable as YAML: {exc}") from exc


def parse_weights(arms: list[str]) -> dict[str, int]:
    """ARM=WEIGHT pairs, in hundredths of a percent or with a percent sign.

    Raises:
        typer.BadParameter: not such a pair, or they do not add up.
    """
    found: dict[str, int] = {}
    for pair in arms:
        arm, _, weight = pair.partition("=")
        try:
            is_percent = weight.endswith("%")
            found[arm] = round(100 * float(weight[:-1])) if is_percent else int(weight)
        except (ValueError, OverflowError):
            raise typer.BadParameter(f"{pair}: write ARM=WEIGHT, new=1000 or new=10%") from None
    if sum(found.values()) != BUCKETS or min(found.values()) < 0:
        helps = "write 75%, not 75" if sum(found.values()) == 100 else "name every arm"
        total = percent(sum(found.values()))
        raise typer.BadParameter(f"the weights add up to {total}, not 100%; {helps}")
    return found


def percent(weight: int) -> str:
    """1250 as `12.5%`."""
    return f"{weight / 100:g}%"


def describe_design(design: ExperimentDesign) -> list[str]:
    """Whom it is about, in words."""
    unit = design.unit if design.fallback is None else f"{design.unit}, else {design.fallback}"
    lines = [f"{design.expert}, by {unit}; decided by {design.primary} at {design.alpha:g}"]
    if design.coverage != BUCKETS:
        lines.append(f"covers {percent(design.coverage)} of the units")
    if design.namespace is not None:
        space = design.namespace
        lines.append(f"namespace {space.name}, buckets {space.start} to {space.end}")
    if design.shadow is not None:
        lines.append(f"{design.shadow.arm} paints {percent(design.shadow.share)} unasked")
    audience = design.audience.model_dump(exclude_defaults=True)
    lines += [f"{name}: {', '.join(ids) or 'nobody'}" for name, ids in audience.items()]
    return lines


def _say(card: ExperimentCard) -> None:
    arms = ", ".join(f"{arm.name} {percent(arm.weight)}" for arm in card.design.arms)
    why = f" ({card.reason})" if card.reason else ""
    owner = f"; of the rollout {card.rollout}" if card.rollout else ""
    out.print(
        f"{card.id}: {card.status}{why}; {arms}; revision {card.revision}{owner}",
        markup=False,
        highlight=False,
    )
