"""How fast a thousand versions are planned on a thousand GPUs, and how near to the least of them.

Run as `python -m tests.bench.packing [--output FILE]`.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deployments.packing.demand import Demand, Need
from deployments.packing.placement import UNITS, Gpus, Node, Placement
from deployments.packing.planner import PackingPlan, plan_packing
from serve.messages import EXPERTS

Parts = NDArray[np.float64]
NUM_VERSIONS = 1000
NUM_NODES = 125
RESERVE = 0.05
USABLE = 1 - RESERVE


def inventory(**kinds: float) -> Placement:
    """125 nodes of 8 GPUs; with several kinds, in turn."""
    names = list(kinds.items())
    nodes = [
        Node(name=f"node-{at:03}", gpus=(Gpus(name=name, gib=gib, count=8),))
        for at, (name, gib) in ((at, names[at % len(names)]) for at in range(NUM_NODES))
    ]
    return Placement(nodes=tuple(nodes), reserve=RESERVE)


def version(at: int) -> str:
    return f"{EXPERTS[at % len(EXPERTS)]}@{at // len(EXPERTS)}"


def demands_of(placement: Placement, needs_gib: Parts, replicas: list[int]) -> list[Demand]:
    """Versions that need so much on every kind of GPU they fit."""
    demands = []
    for at, (gib, num_replicas) in enumerate(zip(needs_gib.tolist(), replicas, strict=True)):
        needs = {}
        for kind, gpu_gib in placement.kinds.items():
            units = int(np.ceil(gib / gpu_gib * UNITS))
            if units <= placement.usable_units(gpu_gib):
                whole = units > placement.whole_gpu_above * UNITS
                needs[kind] = Need(gib, UNITS if whole else units)
        demands.append(Demand(version(at), (version(at),), num_replicas, needs))
    return demands


def mixes(rng: np.random.Generator) -> Iterator[tuple[str, Parts]]:
    """Parts of a GPU that a thousand versions need, and the hard ones of the textbooks."""
    just_above = rng.uniform(1e-4, 4e-3, NUM_VERSIONS)
    yield "light and heavy", rng.uniform(0.05, 0.60, NUM_VERSIONS)
    yield "light, 2 to 8 per GPU", rng.uniform(0.12, 0.49, NUM_VERSIONS)
    yield "2 or 3 per GPU", rng.uniform(0.24, 0.49, NUM_VERSIONS)
    yield "just above 1/3, 1/4", USABLE * rng.choice([1 / 3, 1 / 4], NUM_VERSIONS) + just_above
    yield (
        "just above 1/2, 1/3, 1/7",
        (USABLE * rng.choice([1 / 2, 1 / 3, 1 / 7], NUM_VERSIONS) + just_above),
    )
    quarter = USABLE / 4
    around = [2 * quarter + 0.002, quarter + 0.004, quarter + 0.002, quarter - 0.004]
    yield "first-fit's worst", rng.permutation(np.resize(np.repeat(around, [2, 2, 2, 4]), 1000))
    first = rng.uniform(0.38, 0.49, 334) * USABLE
    second = rng.uniform(0.25, 0.30, 334) * USABLE
    triplets = np.concatenate([first, second, USABLE - first - second - 3e-4])
    yield "triplets", triplets[:NUM_VERSIONS]


def fit_replicas(parts: Parts) -> list[int]:
    """As many replicas as fill about nine tenths of the inventory, the same number each."""
    sizes = np.where(parts > 0.5, 1.0, parts / USABLE)
    each = max(1, int(0.9 * 8 * NUM_NODES / sizes.sum()))
    return [each] * len(parts)


def measure(demands: list[Demand], placement: Placement) -> tuple[PackingPlan, float]:
    start_s = time.perf_counter()
    plan = plan_packing(demands, placement)
    return plan, time.perf_counter() - start_s


def row(name: str, plan: PackingPlan, taken_s: float) -> str:
    used, bound = len(plan.used), plan.lower_bound
    numbers = f"{plan.num_replicas} | {used} | {bound} | {used / bound:.3f} | {taken_s:.2f}"
    return f"| {name} | {numbers} |"


def table() -> Iterator[str]:
    yield "| 1,000 versions on 1,000 GPUs | replicas | GPUs | lower bound | ratio | seconds |"
    yield "|---|---|---|---|---|---|"
    alike = inventory(alike=80.0)
    for name, parts in mixes(np.random.default_rng(1)):
        demands = demands_of(alike, 80.0 * parts, fit_replicas(parts))
        plan, taken_s = measure(demands, alike)
        yield row(name, plan, taken_s)
    start_s = time.perf_counter()
    again = plan_packing(demands, alike, previous=plan)
    taken_s = time.perf_counter() - start_s
    yield f"| again from that plan: {again.num_kept} stay | {again.num_replicas} | " + (
        f"{len(again.used)} | {again.lower_bound} | | {taken_s:.2f} |"
    )
    mixed = inventory(small=24.0, middle=48.0, large=80.0)
    needs_gib = np.random.default_rng(2).uniform(2.0, 30.0, NUM_VERSIONS)
    plan, taken_s = measure(demands_of(mixed, needs_gib, [2] * NUM_VERSIONS), mixed)
    yield row("three kinds of GPU (bound: as if all were the largest)", plan, taken_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="write the table as Markdown")
    output = parser.parse_args().output
    lines = []
    for line in table():
        print(line, flush=True)
        lines.append(line)
    if output is not None:
        output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
