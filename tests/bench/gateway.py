"""`/v1/tryon` beside a bare two-hop Ray Serve echo: same run, same bodies, same HAProxy.

gateway: no-op expert, caller's mask, imaging passed through; target p50 <= 1.3 x the echo's.
full: no-op expert, caller's mask, all imaging; target p50 <= echo + 1.5 x the codec floor (both
inputs decoded and the answer encoded once, on one core, timed in the same run).
"""

import argparse
import datetime as dt
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import httpx2
import numpy as np
from ray import serve as rayserve
from rich.console import Console
from starlette.requests import Request
from starlette.responses import Response

from serve.imaging.decode import decode_image
from serve.imaging.encode import encode_image
from serve.imaging.limits import ImageLimits
from serve.local import LocalCluster, LocalOptions
from serve.settings import free_port

CONNECTIONS = (1, 8, 32)
BODY_BYTES = {"110 KB": 110_000, "5 MB": 5_000_000}
FAMILY = Path(__file__).parent / "family.yaml"
LOAD = Path(__file__).parent / "load.py"
err = Console(stderr=True)


class EchoExpert:
    """The second hop: gives the bytes back."""

    async def echo(self, body: bytes) -> bytes:
        return body


class EchoIngress:
    """The first hop: reads the body, passes it on, answers with what comes back."""

    def __init__(self, expert: rayserve.handle.DeploymentHandle):
        self._expert = expert

    async def __call__(self, request: Request) -> Response:
        body = await request.body()
        # The faster transport for each size, as a careful author would choose.
        expert = self._expert.options(_by_reference=len(body) > 1_500_000)
        return Response(await expert.echo.remote(body), media_type="image/jpeg")


@dataclass(frozen=True)
class Bodies:
    """One size: the pictures and the multipart body that carries them."""

    person: bytes
    product: bytes
    mask: bytes


@dataclass(frozen=True)
class Row:
    """One cell of the table."""

    body: str
    mode: str
    connections: int
    p50_ms: float
    p99_ms: float
    per_s: float
    target_ms: float | None


def photograph(num_bytes: int, seed: int) -> tuple[bytes, int, int]:
    """A JPEG of about num_bytes with the statistics of a photo: smooth shapes, edges, grain."""
    rng = np.random.default_rng(seed)
    data, width_px = b"", int((num_bytes / 0.32) ** 0.5)
    for _ in range(6):
        height_px = width_px * 4 // 3
        coarse = rng.integers(0, 255, (12, 9, 3)).astype(np.uint8)
        smooth = cv2.resize(coarse, (width_px, height_px), interpolation=cv2.INTER_CUBIC)
        grain = rng.normal(0, 6, (height_px, width_px, 1))
        pixels = np.clip(smooth + grain, 0, 255).astype(np.uint8)
        data = encode_image(pixels, None, format="jpeg", quality=90)
        if abs(len(data) / num_bytes - 1) < 0.05:
            break
        width_px = int(width_px * (num_bytes / len(data)) ** 0.5)
    return data, width_px, width_px * 4 // 3


def make_bodies(num_bytes: int) -> Bodies:
    person, width_px, height_px = photograph(num_bytes * 9 // 10, seed=1)
    product, _, _ = photograph(num_bytes // 10, seed=2)
    mask = np.zeros((height_px, width_px), np.uint8)
    mask[height_px // 3 : height_px * 2 // 3, width_px // 3 : width_px * 2 // 3] = 255
    _, encoded = cv2.imencode(".png", mask, [cv2.IMWRITE_PNG_BILEVEL, 1])
    return Bodies(person, product, encoded.tobytes())


KEPT_HEADERS = ("content-type", "authorization")


def write_request(url: str, key: str, path: str, bodies: Bodies, version: str, file: Path) -> None:
    """The whole HTTP request as bytes, the same multipart body for echo and try-on."""
    request = httpx2.Request(
        "POST",
        url + path,
        data={"expert": "top", "version": version},
        files={"person": bodies.person, "product": bodies.product, "mask": bodies.mask},
        headers={"Authorization": f"Bearer {key}"},
    )
    body = request.read()
    head = [f"POST {path} HTTP/1.1", *(f"{k}: {v}" for k, v in request.headers.items())]
    file.write_bytes("\r\n".join(head).encode() + b"\r\n\r\n" + body)


def time_ms(function: Callable[[], object]) -> float:
    """Median of five calls."""
    samples = []
    for _ in range(5):
        started_s = time.perf_counter()
        function()
        samples.append((time.perf_counter() - started_s) * 1e3)
    return sorted(samples)[2]


def codec_floor_ms(bodies: Bodies) -> float:
    """Decoding both inputs and encoding the answer once, on one core."""
    cv2.setNumThreads(1)
    limits = ImageLimits()
    person = decode_image(bodies.person, limits)
    decode_ms = time_ms(lambda: decode_image(bodies.person, limits))
    decode_ms += time_ms(lambda: decode_image(bodies.product, limits))
    return decode_ms + time_ms(lambda: encode_image(person.pixels, None, format="jpeg"))


def run_load(port: int, request: Path, connections: int, seconds: float) -> dict[str, float]:
    command = [
        *(sys.executable, str(LOAD), "--port", str(port), "--request", str(request)),
        *("--connections", str(connections), "--seconds", str(seconds)),
    ]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(answer.stdout)
    if result["failures"]:
        err.print(f"  failures: {result['failures']}")
    return result


def stages(url: str, request: Path, path: str) -> str:
    """The `Server-Timing` of one warm request."""
    head, _, body = request.read_bytes().partition(b"\r\n\r\n")
    lines = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    kept = {name: value for name, value in lines.items() if name in KEPT_HEADERS}
    answers = [httpx2.post(url + path, content=body, headers=kept, timeout=60) for _ in range(5)]
    return answers[-1].headers.get("server-timing", "")


def bench_size(
    url: str, key: str, port: int, label: str, seconds: float, folder: Path
) -> tuple[list[Row], list[str]]:
    bodies = make_bodies(BODY_BYTES[label])
    floor_ms = codec_floor_ms(bodies)
    notes = [f"{label}: codec floor {floor_ms:.1f} ms"]
    modes = {
        "echo": ("/echo", "passthrough"),
        "gateway": ("/v1/tryon", "passthrough"),
        "full": ("/v1/tryon", "noop"),
    }
    rows = []
    for mode, (path, version) in modes.items():
        write_request(url, key, path, bodies, version, folder / mode)
        if mode != "echo":
            notes.append(f"{label} {mode}: {stages(url, folder / mode, path)}")
    for connections in CONNECTIONS:
        echo_ms = 0.0
        for mode in modes:
            run_load(port, folder / mode, connections, min(1.0, seconds))
            result = run_load(port, folder / mode, connections, seconds)
            p50_ms = result["p50_ms"]
            echo_ms = p50_ms if mode == "echo" else echo_ms
            cores = os.cpu_count() or 1
            waiting = max(1.0, connections / cores)  # a closed loop queues for the cores
            targets = {"gateway": 1.3 * echo_ms, "full": echo_ms + 1.5 * floor_ms * waiting}
            target_ms = targets.get(mode)
            rows.append(
                Row(label, mode, connections, p50_ms, result["p99_ms"], result["per_s"], target_ms)
            )
            err.print(f"  {rows[-1]}")
    return rows, notes


def table(rows: list[Row], notes: list[str]) -> str:
    lines = [
        "| body | mode | connections | p50 ms | p99 ms | requests/s | target p50 ms | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        target = "" if row.target_ms is None else f"{row.target_ms:.1f}"
        verdict = (
            "" if row.target_ms is None else "met" if row.p50_ms <= row.target_ms else "missed"
        )
        lines.append(
            f"| {row.body} | {row.mode} | {row.connections} | {row.p50_ms:.1f} "
            f"| {row.p99_ms:.1f} | {row.per_s:.1f} | {target} | {verdict} |"
        )
    facts = f"{os.cpu_count()} cores, {dt.date.today().isoformat()}"
    return "\n".join([f"Measured on {facts}.", "", *lines, "", *(f"- {note}" for note in notes)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    port = free_port()
    data = tempfile.TemporaryDirectory(prefix="sm4ll-bench-", ignore_cleanup_errors=True)
    cluster = LocalCluster(LocalOptions(family=FAMILY, port=port, data_dir=Path(data.name)))
    rows: list[Row] = []
    notes: list[str] = []
    try:
        cluster.start(lambda deployments: None, threading.Event())
        options = {"max_ongoing_requests": 256, "ray_actor_options": {"num_cpus": 0.1}}
        expert = rayserve.deployment(EchoExpert, **options).bind()
        ingress = rayserve.deployment(EchoIngress, **options).bind(expert)
        rayserve.run(ingress, name="echo", route_prefix="/echo")
        with tempfile.TemporaryDirectory() as folder:
            for label in BODY_BYTES:
                err.print(f"{label} ...")
                new_rows, new_notes = bench_size(
                    cluster.url,
                    cluster.api_key or "",
                    port,
                    label,
                    arguments.seconds,
                    Path(folder),
                )
                rows += new_rows
                notes += new_notes
    finally:
        cluster.stop()
        data.cleanup()
    report = table(rows, notes)
    print(report)
    if arguments.output is not None:
        arguments.output.write_text(report + "\n")


if __name__ == "__main__":
    main()
