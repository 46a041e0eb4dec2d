"""Every product on every person: made from folders, watched, and steered."""

from collections.abc import Mapping
from pathlib import Path
from time import sleep
from typing import Annotated

import typer
from pydantic import ValidationError
from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    GetTimeCallable,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from serve.client import Client
from serve.commands.connection import connect
from serve.commands.console import Url, err, out
from serve.commands.patience import patiently
from serve.commands.pictures import Source, find_pictures, read_products, upload
from serve.messages import EXPERTS
from serve.schemas.batches import BatchCard, BatchCounts, BatchRequest

POLL_S = 2.0
RATE_OVER_S = 60.0
ID_LENGTH = 30
UNKNOWN_ASSET = "ast_"
"""Stands for every picture while a request is tried out before anything is uploaded."""
BatchId = Annotated[str, typer.Argument(help="As `sm4ll batches list` shows it.")]


def create(
    expert: Annotated[str, typer.Option(help=f"One of {', '.join(EXPERTS)}.")],
    products: Annotated[
        Path,
        typer.Option(
            exists=True, help="Folder of pictures, or CSV with sku,image (path or https URL)."
        ),
    ],
    persons: Annotated[
        Path, typer.Option(exists=True, file_okay=False, help="Folder of pictures.")
    ],
    masks: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Yours, named as the persons are."),
    ] = None,
    start: Annotated[bool, typer.Option("--start", help="Start at once, without a look.")] = False,
    version: Annotated[str | None, typer.Option(help="For example eye@2.")] = None,
    quality: Annotated[str, typer.Option(help="draft, normal or high.")] = "normal",
    picture_format: Annotated[
        str | None, typer.Option("--format", help="png, webp, jpeg or tiff.")
    ] = None,
    webhook: Annotated[str | None, typer.Option(help="Told when all cells have ended.")] = None,
    url: Url = None,
) -> None:
    """Try every product on every person: upload the pictures and make a batch. A file is called
    by its name without the ending. Prints the batch's id, and the estimate beside it.

    For example: sm4ll batches create --expert eye --products glasses/ --persons models/
    """
    matrix = (
        read_products(products),
        find_pictures(persons),
        find_pictures(masks) if masks else {},
    )
    fields = {
        "expert": expert,
        "version": version,
        "options": {"quality": quality, "format": picture_format},
        "webhook_url": webhook,
        "start": start,
    }
    sources = [source for part in matrix for source in part.values()]
    _build_request(fields, matrix, dict.fromkeys(sources, UNKNOWN_ASSET))
    with connect(url) as client:
        references = upload(client, sources)
        request = _build_request(fields, matrix, references)
        card = patiently(lambda: client.batches.create(request))
    out.print(card.id, markup=False, highlight=False)
    err.print(tell_estimate(card), markup=False, highlight=False)


def _build_request(
    fields: Mapping[str, object],
    matrix: tuple[Mapping[str, Source], ...],
    references: Mapping[Source, str],
) -> BatchRequest:
    products, persons, masks = matrix
    strangers = sorted(masks.keys() - persons.keys())
    if strangers:
        raise typer.BadParameter(f"{masks[strangers[0]]}: no person is called {strangers[0]}")
    columns = []
    for name, source in persons.items():
        mask = {"mask": references[masks[name]]} if name in masks else {}
        columns.append({"name": name, "image": references[source], **mask})
    rows = [{"sku": sku, "image": references[source]} for sku, source in products.items()]
    try:
        return BatchRequest.model_validate({**fields, "products": rows, "persons": columns})
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(map(str, first["loc"]))
        words = first["msg"].removeprefix("Value error, ")
        raise typer.BadParameter(f"{where}: {words}" if where else words) from exc


def list_batches(
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many at most.")] = 20,
    url: Url = None,
) -> None:
    """List batches, newest first.

    For example: sm4ll batches list --limit 5
    """
    with connect(url) as client:
        items = client.batches.list(limit=limit).items
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("batch", no_wrap=True, min_width=ID_LENGTH)
    for heading in ("status", "version", "cells", "done", "created"):
        table.add_column(heading, overflow="fold")
    for one in items:
        created = one.created_at.astimezone().strftime("%Y-%m-%d %H:%M")
        cells = f"{one.num_products} x {one.num_persons}"
        table.add_row(one.id, one.status, one.version, cells, f"{one.progress:.0%}", created)
    out.print(table)


def show(batch: BatchId, url: Url = None) -> None:
    """Show a batch as the API tells it.

    For example: sm4ll batches show bat_0123456789abcdefghjkmnpqrs
    """
    with connect(url) as client:
        out.print_json(client.batches.get(batch).model_dump_json())


def start(batch: BatchId, url: Url = None) -> None:
    """Start a draft.

    For example: sm4ll batches start bat_0123456789abcdefghjkmnpqrs
    """
    with connect(url) as client:
        _say(client.batches.start(batch))


def pause(batch: BatchId, url: Url = None) -> None:
    """Begin no more cells; those that run go on to their end.

    For example: sm4ll batches pause bat_0123456789abcdefghjkmnpqrs
    """
    with connect(url) as client:
        _say(client.batches.pause(batch))


def resume(batch: BatchId, url: Url = None) -> None:
    """Go on with a paused batch.

    For example: sm4ll batches resume bat_0123456789abcdefghjkmnpqrs
    """
    with connect(url) as client:
        _say(client.batches.resume(batch))


def cancel(batch: BatchId, url: Url = None) -> None:
    """Cancel all that is not done; what is done stays.

    For example: sm4ll batches cancel bat_0123456789abcdefghjkmnpqrs
    """
    with connect(url) as client:
        _say(client.batches.cancel(batch))


def retry(
    batch: BatchId,
    cell: Annotated[int | None, typer.Option(min=0, help="Only this one; all when absent.")] = None,
    url: Url = None,
) -> None:
    """Try failed cells again.

    For example: sm4ll batches retry bat_0123456789abcdefghjkmnpqrs
    """
    with connect(url) as client:
        _say(client.batches.retry(batch, cell))


def follow(batch: BatchId, url: Url = None) -> None:
    """Follow a batch to its end. Exits 1 when a cell has failed.

    For example: sm4ll batches follow bat_0123456789abcdefghjkmnpqrs
    """
    with connect(url) as client:
        card = _watch(client, batch)
    _say(card)
    if card.finished_at is None:
        err.print(f"It has not started: sm4ll batches start {card.id}", markup=False)
        raise typer.Exit(1)
    if card.counts.failed:
        err.print(f"What helps: sm4ll batches retry {card.id}", markup=False)
        raise typer.Exit(1)


def _watch(client: Client, batch_id: str) -> BatchCard:
    """The batch once it has ended, or as it is where nothing will happen by itself."""
    with draw_progress(err) as progress:
        bar = progress.add_task("", total=None)
        while True:
            card = patiently(lambda: client.batches.get(batch_id))
            if card.finished_at is not None or card.status == "draft":
                return card
            words = f"{card.status}: {tell_counts(card.counts)}"
            progress.update(bar, description=words, total=card.num_cells, completed=card.num_ended)
            sleep(POLL_S)


class RateColumn(ProgressColumn):
    """Cells per minute, of late."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed * 60:.1f}/min")


def draw_progress(console: Console, get_time: GetTimeCallable | None = None) -> Progress:
    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
        get_time=get_time,
        speed_estimate_period=RATE_OVER_S,
    )


def tell_counts(counts: BatchCounts) -> str:
    told = (f"{number} {status}" for status, number in counts.model_dump().items() if number)
    return ", ".join(told) or "no cells"


def tell_estimate(card: BatchCard) -> str:
    estimate = card.estimate
    words = (
        f"{estimate.cells} cells, {estimate.images} pictures, {estimate.gpu_s:.0f} GPU-seconds, "
        f"about {estimate.estimated_duration_s / 60:.0f} min"
    )
    if card.status != "draft":
        return f"{words}. Started: sm4ll batches follow {card.id}"
    if not estimate.fits_budget:
        return f"{words}: more than is left of this month's budget."
    return f"{words}. Start it: sm4ll batches start {card.id}"


def _say(card: BatchCard) -> None:
    line = f"{card.id}  {card.status}: {tell_counts(card.counts)}"
    out.print(line, markup=False, highlight=False)
