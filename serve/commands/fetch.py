"""`sm4ll experts fetch`: weights into the cache before any replica asks for them."""

from collections.abc import Sequence
from typing import Annotated

import typer
from rich import box
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from deployments.bundle import load_family
from deployments.hub import find_cache
from deployments.needed import list_needs
from deployments.prefetch import Looked, look
from deployments.prefetch import fetch as fetch_needs
from serve.commands.console import Family, err, out
from serve.commands.fetch_progress import BarsWatcher, LinesWatcher
from serve.config import WeightsConfig
from serve.settings import Settings


def fetch(
    family: Family = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only look: what is there, what is missing.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, max=32, help="Files at once.")] = 4,
) -> None:
    """Bring the weights that the family's bundles name into the cache, before any replica starts.

    Bases, fine-tunes, adapters, networks of maskers and judge: hub repositories at their commits,
    by the rules that replicas load them by; directories are checked. They go to weights.cache_dir
    of the family file, else where the hub library keeps them (HF_HOME). Whole files are kept: after
    a failure run it again. Then replicas start without the hub (HF_HUB_OFFLINE=1, or
    weights.local_files_only).

    Exits 0 when everything is there, else 1. Gated and private repositories need HF_TOKEN.

    For example: HF_HOME=/models/hub sm4ll experts fetch --check
    """
    path = (family or Settings().family).resolve()
    config, bundles = load_family(path)
    needs = list_needs(path, config, bundles)
    if not needs:
        kinds = ", ".join(sorted({bundle.backend.kind for bundle in bundles.values()}))
        out.print(f"Nothing to fetch: none of {len(bundles)} versions has weights ({kinds}).")
        return
    with err.status(f"Looking for the weights of {len(bundles)} versions ..."):
        looked = look(needs, config.weights)
    if not check and not all(one.is_ready for one in looked):
        with BarsWatcher(err) if err.is_terminal else LinesWatcher(err) as watcher:
            looked = fetch_needs(looked, config.weights, watcher, jobs)
    _say(looked, config.weights)
    if not all(one.is_ready for one in looked):
        raise typer.Exit(1)


def _say(looked: Sequence[Looked], weights: WeightsConfig) -> None:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("weights")
    table.add_column("for")
    for heading in ("files", "size", "missing"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in looked:
        files = f"{len(one.files)}" if one.files else "-"
        size = decimal(one.num_bytes) if one.files else "-"
        table.add_row(escape(one.need.label), ", ".join(one.need.users), files, size, _missing(one))
    out.print(table)
    problems = [one.problem for one in looked if one.problem is not None]
    for detail, remedy in dict.fromkeys((each.detail, each.remedy) for each in problems):
        err.print(f"{detail}\nWhat helps: {remedy}", markup=False, highlight=False)
    if not problems:
        words = f"Everything is there{_place(looked, weights)}: replicas need no hub."
        out.print(words, markup=False, highlight=False)


def _missing(one: Looked) -> str:
    if one.is_ready:
        return "nothing"
    return decimal(one.missing_bytes) if one.missing else "see below"


def _place(looked: Sequence[Looked], weights: WeightsConfig) -> str:
    if all(one.need.source.repo is None for one in looked):
        return ""
    return f", in {find_cache(weights.cache_dir)}"
