"""Pictures of a folder or a list, and their upload."""

import csv
from collections.abc import Iterable
from pathlib import Path

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from serve.client import Client
from serve.commands.console import err
from serve.commands.patience import patiently

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".heic", ".heif")
COLUMNS = ("sku", "image")
Source = Path | str
"""A file, or a URL that the API fetches."""


def find_pictures(folder: Path) -> dict[str, Source]:
    """Every picture in a folder by its file's stem, in order.

    Raises:
        typer.BadParameter: there is none, or two have the same stem.
    """
    found: dict[str, Source] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            continue
        if path.stem in found:
            raise typer.BadParameter(f"{path} and {found[path.stem]}: the same name twice")
        found[path.stem] = path
    if not found:
        raise typer.BadParameter(f"{folder}: no pictures in it ({' '.join(SUFFIXES)})")
    return found


def read_products(source: Path) -> dict[str, Source]:
    """Pictures by SKU: of a folder, or of a CSV file with the columns sku and image, whose paths
    start at the file's own folder.

    Raises:
        typer.BadParameter: names the line that does not fit.
    """
    if source.is_dir():
        return find_pictures(source)
    found: dict[str, Source] = {}
    # Spreadsheets begin their files with a byte order mark.
    with source.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        if not set(COLUMNS) <= set(rows.fieldnames or ()):
            raise typer.BadParameter(f"{source}: its first line must name sku and image")
        for row in rows:
            sku, image = ((row[column] or "").strip() for column in COLUMNS)
            where = f"{source}, line {rows.line_num}"
            if not sku or not image:
                raise typer.BadParameter(f"{where}: without sku or image")
            if sku in found:
                raise typer.BadParameter(f"{where}: {sku} was there before")
            found[sku] = _locate(image, source.parent, where)
    if not found:
        raise typer.BadParameter(f"{source}: names no product")
    return found


def _locate(image: str, folder: Path, where: str) -> Source:
    if image.startswith(("https://", "http://")):
        return image
    path = folder / image
    if not path.is_file():
        raise typer.BadParameter(f"{where}: there is no file {path}")
    return path


def upload(client: Client, sources: Iterable[Source], subject: str = "") -> dict[Source, str]:
    """Every source as the API knows it: a file by its asset id, a URL as it is.

    A file that was uploaded before is only kept longer: what broke off can be begun again.
    """
    distinct = dict.fromkeys(sources)
    files = [source for source in distinct if isinstance(source, Path)]
    known: dict[Source, str] = {source: str(source) for source in distinct}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=err, transient=True) as progress:
        bar = progress.add_task("uploading", total=len(files))
        for file in files:
            data = file.read_bytes()
            known[file] = patiently(lambda data=data: client.assets.upload(data, subject)).id  # type: ignore[misc]
            progress.advance(bar)
    return known
