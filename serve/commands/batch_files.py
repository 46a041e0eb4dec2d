"""What a batch made, as files: its manifest, its pictures, and a page to look through them."""

import re
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from serve.client import ApiError, Client
from serve.commands.batches import BatchId
from serve.commands.connection import connect
from serve.commands.console import Url, err, out
from serve.commands.contact_sheet import write_sheet
from serve.commands.jobs import EXTENSIONS
from serve.commands.patience import patiently
from serve.schemas.batches import Manifest
from serve.schemas.jobs import JobOutput

MAX_NAME_BYTES = 100
"""Of a SKU or person in a file's name: file systems end at 255."""


def manifest(
    batch: BatchId,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="JSON file; printed when absent.")
    ] = None,
    url: Url = None,
) -> None:
    """Tell what became of every cell of a batch that has ended.

    For example: sm4ll batches manifest bat_0123456789abcdefghjkmnpqrs -o manifest.json
    """
    with connect(url) as client:
        told = client.batches.manifest(batch).model_dump_json(indent=2)
    if output is None:
        out.print_json(told)
        return
    output.write_text(told, encoding="utf-8")
    out.print(f"{output}", markup=False)


def download(
    batch: BatchId,
    folder: Annotated[Path, typer.Option("--out", file_okay=False, help="Made when absent.")],
    url: Url = None,
) -> None:
    """Download what a batch has made, with an index.html of products and persons. Files that are
    there already are not fetched again.

    For example: sm4ll batches download bat_0123456789abcdefghjkmnpqrs --out pictures/
    """
    with connect(url) as client:
        made = patiently(lambda: client.batches.manifest(batch))
        folder.mkdir(parents=True, exist_ok=True)
        files = _fetch(client, made, folder)
    page = write_sheet(folder, made, files)
    num_there = sum(name is not None for names in files.values() for name in names)
    out.print(f"{num_there} pictures; look at {page}", markup=False)


def name_outputs(made: Manifest) -> dict[int, tuple[str, ...]]:
    """By cell: the name of each output's file, on any file system and never the same twice."""
    names: dict[int, tuple[str, ...]] = {}
    taken: set[str] = set()
    for entry in made.cells:
        stem = f"{_safe(entry.sku)}__{_safe(entry.person)}"
        if stem.casefold() in taken:
            stem = f"{stem}__{entry.cell}"
        taken.add(stem.casefold())
        names[entry.cell] = tuple(
            stem + (f"-{index}" if index else "") + EXTENSIONS.get(output.media_type, "")
            for index, output in enumerate(entry.outputs)
        )
    return names


def _safe(name: str) -> str:
    kept = re.sub(r"[^\w.-]+", "_", name).lstrip(".")
    return kept.encode()[:MAX_NAME_BYTES].decode("utf-8", "ignore") or "_"


def _fetch(client: Client, made: Manifest, folder: Path) -> dict[int, tuple[str | None, ...]]:
    names = name_outputs(made)
    files: dict[int, tuple[str | None, ...]] = {}
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        bar = progress.add_task("", total=sum(map(len, names.values())))
        for entry in made.cells:
            there: list[str | None] = []
            for name, output in zip(names[entry.cell], entry.outputs, strict=True):
                there.append(name if _keep(client, output, folder / name) else None)
                progress.advance(bar)
            files[entry.cell] = tuple(there)
    return files


def _keep(client: Client, output: JobOutput, path: Path) -> bool:
    """False where the API does not keep the picture any longer."""
    if path.is_file() and sha256(path.read_bytes()).hexdigest() == output.sha256:
        return True
    try:
        path.write_bytes(patiently(lambda: client.download(output.url)))
    except ApiError as exc:
        if exc.problem.code != "not_found":
            raise
        return False
    return True
