"""Experts at their real sizes on one GPU, against a plain diffusers loop in the same run.

Weights are random: speed does not depend on their values. Every cell runs in a process of its own,
so that compiled code and memory of one never serve another. Without a GPU, `--tiny` runs the same
script on small networks to show that it works; its figures mean nothing.
"""

import argparse
import datetime as dt
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.bench.gpu_cells import CELLS, Cell

VARIANTS = ("diffusers", "plain", "compiled", "compiled+fp8")
MODELS = {"sd": "SD-inpaint class", "sdxl": "SDXL-inpaint class", "klein": "FLUX.2 klein 4B class"}
BATCHES = (1, 2, 4, 8)
NUM_PACKED = 4
CELL_TIMEOUT_S = 540
ROOT = Path(__file__).resolve().parents[2]
err = Console(stderr=True)
Row = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Options:
    """What this run shall measure."""

    folder: Path
    models: tuple[str, ...]
    seconds: float
    tiny: bool


def run_cell(options: Options, cell: Cell) -> dict[str, Any]:
    """One measurement in its own process; a failure is an answer, not the end of the run."""
    command = [sys.executable, "-m", "tests.bench.gpu", "--cell", json.dumps(asdict(cell))]
    err.print(f"  {cell.kind} {cell.model} {cell.variant} batch {cell.batch}", markup=False)
    try:
        done = subprocess.run(
            [*command, "--folder", str(options.folder), "--seconds", str(options.seconds)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=CELL_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"longer than {CELL_TIMEOUT_S} s"}
    answers = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not answers:
        return {"failed": (done.stderr.strip().splitlines() or ["no answer"])[-1][:120]}
    answer: dict[str, Any] = json.loads(answers[-1])
    return answer


def build(options: Options) -> None:
    for model in options.models:
        err.print(f"Building {MODELS[model]} with random weights ...")
        answer = run_cell(options, Cell("build", model, tiny=options.tiny))
        if "failed" in answer:
            raise SystemExit(f"{model}: {answer['failed']}")


def measure_variants(options: Options, model: str) -> list[Row]:
    """Seconds per image of every variant, as a ratio to the plain diffusers loop."""
    rows: list[Row] = []
    base_s: float | None = None
    for variant in VARIANTS:
        cell = run_cell(options, Cell("time", model, variant, tiny=options.tiny))
        if "failed" in cell:
            rows.append((MODELS[model], variant, cell["failed"], "", "", "", ""))
            continue
        base_s = base_s or cell["s_per_image"]
        rows.append(
            (
                MODELS[model],
                variant,
                f"{cell['s_per_image']:.3f}",
                f"{base_s / cell['s_per_image']:.2f}x",
                f"{cell['peak_gib']:.1f}",
                f"{cell['load_s']:.0f}",
                cell["quality"],
            )
        )
    return rows


def measure_batches(options: Options, model: str) -> list[Row]:
    """The batch curve; batch 1 is measured again, beside the others."""
    rows: list[Row] = []
    for variant in ("plain", "compiled"):
        cells = [
            run_cell(options, Cell("time", model, variant, batch=batch, tiny=options.tiny))
            for batch in BATCHES
        ]
        shown = [
            cell.get("failed") or f"{cell['s_per_image']:.3f} ({cell['peak_gib']:.1f})"
            for cell in cells
        ]
        rows.append((MODELS[model], variant, *shown))
    return rows


def measure_swap(options: Options) -> list[Row]:
    rows: list[Row] = []
    for variant in ("plain", "compiled"):
        cell = run_cell(options, Cell("swap", "klein", variant, tiny=options.tiny))
        if "failed" in cell:
            rows.append((variant, cell["failed"], "", "", ""))
            continue
        rows.append(
            (
                variant,
                f"{cell['swap_ms']:.1f}",
                f"{cell['same_s']:.3f}",
                f"{cell['swapped_s']:.3f}",
                f"{cell['adapter_mib']:.1f}",
            )
        )
    return rows


def run_packed(
    options: Options, num: int, share: float, greedy: bool
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """`num` replicas at once, all starting together; the last one greedy if asked."""
    start_file = options.folder / f"start-{time.time_ns()}"
    cells = [
        Cell(
            "greedy" if greedy and index == num - 1 else "packed",
            "sd",
            "plain",
            share=share,
            start_file=str(start_file),
            tiny=options.tiny,
        )
        for index in range(num)
    ]
    command = [sys.executable, "-m", "tests.bench.gpu", "--folder", str(options.folder)]
    command += ["--seconds", str(options.seconds), "--cell"]
    processes = [
        subprocess.Popen(
            [*command, json.dumps(asdict(cell))],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
        )
        for cell in cells
    ]
    give_up_s = time.monotonic() + CELL_TIMEOUT_S
    while time.monotonic() < give_up_s and not all(
        # One that died while it loaded keeps nobody waiting.
        Path(f"{start_file}.{process.pid}").exists() or process.poll() is not None
        for process in processes
    ):
        time.sleep(0.1)
    start_file.touch()
    answers: list[dict[str, Any]] = []
    for process in processes:
        text = process.communicate(timeout=CELL_TIMEOUT_S)[0].decode()
        lines = [line for line in text.splitlines() if line.startswith("{")]
        answers.append(json.loads(lines[-1]) if lines else {"failed": "died"})
    workers = [answer for answer in answers if "latencies_s" in answer]
    latencies_s = sorted(value for worker in workers for value in worker["latencies_s"])
    total = {
        "images_per_s": sum(len(w["latencies_s"]) / w["took_s"] for w in workers),
        "p95_s": latencies_s[int(0.95 * (len(latencies_s) - 1))] if latencies_s else float("nan"),
        "out_of_memory": sum(worker["out_of_memory"] for worker in workers),
        "died": sum("failed" in answer for answer in answers),
    }
    return total, answers


def measure_packing(options: Options) -> list[Row]:
    share = 1 / NUM_PACKED
    runs = (
        ("1 replica, whole GPU", 1, 0.0, False),
        (f"{NUM_PACKED} replicas, capped at {share:.2f}", NUM_PACKED, share, False),
        (f"{NUM_PACKED} replicas, no caps", NUM_PACKED, 0.0, False),
        (f"{NUM_PACKED} replicas, one greedy, capped", NUM_PACKED, share, True),
        (f"{NUM_PACKED} replicas, one greedy, no caps", NUM_PACKED, 0.0, True),
    )
    rows: list[Row] = []
    for name, num, cap, greedy in runs:
        err.print(f"  packed: {name}")
        total, answers = run_packed(options, num, cap, greedy)
        largest = next((a["largest_batch"] for a in answers if "largest_batch" in a), "")
        rows.append(
            (
                name,
                f"{total['images_per_s']:.2f}",
                f"{total['p95_s']:.3f}",
                str(total["out_of_memory"]),
                str(total["died"]),
                str(largest),
            )
        )
    return rows


def table(headings: Row, rows: list[Row]) -> str:
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def report(options: Options) -> str:
    about = run_cell(options, Cell("about", options.models[0], tiny=options.tiny))
    build(options)
    variants = [row for model in options.models for row in measure_variants(options, model)]
    batches = [row for model in options.models for row in measure_batches(options, model)]
    parts = [
        f"{about['device']}, driver {about['driver']}, torch {about['torch']}, "
        f"diffusers {about['diffusers']}, {dt.date.today()}; canvas 768x1024, random weights; "
        "`sm4ll bench gpu`" + (" --tiny: the figures mean nothing" if options.tiny else ""),
        table(
            ("model", "variant", "s/image", "speed", "peak GiB", "load s", "against plain"),
            variants,
        ),
        "Seconds per image (peak GiB) by batch:",
        table(("model", "variant", *(str(batch) for batch in BATCHES)), batches),
    ]
    if "klein" in options.models:
        headings = ("variant", "swap ms", "same adapter s", "other adapter s", "adapter MiB")
        parts += ["Two LoRAs on one klein base:", table(headings, measure_swap(options))]
    if "sd" in options.models:
        headings = ("run", "images/s", "p95 s", "out of memory", "died", "greedy's largest batch")
        parts += ["Light replicas on one GPU:", table(headings, measure_packing(options))]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="per timed cell")
    parser.add_argument("--output", type=Path, help="write the tables as Markdown")
    parser.add_argument("--models", default=",".join(MODELS), help="of sd, sdxl, klein")
    parser.add_argument("--tiny", action="store_true", help="small networks, to try the script")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cell:
        cell = Cell(**json.loads(arguments.cell))
        print(json.dumps(CELLS[cell.kind](cell, arguments.folder, arguments.seconds)))
        return
    with tempfile.TemporaryDirectory(prefix="sm4ll-bench-") as folder:
        models = tuple(arguments.models.split(","))
        options = Options(Path(folder), models, arguments.seconds, arguments.tiny)
        text = report(options)
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
