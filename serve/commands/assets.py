"""Pictures that the API keeps: uploaded, listed, deleted, and a person's erased."""

from pathlib import Path
from typing import Annotated, get_args

import typer
from pydantic import ValidationError
from rich import box
from rich.markup import escape
from rich.table import Table

from serve.commands.connection import connect
from serve.commands.console import Url, err, out
from serve.commands.pictures import Source, find_pictures
from serve.commands.pictures import upload as upload_all
from serve.schemas.assets import Kind

ID_LENGTH = 30
Subject = Annotated[str, typer.Option(help="Whose pictures they are, as you call them.")]


def upload(
    paths: Annotated[list[Path], typer.Argument(exists=True, help="Pictures, or folders of them.")],
    subject: Subject = "",
    url: Url = None,
) -> None:
    """Upload pictures; a try-on then takes their ids. The same picture again is the same asset.

    For example: sm4ll assets upload anna.jpg --subject anna
    """
    files: list[Source] = []
    for path in paths:
        files += find_pictures(path).values() if path.is_dir() else [path]
    with connect(url) as client:
        known = upload_all(client, files, subject)
    for file, asset_id in known.items():
        out.print(f"{asset_id}  {file}", markup=False, highlight=False)


def list_assets(
    kind: Annotated[str | None, typer.Option(help=f"{' or '.join(get_args(Kind))}.")] = None,
    subject: Annotated[str | None, typer.Option(help="Only theirs.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many at most.")] = 20,
    url: Url = None,
) -> None:
    """List pictures, newest first.

    For example: sm4ll assets list --kind input --subject anna
    """
    if kind is not None and kind not in get_args(Kind):
        raise typer.BadParameter(f"--kind: one of {', '.join(get_args(Kind))}, not {kind!r}")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("id", no_wrap=True, min_width=ID_LENGTH)
    for heading in ("kind", "type", "size", "KiB", "subject", "until"):
        table.add_column(heading, overflow="fold")
    with connect(url) as client:
        page = client.assets.list(kind, subject, limit=limit)  # type: ignore[arg-type]
    for asset in page.items:
        size = f"{asset.width}x{asset.height}" if asset.width else "-"
        until = f"{asset.expires_at:%Y-%m-%d %H:%M}" if asset.expires_at else "always"
        facts = (asset.kind, asset.media_type, size, f"{asset.num_bytes / 1024:.0f}")
        table.add_row(asset.id, *facts, escape(asset.subject), until)
    out.print(table)


def delete(
    assets: Annotated[list[str], typer.Argument(help="Ids, ast_...")], url: Url = None
) -> None:
    """Delete pictures, and what was answered from them.

    For example: sm4ll assets delete ast_0123456789abcdefghjkmnpqrs
    """
    with connect(url) as client:
        for asset_id in assets:
            gone = client.assets.delete(asset_id)
            kept = "" if gone.is_blob_deleted else "; another asset has the same bytes"
            out.print(f"{gone.id} is deleted{kept}", markup=False, highlight=False)


def erase(
    subject: Annotated[str, typer.Argument(help="Whose, as you called them.")], url: Url = None
) -> None:
    """Erase everything of one person, and print the proof. Exits 1 while a job still stops.

    For example: sm4ll assets erase anna
    """
    with connect(url) as client:
        try:
            record = client.assets.erase(subject)
        except ValidationError as exc:
            raise typer.BadParameter(f"subject: {exc.errors()[0]['msg']}") from exc
    out.print_json(record.model_dump_json())
    if not record.is_complete:
        err.print("A job of theirs is still stopping. Run it again in a few seconds.")
        raise typer.Exit(1)
