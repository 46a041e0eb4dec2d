"""The gateway's measurements as Markdown: numbers, targets, and what is left."""

import datetime as dt
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import psutil

from tests.bench.gateway_cells import Cell

NAMES: Mapping[tuple[str, str], str] = {
    ("uvicorn", "echo"): "uvicorn + Starlette",
    ("litserve", "echo"): "LitServe 0.2.19",
    ("bentoml", "echo"): "BentoML 1.4.40",
    ("ray-default", "echo"): "Ray Serve, defaults",
    ("ray-flagged", "echo"): "Ray Serve, both flags",
    ("sm4ll", "gateway"): "sm4ll gateway",
    ("sm4ll", "full"): "sm4ll full",
}
"""Echoes; `gateway` and `full` are `/v1/tryon`."""
ECHO_RATIO, DEFAULTS_RATIO, CODEC_RATIO = 1.3, 4.0, 1.25
BUSY_CONNECTIONS = 8
"""From so many on, throughput is compared with servers of one hop."""
NUM_PROCESSES = 4


@dataclass(frozen=True)
class Findings:
    """Everything one run found."""

    cells: Sequence[Cell]
    floors_ms: Mapping[str, float]
    """Codec floor by body."""
    missing: Mapping[str, str]
    """Servers that were not measured, and why."""

    def find(self, server: str, mode: str, key: tuple[str, int]) -> Cell | None:
        for cell in self.cells:
            if (cell.server, cell.mode, cell.key) == (server, mode, key):
                return cell
        return None

    def keys(self) -> list[tuple[str, int]]:
        return list(dict.fromkeys(cell.key for cell in self.cells))

    def columns(self) -> list[tuple[str, str]]:
        there = {(cell.server, cell.mode) for cell in self.cells}
        return [column for column in NAMES if column in there]


@dataclass(frozen=True)
class Verdict:
    """One target in one cell."""

    target: str
    key: tuple[str, int]
    measured: str
    wanted: str
    is_met: bool


def judge(findings: Findings) -> list[Verdict]:
    """Every target in every cell that has what it compares."""
    verdicts: list[Verdict] = []
    cores = os.cpu_count() or 1
    for key in findings.keys():
        gateway, full = (findings.find("sm4ll", mode, key) for mode in ("gateway", "full"))
        flagged = findings.find("ray-flagged", "echo", key)
        defaults = findings.find("ray-default", "echo", key)
        if gateway and flagged:
            verdicts.append(_at_most("gateway p50, of flagged Ray's", key, gateway, flagged))
        if gateway and defaults:
            ratio = defaults.p50_ms / gateway.p50_ms
            verdicts.append(
                Verdict(
                    "faster than Ray's defaults",
                    key,
                    f"{ratio:.1f}x",
                    f">= {DEFAULTS_RATIO:.0f}x",
                    ratio >= DEFAULTS_RATIO,
                )
            )
        for peer in ("litserve", "bentoml"):
            cell = findings.find(peer, "echo", key)
            if gateway and cell and key[1] >= BUSY_CONNECTIONS:
                share = gateway.per_s / cell.per_s
                name = f"req/s, of {NAMES[peer, 'echo'].split()[0]}'s"
                verdicts.append(Verdict(name, key, f"{share:.2f}x", ">= 1x", share >= 1))
        if full and flagged and key[0] in findings.floors_ms:
            waiting = max(1.0, key[1] / cores)  # a closed loop queues for the cores
            target_ms = flagged.p50_ms + CODEC_RATIO * findings.floors_ms[key[0]] * waiting
            verdicts.append(
                Verdict(
                    "full p50",
                    key,
                    f"{full.p50_ms:.1f} ms",
                    f"<= {target_ms:.1f} ms",
                    full.p50_ms <= target_ms,
                )
            )
    return verdicts


def _at_most(target: str, key: tuple[str, int], ours: Cell, theirs: Cell) -> Verdict:
    ratio = ours.p50_ms / theirs.p50_ms
    return Verdict(target, key, f"{ratio:.2f}x", f"<= {ECHO_RATIO}x", ratio <= ECHO_RATIO)


def write_report(findings: Findings, seconds: float) -> str:
    load = os.getloadavg()[0]
    memory_gib = psutil.virtual_memory().total / 2**30
    head = (
        f"{os.cpu_count()} cores, {memory_gib:.0f} GiB, {seconds:g} s a cell, load {load:.1f} at"
        f" the end, {dt.date.today().isoformat()}. Echoes give a picture back; gateway and full are"
        " `/v1/tryon` with key, quota, experiment and ledger on, imaging passed through or all of"
        " it. One server at a time, the same multipart bodies, closed loop."
    )
    sections = {
        "p50, ms:": _grid(findings, lambda cell: _number(cell.p50_ms)),
        "p99, ms:": _grid(findings, lambda cell: _number(cell.p99_ms)),
        "Requests a second:": _grid(findings, lambda cell: _number(cell.per_s)),
        "Targets:": _targets(judge(findings), findings),
        "What is left, stage by stage (`Server-Timing`, median ms):": _stages(findings),
        "CPU time of one request, ms, by process:": _processors(findings),
        "The router's event loop, late by more than 5 ms:": _lags(findings),
    }
    parts = [head, *_missing(findings)]
    for title, section in sections.items():
        parts += [title, *section] if section else []
    return "\n\n".join(parts) + "\n"


def _missing(findings: Findings) -> list[str]:
    return [f"Not measured: {name} ({why})." for name, why in findings.missing.items()]


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join(['---'] * len(head))}|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _grid(findings: Findings, say: Callable[[Cell], str]) -> list[str]:
    columns = findings.columns()
    rows = []
    for body, connections in findings.keys():
        cells = (findings.find(*column, (body, connections)) for column in columns)
        said = ["" if cell is None else say(cell) for cell in cells]
        rows.append([body, str(connections), *said])
    return [_table(["body", "connections", *(NAMES[column] for column in columns)], rows)]


def _targets(verdicts: Sequence[Verdict], findings: Findings) -> list[str]:
    rows = [
        [one.target, one.key[0], str(one.key[1]), one.measured, one.wanted, _met(one.is_met)]
        for one in verdicts
    ]
    floors = ", ".join(f"{body} {ms:.1f} ms" for body, ms in findings.floors_ms.items())
    num_met = sum(one.is_met for one in verdicts)
    said = (
        f"{num_met} of {len(verdicts)} met. full's target is the flagged echo and {CODEC_RATIO} x"
        f" the codec floor ({floors}: both inputs decoded, the answer encoded, on one core), times"
        " the connections that share a core."
    )
    head = ["target", "body", "connections", "measured", "wanted", ""]
    return [_table(head, rows), said] if rows else []


def _met(is_met: bool) -> str:
    return "met" if is_met else "**missed**"


def _stages(findings: Findings) -> list[str]:
    cells = [cell for cell in findings.cells if cell.stages_ms]
    names = list(dict.fromkeys(name for cell in cells for name in cell.stages_ms))
    names.sort(key=lambda name: name == "total")
    rows = [
        [
            *(cell.body, str(cell.connections), cell.mode),
            *(_number(cell.stages_ms[name]) if name in cell.stages_ms else "" for name in names),
            _number(cell.p50_ms),
        ]
        for cell in cells
    ]
    return [_table(["body", "connections", "mode", *names, "caller's p50"], rows)] if rows else []


def _processors(findings: Findings) -> list[str]:
    rows = []
    for cell in findings.cells:
        used = sorted(cell.cpu_ms.items(), key=lambda item: -item[1])
        said = ", ".join(f"{title} {ms:.2f}" for title, ms in used[:NUM_PROCESSES])
        total = f"{sum(cell.cpu_ms.values()):.2f}"
        name = NAMES.get((cell.server, cell.mode), cell.server)
        rows.append([cell.body, str(cell.connections), name, total, said])
    return [_table(["body", "connections", "server", "all", "most of it"], rows)] if rows else []


def _lags(findings: Findings) -> list[str]:
    rows = []
    for cell in findings.cells:
        if cell.lag is None:
            continue
        worst = "over 60 s" if math.isinf(cell.lag.worst_s) else f"{cell.lag.worst_s * 1e3:g} ms"
        late = f"{cell.lag.num_late} of {cell.lag.num_samples}"
        verdict = "" if cell.lag.num_late == 0 else "**late**"
        rows.append([cell.body, str(cell.connections), cell.mode, late, f"<= {worst}", verdict])
    return (
        [_table(["body", "connections", "mode", "late timers", "worst", ""], rows)] if rows else []
    )
