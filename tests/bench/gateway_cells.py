"""One cell of the gateway's table: a server under one load, and what it took meanwhile."""

import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
from rich.console import Console

from tests.bench.gateway_bodies import Bodies, write_request
from tests.bench.gateway_servers import Mode, Running

LOAD = Path(__file__).parent / "load.py"
LAG = "ray_sm4ll_event_loop_lag_seconds_bucket"
LAG_LIMIT_S = 0.005
EXPORT_S = 3.5
"""What is recorded is on the metrics page after so long: told each second, reported every two."""
WARM_S = 1.0
SAMPLE = re.compile(r"(?P<name>\w+)\{(?P<labels>[^}]*)\} (?P<value>\S+)")
err = Console(stderr=True)


@dataclass(frozen=True)
class Lag:
    """How late the router's event loop came to its timers while one cell ran."""

    num_samples: int
    num_late: int
    """Of more than 5 ms."""
    worst_s: float
    """The upper bound of the highest bucket that has one; infinite beyond the last."""


@dataclass(frozen=True)
class Cell:
    """What one load found."""

    server: str
    mode: str
    body: str
    connections: int
    p50_ms: float
    p99_ms: float
    per_s: float
    cpu_ms: Mapping[str, float]
    """CPU time of one request, by process."""
    stages_ms: Mapping[str, float] = field(default_factory=dict)
    lag: Lag | None = None
    failures: Sequence[str] = ()

    @property
    def key(self) -> tuple[str, int]:
        return self.body, self.connections


@dataclass(frozen=True)
class Answers:
    """What `load.py` saw."""

    num_requests: int
    per_s: float
    p50_ms: float
    p99_ms: float
    stages_ms: Mapping[str, float]
    """Medians of `Server-Timing`."""
    failures: Sequence[str]


def run_load(port: int, request: Path, connections: int, seconds: float) -> Answers:
    command = [
        *(sys.executable, str(LOAD), "--port", str(port), "--request", str(request)),
        *("--connections", str(connections), "--seconds", str(seconds)),
    ]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    answers = Answers(**json.loads(answer.stdout))
    if answers.failures:
        err.print(f"  failures: {answers.failures}")
    return answers


@dataclass(frozen=True)
class Load:
    """What every server is asked."""

    bodies: Mapping[str, Bodies]
    connections: Mapping[str, Sequence[int]]
    """By body."""
    seconds: float


def measure_server(name: str, running: Running, load: Load, folder: Path) -> list[Cell]:
    """Every cell of one server."""
    cells = []
    for label, bodies in load.bodies.items():
        files = [(mode, folder / mode.name) for mode in running.modes]
        for mode, file in files:
            write_request(file, mode.path, bodies, mode.fields, mode.headers)
        for connections in load.connections[label]:
            for mode, file in files:
                run_load(running.port, file, connections, min(WARM_S, load.seconds / 2))
                cell = _measure(name, running, mode, file, label, connections, load.seconds)
                err.print(
                    f"  {label:>6} x {connections:<2} {mode.name:<7} p50 {cell.p50_ms:7.1f} ms"
                    f"  p99 {cell.p99_ms:7.1f} ms  {cell.per_s:7.1f}/s"
                )
                cells.append(cell)
        for _, file in files:
            file.unlink()
    return cells


def _measure(
    name: str,
    running: Running,
    mode: Mode,
    file: Path,
    label: str,
    connections: int,
    seconds: float,
) -> Cell:
    before, lag_before = running.cpu_s(), read_lag(running)
    answers = run_load(running.port, file, connections, seconds)
    after = running.cpu_s()
    num = max(1, answers.num_requests)
    used = {title: (cpu_s - before.get(title, 0.0)) / num * 1e3 for title, cpu_s in after.items()}
    lag = None
    if lag_before is not None:
        time.sleep(EXPORT_S)
        lag = compare_lag(lag_before, read_lag(running) or {})
    return Cell(
        server=name,
        mode=mode.name,
        body=label,
        connections=connections,
        p50_ms=answers.p50_ms,
        p99_ms=answers.p99_ms,
        per_s=answers.per_s,
        cpu_ms={title: ms for title, ms in used.items() if ms > 0.005},
        stages_ms=answers.stages_ms,
        lag=lag,
        failures=answers.failures,
    )


def read_lag(running: Running) -> dict[float, float] | None:
    """Samples of the router's loop so far, at most so late; None where nobody says."""
    if running.metrics_url is None:
        return None
    with contextlib.suppress(httpx2.HTTPError):
        return parse_lag(httpx2.get(running.metrics_url, timeout=10.0).text)
    return None


def parse_lag(page: str) -> dict[float, float]:
    """Cumulative counts by upper bound in seconds."""
    found: dict[float, float] = {}
    for line in page.splitlines():
        match = SAMPLE.match(line)
        if match is None or match["name"] != LAG or 'deployment="Router"' not in match["labels"]:
            continue
        bound = re.search(r'le="([^"]+)"', match["labels"])
        assert bound is not None
        upper_s = float(bound[1].replace("+Inf", "inf"))
        found[upper_s] = found.get(upper_s, 0.0) + float(match["value"])
    return found


def compare_lag(before: Mapping[float, float], after: Mapping[float, float]) -> Lag | None:
    new = {upper_s: after[upper_s] - before.get(upper_s, 0.0) for upper_s in sorted(after)}
    if not new or not max(new.values()):
        return None
    total = max(new.values())
    worst_s = next(upper_s for upper_s, count in new.items() if count >= total)
    in_time = new.get(LAG_LIMIT_S, 0.0)
    return Lag(int(total), int(total - in_time), worst_s)
