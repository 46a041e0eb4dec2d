"""What it takes to say who gets which arm, beside one SHA-256 in the same run.

Run as `python -m tests.bench.assignment [--output FILE]`.
"""

import argparse
import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from serve.designs import Arm, Audience, ExperimentDesign, Namespace
from serve.experiments.allocation import allocate, reallocate
from serve.experiments.assignment import LiveExperiment, Party, assign, prefix_of
from serve.policy import TenantPolicy

WEIGHTS = {"control": 9_000, "new": 1_000}
ARMS = tuple(
    Arm(name=name, version=f"eye@{at}", weight=weight)
    for at, (name, weight) in enumerate(WEIGHTS.items(), start=1)
)
NUM_UNITS = 200
ROUNDS = 301
PARTIES = [Party(tenant_id="acme", request_id="req_1", user=f"user-{n}") for n in range(NUM_UNITS)]
LISTED = TenantPolicy(experts=("eye",), versions=("eye@1", "eye@2"))


def cases() -> Iterator[tuple[str, LiveExperiment, TenantPolicy]]:
    plain = ExperimentDesign(id="eye-2", expert="eye", arms=ARMS)
    part = plain.model_copy(
        update={
            "coverage": 5_000,
            "namespace": Namespace(name="eyewear", end=9_000),
            "audience": Audience(denied_tenants=tuple(f"tenant-{n}" for n in range(1_000))),
        }
    )
    yield "90/10", LiveExperiment(plain, 1, allocate(WEIGHTS)), TenantPolicy()
    scattered = allocate(WEIGHTS)
    for share in (100, 2_500, 500, 5_000, 1_000):
        scattered = reallocate(scattered, {"control": 10_000 - share, "new": share})
    yield "90/10 after five changes", LiveExperiment(plain, 6, scattered), TenantPolicy()
    yield (
        "namespace, coverage, 1,000 denied tenants, allowed versions",
        LiveExperiment(part, 1, allocate(WEIGHTS)),
        LISTED,
    )


def measure_us(call: Callable[[Party], object]) -> float:
    begun_s = time.perf_counter()
    for party in PARTIES:
        call(party)
    return 1e6 * (time.perf_counter() - begun_s) / NUM_UNITS


def measure() -> list[str]:
    """The table's lines: medians of runs that take turns, so that what slows one slows all."""
    found = list(cases())
    prefix = prefix_of("arm", "eye-2", "")
    bare: list[float] = []
    taken: list[list[float]] = [[] for _ in found]
    for _ in range(ROUNDS):
        bare.append(measure_us(lambda party: hashlib.sha256(prefix + b"user:acme:user-1").digest()))
        for times, (_, experiment, policy) in zip(taken, found, strict=True):
            times.append(
                measure_us(lambda party, e=experiment, p=policy: assign(e, party, p))  # type: ignore[misc]
            )
    lines = [
        "| what | µs, median | SHA-256s |",
        "|---|---|---|",
        f"| one SHA-256 of the same length | {median(bare):.2f} | 1.0 |",
    ]
    for times, (name, _, _) in zip(taken, found, strict=True):
        ratio = median(a / b for a, b in zip(times, bare, strict=True))
        lines.append(f"| {name} | {median(times):.2f} | {ratio:.1f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path)
    output: Path | None = parser.parse_args().output
    table = "\n".join(measure()) + "\n"
    print(table)
    if output is not None:
        output.write_text(table)


if __name__ == "__main__":
    main()
