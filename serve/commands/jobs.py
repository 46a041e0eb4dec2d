"""Jobs of a running API: which there are, how one stands, and what happens to it."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from serve.client import Client
from serve.commands.connection import connect
from serve.commands.console import Url, err, out
from serve.schemas.jobs import JobCard, JobStatus

EXTENSIONS = {
    "image/png": ".png",
    "image/webp": ".webp",
    "image/jpeg": ".jpg",
    "image/tiff": ".tiff",
    "application/zip": ".zip",
}
ID_LENGTH = 30
CREATED = "{:%m-%d %H:%M}"
JobId = Annotated[str, typer.Argument(help="As `sm4ll jobs list` shows it.")]


def list_jobs(
    status: Annotated[
        str | None, typer.Option(help="queued, running, succeeded, failed or cancelled.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many at most.")] = 20,
    url: Url = None,
) -> None:
    """List jobs, newest first.

    For example: sm4ll jobs list --status failed
    """
    known = JobStatus.__args__  # type: ignore[attr-defined]
    if status is not None and status not in known:
        raise typer.BadParameter(f"status is one of {', '.join(known)}")
    with connect(url) as client:
        cards = client.jobs(status, limit=limit).items  # type: ignore[arg-type]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("job", no_wrap=True, min_width=ID_LENGTH)  # cut short it is of no use
    for heading in ("status", "version", "tries"):
        table.add_column(heading, overflow="fold")
    table.add_column("created", no_wrap=True, min_width=len(CREATED.format(datetime.max)))
    for card in cards:
        created = CREATED.format(card.created_at.astimezone())
        table.add_row(card.id, _say(card), card.version, str(card.attempts), created)
    out.print(table)


def show(job: JobId, url: Url = None) -> None:
    """Show a job as the API tells it.

    For example: sm4ll jobs show job_0123456789abcdefghjkmnpqrs
    """
    with connect(url) as client:
        out.print_json(client.job(job).model_dump_json())


def cancel(job: JobId, url: Url = None) -> None:
    """Cancel a job: at once where it waits, at its next step where it runs.

    For example: sm4ll jobs cancel job_0123456789abcdefghjkmnpqrs
    """
    with connect(url) as client:
        card = client.cancel_job(job)
    out.print(f"{card.id}  {'stopping' if card.cancel_requested else card.status}")


def follow(
    job: JobId,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for what it makes.")
    ] = None,
    url: Url = None,
) -> None:
    """Follow a job to its end, and fetch its pictures.

    For example: sm4ll jobs follow job_0123456789abcdefghjkmnpqrs -o pictures/
    """
    with connect(url) as client:
        _watch(client, job)
        card = client.job(job)
        out.print(f"{card.id}  {_say(card)}")
        if card.error is not None and card.status == "failed":
            err.print(f"{card.error.title}: {card.error.detail}", markup=False)
            raise typer.Exit(1)
        for index, one in enumerate(card.outputs if output is not None else ()):
            assert output is not None
            output.mkdir(parents=True, exist_ok=True)
            file = output / f"{card.id}-{index}{EXTENSIONS.get(one.media_type, '')}"
            file.write_bytes(client.download(one.url))
            out.print(f"{file}", markup=False)


def _watch(client: Client, job_id: str) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        bar = progress.add_task("waiting", total=None)
        for event in client.job_events(job_id):
            data = event.data
            if event.kind == "queued":
                progress.update(bar, description=str(data.get("reason", "waiting")), total=None)
            elif event.kind == "started":
                progress.update(bar, description="running", total=None)
            elif event.kind == "step":
                progress.update(bar, completed=data["i"], total=data["n"])


def _say(card: JobCard) -> str:
    if card.parked:
        return "failed, parked"
    return "stopping" if card.cancel_requested else card.status
