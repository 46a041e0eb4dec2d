"""Runs the demo's cases against an API, shows how each went, and writes the page."""

import datetime as dt
import os
import platform
import time
import zipfile
from importlib.metadata import version as installed_version
from io import BytesIO
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from serve import __version__
from serve.client import ApiError, Client
from serve.demo.cases import DemoCase, demo_cases
from serve.demo.page import DemoFacts, DemoReceipt, DemoResult, list_stages, render_page
from serve.schemas.receipt import Receipt
from serve.schemas.tryon import TryOnOptions
from serve.telemetry import STAGES

CAPTION = "milliseconds per stage; outside: largest change of any pixel outside the region"


def run_demo(client: Client, out_dir: Path, console: Console) -> int:
    """Try every case, print the table, write `out_dir/index.html`.

    Returns:
        The exit code: 0 when every case worked and left everything outside its region alone.
    """
    started_s = time.monotonic()
    results = []
    cases = demo_cases()
    for number, case in enumerate(cases, start=1):
        with console.status(f"{number} of {len(cases)}: {case.expert}, {case.title}"):
            results.append(_try(client, case))
        if not console.is_terminal:
            console.print(f"{number} of {len(cases)}: {case.expert}")
    console.print(_table(results))
    for result in results:
        if not result.ok:
            words = f"{result.case.expert} failed: {result.error_code}: {result.detail}"
            console.print(words, style="red", markup=False)
    facts = DemoFacts(
        version=__version__,
        python=platform.python_version(),
        ray=installed_version("ray"),
        cpu_count=os.cpu_count() or 1,
        date=dt.date.today().isoformat(),
        total_s=time.monotonic() - started_s,
    )
    page = render_page(results, out_dir, facts=facts)
    console.print(f"Look at {page.resolve()}", markup=False)
    return 0 if all(_is_good(result) for result in results) else 1


def _try(client: Client, case: DemoCase) -> DemoResult:
    options = TryOnOptions(expert=case.expert, format="png")
    try:
        layers = client.tryon_layers(
            options, case.person_path.read_bytes(), case.product_path.read_bytes()
        )
    except ApiError as exc:
        problem = exc.problem
        return DemoResult(
            case,
            ok=False,
            error_code=problem.code,
            detail=problem.detail,
            remedy=problem.remedy or "",
        )
    with zipfile.ZipFile(BytesIO(layers)) as archive:
        receipt = Receipt.model_validate_json(archive.read("receipt.json"))
        return DemoResult(
            case,
            ok=True,
            result_png=archive.read("final.png"),
            region_png=archive.read("region.png"),
            receipt=_shown(receipt),
        )


def _shown(receipt: Receipt) -> DemoReceipt:
    return DemoReceipt(
        version=receipt.version,
        backend=receipt.backend,
        is_preview=receipt.preview,
        stages_ms={name: ms for name, ms in receipt.timings_ms.items() if name in STAGES},
        outside_max_diff=receipt.outside.max_abs_diff,
        seed=receipt.seed,
    )


def _is_good(result: DemoResult) -> bool:
    return result.receipt is not None and result.receipt.outside_max_diff == 0


def _table(results: list[DemoResult]) -> Table:
    """A column for each version: seven fit into a terminal, and the stages beside them did not."""
    receipts = [result.receipt for result in results if result.receipt is not None]
    table = Table(box=box.SIMPLE_HEAD, padding=0, caption=CAPTION)
    table.add_column("", no_wrap=True)
    for receipt in receipts:
        table.add_column(receipt.version, justify="right", no_wrap=True)
    for stage in list_stages(receipts):
        times = (receipt.stages_ms.get(stage, 0.0) for receipt in receipts)
        table.add_row(stage, *(f"{time_ms:.0f}" for time_ms in times))
    table.add_row("total", *(f"{receipt.total_ms:.0f}" for receipt in receipts), style="bold")
    table.add_row("outside", *(str(receipt.outside_max_diff) for receipt in receipts))
    return table
