"""Seven LoRA experts on one base beside seven pipelines of their own: memory, and time per swap.

The base is a FLUX.2 klein of width 1024, large enough to be seen in a process. Each side runs in a
process of its own, so that nothing of one is counted for the other.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from deployments.backends.diffusion.adapters import time_swaps
from deployments.backends.diffusion.backend import DiffusionBackend
from deployments.bundle import Bundle, Canvas, Licence, Product
from deployments.footprint import build_request
from deployments.recipes import Adapter, Flux2KleinInpaint, InpaintConfig, Prompt
from deployments.sources import ModelSource
from serve.config import ReplicaPlan
from serve.messages import EXPERTS, Expert
from tests.bench.real_sizes import build_klein, build_klein_lora

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
NUM_SWAPS = 70


def bundle(folder: Path, expert: Expert) -> Bundle:
    return Bundle(
        expert=expert,
        name="lora",
        title="benchmark",
        status="benchmark",
        licence=Licence(name="none", commercial_use=True),
        backend=InpaintConfig(
            model=ModelSource(path=folder / "klein"),
            adapter=Adapter(source=ModelSource(path=folder / expert)),
            prompt=Prompt(text="the person wears the product"),
            dtype="bf16",
            recipe=Flux2KleinInpaint(),
        ),
        product=Product(canvas=Canvas(size=(256, 256))),
    )


def load(bundles: tuple[Bundle, ...]) -> DiffusionBackend:
    backend = DiffusionBackend(bundles, ReplicaPlan(name="bench"))
    backend.load()
    return backend


def paint(backend: DiffusionBackend, expert: Expert, folder: Path) -> None:
    """One small picture: weights are mapped from disk, and not in memory before they are used."""
    asked = build_request(bundle(folder, expert), (128, 128), num_steps=1, seed=1)
    backend.generate([asked], lambda step, num_steps: None)


def rss_mib() -> float:
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def measure_shared(folder: Path) -> dict[str, Any]:
    before_mib = rss_mib()
    backend = load(tuple(bundle(folder, expert) for expert in EXPERTS))
    for expert in EXPERTS:
        paint(backend, expert, folder)
    memory = backend.memory()
    assert backend._loaded is not None
    rack = backend._loaded.adapters
    assert rack is not None
    swaps_s = time_swaps(rack, [f"{expert}@lora" for expert in EXPERTS], NUM_SWAPS)
    return {
        "weights_mib": memory.weights_bytes / MIB,
        "adapters_mib": (sum(memory.adapter_bytes.values()) + rack.slot_bytes) / MIB,
        "rss_mib": rss_mib() - before_mib,
        "swap_ms": statistics.median(swaps_s) * 1e3,
    }


def measure_own(folder: Path) -> dict[str, Any]:
    before_mib = rss_mib()
    backends = [load((bundle(folder, expert),)) for expert in EXPERTS]
    for backend, expert in zip(backends, EXPERTS, strict=True):
        paint(backend, expert, folder)
    memories = [backend.memory() for backend in backends]
    return {
        "weights_mib": sum(memory.weights_bytes for memory in memories) / MIB,
        "adapters_mib": sum(sum(memory.adapter_bytes.values()) for memory in memories) / MIB,
        "rss_mib": rss_mib() - before_mib,
        "swap_ms": 0.0,
    }


def in_own_process(side: str, folder: Path) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "tests.bench.adapters",
        "--side",
        side,
        "--folder",
        str(folder),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def report(folder: Path) -> str:
    build_klein(folder / "klein", size="small")
    for seed, expert in enumerate(EXPERTS):
        build_klein_lora(folder / expert, seed, size="small")
    lines = [
        "| seven LoRA experts | weights MiB | adapters MiB | process grew by MiB | swap ms |",
        "|---|---|---|---|---|",
    ]
    for name, side in (("on one base", "shared"), ("on a base each", "own")):
        cell = in_own_process(side, folder)
        swap = f"{cell['swap_ms']:.2f}" if cell["swap_ms"] else "-"
        lines.append(
            f"| {name} | {cell['weights_mib']:.0f} | {cell['adapters_mib']:.1f} "
            f"| {cell['rss_mib']:.0f} | {swap} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="write the table as Markdown")
    parser.add_argument("--side", choices=("shared", "own"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        measure = measure_shared if arguments.side == "shared" else measure_own
        print(json.dumps(measure(arguments.folder)))
        return
    with tempfile.TemporaryDirectory(prefix="sm4ll-bench-") as folder:
        text = report(Path(folder))
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
