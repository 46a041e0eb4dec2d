"""How much memory a router takes for twenty uploads of 20 MB at once, and how long its loop stops.

The one-process API under uvicorn in a process of its own: `python -m tests.bench.uploads`; with
`--cluster` a router behind HAProxy, Serve's own queue of the body included.
"""

import argparse
import asyncio
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import httpx2
import numpy as np
import psutil
import uvicorn
from fastapi import FastAPI

from serve.imaging.headers import read_header
from serve.imaging.room import return_large_arrays
from serve.observing.meter import MemoryMeter
from serve.settings import free_port
from tests.allocations import read_memory_bytes
from tests.fakes import build_local_api
from tests.tenants import LOCAL_TOKEN, bearer

FAMILY = Path(__file__).parent / "family.yaml"
START_TIMEOUT_S = 60.0
PASSED, FULL = "passthrough", "noop"
"""Versions of `top`: bytes through a no-op expert, and decoded, pasted, encoded, proven."""


@dataclass(frozen=True)
class Answers:
    """What came of all uploads, and what they took."""

    statuses: Counter[int]
    base_bytes: int
    """Resident before any."""
    peak_bytes: int
    took_s: float
    lags_ms: list[float] = field(repr=False)
    """Of the event loop, sampled every millisecond or so."""


def make_upload(num_bytes: int, megapixels: float) -> bytes:
    """A JPEG of about that many bytes: noise over a smooth picture, as a large sensor gives."""
    width, height = round((megapixels * 1e6 * 1.5) ** 0.5), round((megapixels * 1e6 / 1.5) ** 0.5)
    rng = np.random.default_rng(3)
    smooth = cv2.resize(rng.integers(40, 210, (6, 9, 3), np.uint8), (width, height))
    noise = rng.integers(-24, 25, (1024, 1024, 3), np.int8)
    tiles = (-(-height // 1024), -(-width // 1024), 1)
    noisy = cv2.add(smooth, np.tile(noise, tiles)[:height, :width], dtype=cv2.CV_8U)
    data = b""
    for quality in (98, 95, 92, 88, 80, 70):
        options = [cv2.IMWRITE_JPEG_QUALITY, quality]
        data = cv2.imencode(".jpg", noisy, options)[1].tobytes()
        if len(data) <= num_bytes:
            break
    # Cameras append previews as well; a file of the wanted size whatever the sensor.
    return data + bytes(max(0, num_bytes - len(data)))


def make_mask(picture: bytes) -> bytes:
    """Of the picture's size; a tenth of it may change."""
    header = read_header(picture)
    mask = np.zeros((header.height_px, header.width_px), np.uint8)
    mask[header.height_px // 3 : header.height_px // 2, : header.width_px // 2] = 255
    return cv2.imencode(".png", mask)[1].tobytes()


@contextmanager
def running() -> Iterator[tuple[str, int]]:
    """The server's URL and process id."""
    port = free_port()
    command = [sys.executable, "-m", "tests.bench.uploads", "--serve", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(f"{url}/healthz", process)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait(30)


def _wait_for(url: str, process: "subprocess.Popen[bytes]") -> None:
    give_up_s = time.monotonic() + START_TIMEOUT_S
    while not _is_well(url):
        if process.poll() is not None or time.monotonic() > give_up_s:
            raise RuntimeError("the server did not start")
        time.sleep(0.05)


def _is_well(url: str) -> bool:
    try:
        return httpx2.get(url).status_code == 200
    except httpx2.TransportError:
        return False


@contextmanager
def running_cluster() -> Iterator[tuple[str, int, str]]:
    """URL, process id of its one router, and key of `sm4ll up`."""
    # Ray is started, and read, in a process of its own: its flags come before its import.
    with tempfile.TemporaryDirectory(prefix="sm4ll-uploads-") as folder:
        port = free_port()
        command = [
            *(sys.executable, "-m", "serve.cli", "up", "--port", str(port)),
            *("--family", str(FAMILY), "--data", folder),
        ]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        url = f"http://127.0.0.1:{port}"
        try:
            _wait_for(f"{url}/readyz", process)
            (router,) = (
                one.pid
                for one in psutil.Process(process.pid).children(recursive=True)
                if "ServeReplica:sm4ll:Router" in " ".join(one.cmdline())
            )
            yield url, router, (Path(folder) / "local.key").read_text().strip()
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def send_all(
    url: str,
    pid: int,
    picture: bytes,
    version: str,
    num: int,
    token: str = LOCAL_TOKEN,
    **headers: str,
) -> Answers:
    """All at once; the answers are read and thrown away."""
    files = {
        "person": ("a.jpg", picture),
        "product": ("b.jpg", make_upload(20_000, 0.1)),
        "mask": ("c.png", make_mask(picture)),
    }
    data = {"expert": "top", "version": version, "format": "jpeg"}
    base_bytes = read_memory_bytes("VmRSS", pid)
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    httpx2.delete(f"{url}/lags")
    started_s = time.monotonic()

    def send(number: int) -> int:
        own = {name.replace("_", "-"): f"{value}{number}" for name, value in headers.items()}
        answer = httpx2.post(
            f"{url}/v1/tryon",
            data=data,
            files=files,
            headers=bearer(token) | own,
            timeout=120,
        )
        return answer.status_code

    with ThreadPoolExecutor(num) as threads:
        statuses = Counter(threads.map(send, range(num)))
    took_s = time.monotonic() - started_s
    lags = httpx2.get(f"{url}/lags")
    lags_ms: list[float] = lags.json() if lags.status_code == 200 else [float("nan")]
    return Answers(statuses, base_bytes, read_memory_bytes("VmHWM", pid), took_s, lags_ms)


def serve(port: int) -> None:
    """Until it is told to end. Beside the API, `/lags` says how late the loop was."""
    return_large_arrays()  # as a router does
    api = build_local_api(FAMILY, meter=MemoryMeter())
    lags_ms: list[float] = []

    async def watch() -> None:
        while True:
            before_s = time.perf_counter()
            await asyncio.sleep(0.001)
            lags_ms.append((time.perf_counter() - before_s - 0.001) * 1e3)

    outer = FastAPI()
    outer.get("/lags")(lambda: lags_ms)
    outer.delete("/lags")(lags_ms.clear)
    outer.mount("/", api)

    async def run() -> None:
        server = uvicorn.Server(uvicorn.Config(outer, port=port, log_level="warning"))
        watching = asyncio.create_task(watch())
        async with api.router.lifespan_context(api):
            await server.serve()
        watching.cancel()

    asyncio.run(run())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", type=int, metavar="PORT")
    parser.add_argument("--cluster", action="store_true", help="a router of `sm4ll up`")
    parser.add_argument("--num", type=int, default=20)
    parser.add_argument("--megabytes", type=float, default=20)
    parser.add_argument("--megapixels", type=float, default=24)
    options = parser.parse_args()
    if options.serve is not None:
        serve(options.serve)
        return
    picture = make_upload(round(options.megabytes * 1e6), options.megapixels)
    print(f"{options.num} uploads of {len(picture) / 1e6:.1f} MB, {options.megapixels} MP each")
    for version in (PASSED, FULL):
        for headers in ({}, {"Idempotency_Key": "upload-"}):
            if options.cluster:
                with running_cluster() as (url, pid, token):
                    got = send_all(url, pid, picture, version, options.num, token, **headers)
            else:
                with running() as (url, pid):
                    got = send_all(url, pid, picture, version, options.num, **headers)
            late = np.percentile(got.lags_ms, (50, 99, 100)).round(1)
            print(
                f"{version:12} {'with a key' if headers else '':10} {dict(got.statuses)}"
                f" peak {got.peak_bytes / 1e6:.0f} MB (before {got.base_bytes / 1e6:.0f})"
                f" in {got.took_s:.1f} s; loop late p50 {late[0]}, p99 {late[1]}, max {late[2]} ms"
            )


if __name__ == "__main__":
    main()
