"""`/v1/tryon` beside echoes of other servers: same run, same machine, same bodies, one at a time.

gateway: a no-op expert, imaging passed through; key, quota, experiment and ledger on.
full: a no-op expert, the caller's mask, all imaging.
Peers: bare two-hop Ray Serve with default flags and with both, LitServe, BentoML, and one uvicorn
process as the floor; those that are no part of this product are installed apart.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from subprocess import CalledProcessError

from rich.console import Console

from serve.client import ApiError, ApiUnreachable
from tests.bench.gateway_bodies import BODY_BYTES, codec_floor_ms, make_bodies
from tests.bench.gateway_cells import Cell, Load, measure_server
from tests.bench.gateway_picture import draw_gateway
from tests.bench.gateway_profile import profile_router
from tests.bench.gateway_servers import OURS, STARTS, DidNotStart, end_on_sigterm, start_server
from tests.bench.gateway_table import Findings, write_report
from tests.bench.peers.environment import CannotInstall

CONNECTIONS = (1, 8, 32)
MAX_BYTES_IN_FLIGHT = 170_000_000
"""Of bodies: 32 of 20 MB are no upload traffic but a test of the machine's memory."""
CACHE = Path.home() / ".cache/sm4ll-bench"
QUICK = {"seconds": 1.5, "bodies": ["110 KB", "5 MB"], "connections": [1, 8]}
err = Console(stderr=True)


def measure(arguments: argparse.Namespace) -> Findings:
    err.print("pictures ...")
    bodies = {label: make_bodies(BODY_BYTES[label]) for label in arguments.bodies}
    floors_ms = {label: codec_floor_ms(each) for label, each in bodies.items()}
    connections = {label: _connections(label, arguments.connections) for label in bodies}
    load = Load(bodies, connections, arguments.seconds)
    cells: list[Cell] = []
    missing: dict[str, str] = {}
    for name in arguments.peers:
        err.print(f"{name} ...")
        try:
            with (
                tempfile.TemporaryDirectory(
                    prefix="sm4ll-bench-", ignore_cleanup_errors=True
                ) as folder,
                start_server(name, Path(folder), arguments.cache) as running,
            ):
                cells += measure_server(name, running, load, Path(folder))
                if name == OURS and arguments.artefacts is not None:
                    body = bodies[arguments.bodies[0]]
                    profile_router(running, body, Path(folder), arguments.artefacts)
        except (CannotInstall, DidNotStart, ApiError, ApiUnreachable, CalledProcessError) as exc:
            missing[name] = " ".join(str(exc).split())[-300:]
            err.print(f"  left out: {missing[name]}")
    return Findings(cells, floors_ms, missing)


def _connections(label: str, wanted: Sequence[int]) -> list[int]:
    return [each for each in wanted if each * BODY_BYTES[label] <= MAX_BYTES_IN_FLIGHT]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--bodies", nargs="+", choices=list(BODY_BYTES), default=list(BODY_BYTES))
    parser.add_argument("--connections", type=int, nargs="+", default=list(CONNECTIONS))
    parser.add_argument("--peers", nargs="+", choices=list(STARTS), default=list(STARTS))
    parser.add_argument("--quick", action="store_true", help="about three minutes")
    parser.add_argument("--cache", type=Path, default=CACHE, help="environments of the peers")
    parser.add_argument("--artefacts", type=Path, help="plot, flame graph and numbers go here")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.quick:
        vars(arguments).update(QUICK)
    if arguments.artefacts is not None:
        arguments.artefacts.mkdir(parents=True, exist_ok=True)
    end_on_sigterm()
    findings = measure(arguments)
    report = write_report(findings, arguments.seconds)
    print(report)
    if arguments.output is not None:
        arguments.output.write_text(report)
    if arguments.artefacts is not None:
        numbers = {**asdict(findings), "cells": [asdict(cell) for cell in findings.cells]}
        (arguments.artefacts / "gateway.json").write_text(json.dumps(numbers, indent=1))
        (arguments.artefacts / "gateway.svg").write_text(draw_gateway(findings))


if __name__ == "__main__":
    main()
