"""Collections that stay on the versions they were begun with."""

from typing import Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from serve.commands.connection import connect
from serve.commands.console import Url, out
from serve.messages import EXPERTS, Expert
from serve.schemas.pins import PinCard

Collection = Annotated[str, typer.Argument(help="As `collection` of your requests says it.")]


def set_pin(
    collection: Collection,
    versions: Annotated[
        list[str] | None, typer.Argument(help="For example eye@1 top@2; the defaults when absent.")
    ] = None,
    url: Url = None,
) -> None:
    """Pin a collection: made again later, its pictures are the same or refused.

    For example: sm4ll pins set ss27 eye@1 shoes@1
    """
    with connect(url) as client:
        _say(client.pins.set(collection, _by_expert(versions) if versions else None))


def list_pins(url: Url = None) -> None:
    """List the collections that are pinned, newest first.

    For example: sm4ll pins list
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("collection", overflow="fold")
    table.add_column("since", no_wrap=True)
    table.add_column("versions")
    with connect(url) as client:
        for card in client.pins.list():
            versions = ", ".join(one.version for one in card.versions.values())
            table.add_row(escape(card.collection), f"{card.updated_at:%Y-%m-%d %H:%M}", versions)
    out.print(table)


def show(collection: Collection, url: Url = None) -> None:
    """Show what a collection is pinned to, with the fingerprints.

    For example: sm4ll pins show ss27
    """
    with connect(url) as client:
        _say(client.pins.get(collection))


def remove(collection: Collection, url: Url = None) -> None:
    """Free a collection: its requests get what others get.

    For example: sm4ll pins remove ss27
    """
    with connect(url) as client:
        client.pins.remove(collection)
    out.print(f"{collection} is free", markup=False, highlight=False)


def _by_expert(versions: list[str]) -> dict[Expert, str]:
    found: dict[Expert, str] = {}
    for version in versions:
        expert: Expert | None = next((e for e in EXPERTS if version.startswith(f"{e}@")), None)
        if expert is None:
            raise typer.BadParameter(f"{version}: write EXPERT@VERSION, for example eye@1")
        if expert in found:
            raise typer.BadParameter(f"{version}: {expert} is pinned to {found[expert]} already")
        found[expert] = version
    return found


def _say(card: PinCard) -> None:
    for pinned in card.versions.values():
        told = f"{card.collection}  {pinned.version}  {pinned.bundle_sha256[:12]}"
        out.print(told, markup=False, highlight=False)
