"""The default of each expert, on a running cluster."""

from typing import Annotated

import typer
from rich import box
from rich.table import Table

from serve.commands.connection import connect
from serve.commands.console import Url, out
from serve.messages import EXPERTS
from serve.schemas.experts import ExpertCard


def list_experts(url: Url = None) -> None:
    """List experts with their defaults, and what the defaults were before.

    For example: sm4ll experts list
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("expert", "default", "from", "before", "since"):
        table.add_column(heading, no_wrap=True)
    table.add_column("versions")
    with connect(url) as client:
        for card in client.experts.list():
            since = f"{card.changed_at:%Y-%m-%d %H:%M}" if card.changed_at else "-"
            facts = (card.default or "-", card.source, card.previous or "-", since)
            table.add_row(card.expert, *facts, ", ".join(card.versions))
    out.print(table)


def default(
    version: Annotated[str, typer.Argument(help="Which one, for example eye@2.")],
    clear: Annotated[
        bool, typer.Option("--clear", help="Let the family file decide again; give only eye.")
    ] = False,
    url: Url = None,
) -> None:
    """Make a version its expert's default, on every router within 5 seconds.

    Requests that name no version, in no pinned collection and in no experiment get it. Nothing is
    restarted.

    For example: sm4ll experts default eye@2
    """
    expert, _, name = version.partition("@")
    if expert not in EXPERTS:
        raise typer.BadParameter(f"{version}: no expert {expert!r}; one of {', '.join(EXPERTS)}")
    if clear == bool(name):
        raise typer.BadParameter(f"{version}: write {expert}@2, or {expert} with --clear")
    with connect(url) as client:
        if clear:
            _say(client.experts.clear_default(expert))
        else:
            _say(client.experts.set_default(expert, version))


def _say(card: ExpertCard) -> None:
    before = f", before: {card.previous}" if card.previous else ""
    told = f"{card.expert}: {card.default or 'nothing'} by the {card.source}{before}"
    out.print(told, markup=False, highlight=False)
