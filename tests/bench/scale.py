"""More routers, more experts: throughput, memory of each replica, and how long the family starts.

routers: 1, 2 and 4 of them before two no-op experts that take no time, imaging passed through: what
a router costs is processor time, so the curve ends where this machine's cores do.
experts: 1 to 8 no-op experts that take 0.1 s asleep, as a device would: the curve is straight where
the queue keeps every one of them at work.
start: the family of configs/ (seven `warp` experts) until all are ready; cold with no byte code and
with its files dropped from the page cache, as far as the kernel does that for who asks; then again.
"""

import argparse
import contextlib
import datetime as dt
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import psutil
from rich.console import Console

from serve.settings import CONFIGS_DIR
from tests.bench.gateway_bodies import make_bodies, write_request
from tests.bench.gateway_cells import run_load
from tests.bench.gateway_servers import (
    Running,
    end_on_sigterm,
    open_tenant,
    started_family,
    title_of,
)
from tests.bench.scale_picture import Curve, draw_scale

BODY_BYTES = 110_000
PASS_S = 0.1
ROUTERS, EXPERTS = (1, 2, 4), (1, 2, 4, 8)
ROUTER_CONNECTIONS, CONNECTIONS_PER_EXPERT = 16, 4
START_TARGET_S = 20.0
EXPERT = """
expert: top
name: busy
title: Takes its time, and changes nothing
status: benchmark
licence: {{name: none, commercial_use: true}}
backend: {{kind: noop, seconds: {seconds}}}
imaging: passthrough
"""
FAMILY = """
experts:
  - version: top@busy
    autoscaling: {{min_replicas: {experts}, max_replicas: {experts}}}
    max_ongoing_requests: {ongoing}
segmenter:
  autoscaling: {{min_replicas: 0}}
router:
  autoscaling: {{min_replicas: {routers}, max_replicas: {routers}}}
  max_in_flight_per_version: {in_flight}
"""
REPLICA = "ServeReplica:sm4ll:"
err = Console(stderr=True)


@dataclass(frozen=True)
class Memory:
    """Of one kind of process; the proportional share counts what is shared once over all."""

    title: str
    count: int
    resident_mib: float
    proportional_mib: float
    """Means over the processes."""


@dataclass(frozen=True)
class Point:
    """One size of one deployment."""

    replicas: int
    per_s: float
    p50_ms: float
    ideal_per_s: float | None
    memory: Sequence[Memory]


@dataclass(frozen=True)
class Start:
    """From the command to the last replica that is ready."""

    name: str
    seconds: float
    memory: Sequence[Memory]


def measure_memory(running: Running) -> list[Memory]:
    found: dict[str, list[tuple[float, float]]] = {}
    for process in running.processes():
        with contextlib.suppress(psutil.Error):
            full = process.memory_full_info()
            title = title_of(process).removeprefix(REPLICA)
            found.setdefault(title, []).append((full.rss / 2**20, full.pss / 2**20))
    return [
        Memory(title, len(each), mean(one[0] for one in each), mean(one[1] for one in each))
        for title, each in sorted(found.items(), key=lambda item: -sum(one[1] for one in item[1]))
    ]


def measure_point(routers: int, experts: int, seconds: float, pass_s: float) -> Point:
    """One cluster of that size, under load."""
    with tempfile.TemporaryDirectory(prefix="sm4ll-scale-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        family = write_family(folder, routers, experts, pass_s)
        with started_family(family, folder) as running:
            file = folder / "request"
            headers = open_tenant(running, folder)
            write_request(file, "/v1/tryon", make_bodies(BODY_BYTES), {"expert": "top"}, headers)
            connections = CONNECTIONS_PER_EXPERT * experts if pass_s else ROUTER_CONNECTIONS
            run_load(running.port, file, connections, min(2.0, seconds))
            answers = run_load(running.port, file, connections, seconds)
            memory = measure_memory(running)
    return Point(
        replicas=experts if pass_s else routers,
        per_s=answers.per_s,
        p50_ms=answers.p50_ms,
        ideal_per_s=experts / pass_s if pass_s else None,
        memory=memory,
    )


def write_family(folder: Path, routers: int, experts: int, pass_s: float) -> Path:
    (folder / "experts").mkdir()
    (folder / "experts/top.busy.yaml").write_text(EXPERT.format(seconds=pass_s))
    ongoing = 2 if pass_s else 256
    in_flight = 2 * experts if pass_s else 256
    family = folder / "family.yaml"
    family.write_text(
        FAMILY.format(experts=experts, ongoing=ongoing, routers=routers, in_flight=in_flight)
    )
    return family


def measure_starts() -> list[Start]:
    starts = []
    with tempfile.TemporaryDirectory(prefix="sm4ll-scale-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        env = {"PYTHONPYCACHEPREFIX": str(folder / "bytecode")}
        err.print("  files out of the page cache ...")
        drop_files(
            Path(sys.prefix), CONFIGS_DIR.parent / "serve", CONFIGS_DIR.parent / "deployments"
        )
        for start in ("cold", "warm"):
            starts.append(measure_start(start, folder, env))
            err.print(f"  {start}: {starts[-1].seconds:.1f} s")
    return starts


def measure_start(name: str, folder: Path, env: Mapping[str, str]) -> Start:
    started_s = time.perf_counter()
    with started_family(CONFIGS_DIR / "family.yaml", folder, env) as running:
        return Start(name, time.perf_counter() - started_s, measure_memory(running))


def drop_files(*folders: Path) -> None:
    """Have what lies there read from the disk again; pages that somebody has mapped stay."""
    for folder in folders:
        for path in _files(folder):
            with contextlib.suppress(OSError):
                file = os.open(path, os.O_RDONLY)
                try:
                    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
                finally:
                    os.close(file)


def _files(folder: Path) -> Iterator[str]:
    for root, _, names in os.walk(folder):
        yield from (os.path.join(root, name) for name in names)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join(['---'] * len(head))}|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def curve(points: Sequence[Point], name: str) -> str:
    head = [name, "requests/s", "of one", "of the ideal", "p50 ms", "MiB each (PSS)", "MiB (RSS)"]
    rows = []
    for point in points:
        ideal = "" if point.ideal_per_s is None else f"{point.per_s / point.ideal_per_s:.0%}"
        own = [one for one in point.memory if one.title.startswith(name)]
        rows.append(
            [
                str(point.replicas),
                f"{point.per_s:.0f}",
                f"{point.per_s / points[0].per_s:.2f}x",
                ideal,
                f"{point.p50_ms:.1f}",
                f"{own[0].proportional_mib:.0f}" if own else "",
                f"{own[0].resident_mib:.0f}" if own else "",
            ]
        )
    return table(head, rows)


def write_report(
    routers: Sequence[Point], experts: Sequence[Point], starts: Sequence[Start]
) -> str:
    load = os.getloadavg()[0]
    head = f"{os.cpu_count()} cores, load {load:.1f} at the end, {dt.date.today().isoformat()}."
    parts = [head]
    if routers:
        kilobytes = BODY_BYTES // 1000
        said = f"{ROUTER_CONNECTIONS} connections of {kilobytes} KB, experts that take no time:"
        parts += [said, curve(routers, "Router")]
    if experts:
        parts += [f"Experts that take {PASS_S:g} s asleep, one router:", curve(experts, "Expert")]
    if starts:
        rows = [
            [
                *(one.name, f"{one.seconds:.1f}", f"{START_TARGET_S:g}"),
                "met" if one.seconds < START_TARGET_S else "**missed**",
                f"{sum(each.count * each.proportional_mib for each in one.memory):.0f}",
            ]
            for one in starts
        ]
        head = ["start of the family", "seconds", "target", "", "MiB of all (PSS)"]
        parts += [table(head, rows)]
        memory = [
            [one.title, str(one.count), f"{one.proportional_mib:.0f}", f"{one.resident_mib:.0f}"]
            for one in starts[-1].memory
        ]
        parts += ["Its processes:", table(["process", "count", "MiB (PSS)", "MiB (RSS)"], memory)]
    return "\n\n".join(parts) + "\n"


def curves_of(routers: Sequence[Point], experts: Sequence[Point]) -> list[Curve]:
    ideal = {each.replicas: each.ideal_per_s for each in experts if each.ideal_per_s is not None}
    cores = os.cpu_count()
    return [
        Curve(
            "Routers",
            f"requests a second; the expert takes no time; {cores} cores for all",
            {each.replicas: each.per_s for each in routers},
            {},
            "a",
        ),
        Curve(
            "Experts",
            f"requests a second; each takes {PASS_S:g} s asleep; dashed: no waiting",
            {each.replicas: each.per_s for each in experts},
            ideal,
            "b",
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--routers", type=int, nargs="*", default=list(ROUTERS))
    parser.add_argument("--experts", type=int, nargs="*", default=list(EXPERTS))
    parser.add_argument("--no-start", action="store_true", help="leave the family's start out")
    parser.add_argument("--svg", type=Path)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    end_on_sigterm()
    starts = [] if arguments.no_start else measure_starts()
    routers, experts = [], []
    for number in arguments.routers:
        routers.append(measure_point(number, 2, arguments.seconds, 0.0))
        err.print(f"  {number} routers: {routers[-1].per_s:.0f}/s")
    for number in arguments.experts:
        experts.append(measure_point(1, number, arguments.seconds, PASS_S))
        err.print(f"  {number} experts: {experts[-1].per_s:.0f}/s")
    report = write_report(routers, experts, starts)
    print(report)
    if arguments.output is not None:
        arguments.output.write_text(report)
    if arguments.svg is not None:
        arguments.svg.write_text(draw_scale(curves_of(routers, experts)))


if __name__ == "__main__":
    main()
