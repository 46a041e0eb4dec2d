"""What belongs to one expert version before it serves: training inputs and golden samples."""

import asyncio
import os
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from deployments.bundle import load_family
from serve.catalog import Catalog
from serve.commands.console import Family, err, out
from serve.commands.offline import Offline, build_offline
from serve.messages import EXPERTS, Expert
from serve.pairs import LAYOUT, Pair, Skipped, find_pairs
from serve.prepare import Manifest, Outcome, prepare_pairs, write_manifest
from serve.prepared_page import write_page
from serve.settings import Settings

MAX_SHOWN = 20


def prepare(
    expert: Annotated[str, typer.Option(help=f"One of {', '.join(EXPERTS)}.")],
    pairs: Annotated[
        Path,
        typer.Option(exists=True, file_okay=False, help=f"Your pictures: {LAYOUT}."),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--out", "--output", file_okay=False, help="Where they go.")
    ],
    version: Annotated[
        str | None, typer.Option(help="For example eye@2; the expert's default when absent.")
    ] = None,
    family: Family = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Pairs at once; one per CPU when absent.")
    ] = None,
) -> None:
    """Make training inputs with the very code that serves requests.

    Masker, crop, product canvas and prompt are those of the version's bundle, so that the expert
    learns from what it will be given. Every pair becomes a folder: crop.png, mask.png (white: may
    be painted), product.png, silhouette.png, request.json (seed, steps, guidance, landmarks),
    meta.json (prompt, crop box, affine, fingerprints) and, where the pair has a target, the same
    cut of it as target_crop.png. manifest.json lists them; index.html shows them.

    A mask.* of your own is used as it is (white may change). A target.* is the person's picture
    with the product on, of the same size. Run it again after adding pairs: what is there stays.

    For example: sm4ll prepare --expert eye --pairs photos/ --out training/eye
    """
    catalog = _load_catalog(family)
    bundle = catalog.choose(_check_expert(expert), version).bundle
    found, no_pairs = find_pairs(pairs)
    num_jobs = jobs or os.cpu_count() or 1
    with err.status(f"Loading the {bundle.masker.kind} masker of {bundle.version} ..."):
        offline = build_offline(catalog, bundle, num_threads=num_jobs)
    outcomes = _prepare(offline, found, output, num_jobs)
    manifest, metas = write_manifest(output, offline.plan, outcomes, no_pairs)
    page = write_page(output, manifest, metas)
    _say_prepared(manifest, page)
    if not metas:
        raise typer.Exit(1)


def _check_expert(expert: str) -> Expert:
    for known in EXPERTS:
        if known == expert:
            return known
    raise typer.BadParameter(f"{expert!r} is no expert; one of {', '.join(EXPERTS)}")


def _load_catalog(family: Path | None) -> Catalog:
    return Catalog(*load_family((family or Settings().family).resolve()))


def _prepare(offline: Offline, found: list[Pair], home: Path, num_jobs: int) -> list[Outcome]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err) as progress:
        task = progress.add_task(f"Preparing for {offline.plan.bundle.version}", total=len(found))

        def on_done(outcome: Outcome) -> None:
            progress.advance(task)

        return asyncio.run(
            prepare_pairs(found, offline.plan, offline.prepare, home, on_done, num_jobs)
        )


def _say_prepared(manifest: Manifest, page: Path) -> None:
    kept = f", {manifest.num_kept} were there already" if manifest.num_kept else ""
    out.print(
        f"{manifest.version}: {len(manifest.samples)} training inputs "
        f"({manifest.num_written} new{kept}), {len(manifest.skipped)} skipped"
    )
    if manifest.skipped:
        out.print(_table_skipped(manifest.skipped))
    out.print(f"Look at {page.resolve()}", markup=False)


def _table_skipped(skipped: tuple[Skipped, ...]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("skipped", no_wrap=True)
    table.add_column("why")
    table.add_column("what helps")
    for skip in skipped[:MAX_SHOWN]:
        table.add_row(skip.name, skip.reason, skip.remedy)
    if len(skipped) > MAX_SHOWN:
        table.add_row("...", f"{len(skipped) - MAX_SHOWN} more, see manifest.json", "")
    return table
