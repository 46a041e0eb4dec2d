"""What belongs to one expert version before it serves: training inputs and golden samples."""

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from deployments.backends.registry import create_backend
from deployments.bundle import load_family
from deployments.golden import Drift, record_golden
from deployments.golden_set import GoldenSet, golden_folder
from serve.catalog import Catalog
from serve.commands.console import Family, err, out
from serve.commands.offline import Offline, build_offline, build_requests, demo_pairs
from serve.config import ReplicaPlan
from serve.errors import ConfigError
from serve.messages import EXPERTS, Expert
from serve.pairs import LAYOUT, Pair, Skipped, find_pairs
from serve.prepare import Manifest, Outcome, prepare_pairs, write_manifest
from serve.prepared_page import write_page
from serve.schemas.receipt import Quality
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


def freeze(
    version: Annotated[str, typer.Argument(help="Which one, for example eye@2.")],
    pairs: Annotated[
        Path | None,
        typer.Option(
            exists=True, file_okay=False, help=f"{LAYOUT}; the bundled demo pictures when absent."
        ),
    ] = None,
    num: Annotated[int, typer.Option(min=1, help="Samples; each is painted at every start.")] = 2,
    quality: Annotated[Quality, typer.Option(help="Whose steps they take.")] = "normal",
    family: Family = None,
) -> None:
    """Record golden samples: from then on no replica of the version serves unless it paints them.

    Requests are made as for serving, painted twice to see that the version repeats itself, and
    kept with the picture beside the bundle, under <expert>.<name>/golden. A replica paints them
    again when it starts and refuses to become ready when bundle, weights or pictures differ,
    naming the sample and by how much. Tolerances are in golden.yaml.

    Freeze when a version is right, and again whenever you change it on purpose.

    For example: sm4ll experts freeze eye@2 --pairs photos/ --num 3
    """
    catalog = _load_catalog(family)
    bundle = catalog.choose(_check_expert(version.partition("@")[0]), version).bundle
    found, no_pairs = find_pairs(pairs) if pairs else (demo_pairs(bundle.expert), [])
    if not found:
        raise ConfigError(f"{pairs}: {'; '.join(f'{no.name}: {no.reason}' for no in no_pairs)}")
    with err.status(f"Loading {version} ..."):
        offline = build_offline(catalog, bundle, num_threads=1, quality=quality)
        plan = ReplicaPlan(name=f"Expert-{version}", weights=catalog.family.weights)
        backend = create_backend((bundle,), plan)
        backend.load()
    with err.status(f"Painting {num} samples twice ..."):
        requests = asyncio.run(build_requests(offline, found, num))
        golden, drifts = record_golden(bundle, backend, requests)
    backend.unload()
    _say_frozen(golden, drifts, golden_folder(bundle))


def _say_frozen(golden: GoldenSet, drifts: Mapping[str, Drift], home: Path) -> None:
    record = golden.record
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("sample", "size", "steps", "seed", "second run, max diff"):
        table.add_column(heading, no_wrap=True)
    for sample in golden.samples:
        asked = sample.request
        height_px, width_px = asked.region_hw.shape
        drift = drifts[sample.name].max_abs_diff
        said = (f"{width_px}x{height_px}", asked.num_steps, asked.seed, drift)
        table.add_row(sample.name, *map(str, said))
    out.print(table)
    out.print(f"{record.version} is frozen as it paints on {record.environment}: {home}")
    for label, digest in record.weights.items():
        out.print(f"weights {label}: sha256 {digest}", markup=False, highlight=False)


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
