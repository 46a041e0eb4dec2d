"""One tenant's p95 on a running cluster, alone and beside one that has 10,000 jobs waiting.

Or, without jobs, beside one whose 100 connections each have a request waiting. The expert is the
no-op one that takes its time asleep, a fifth more or less, so that the devices are what everybody
waits for, and not this machine's processors.
"""

import argparse
import asyncio
import datetime as dt
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
from rich.console import Console

from serve.client import Client
from serve.local import LocalCluster, LocalOptions
from serve.schemas.batches import BatchPerson, BatchProduct, BatchRequest
from serve.schemas.keys import NewKey
from serve.schemas.tenants import NewTenant
from serve.settings import free_port
from tests.pictures import box_mask, encoded, photo

LOAD = Path(__file__).parent / "load.py"
TARGET = 1.5
# Of what the devices can do: what the light tenant asks for.
LIGHT_SHARE = 0.2
EXPERT = """
expert: top
name: paced
title: Takes its time
status: benchmark
licence: {{name: none, commercial_use: true}}
backend: {{kind: noop, seconds: {pass_s}, spread: 0.2, steps: 4}}
"""
FAMILY = """
experts:
  - version: top@paced
    autoscaling: {{min_replicas: {replicas}, max_replicas: {replicas}}}
    max_ongoing_requests: 64
segmenter:
  autoscaling: {{min_replicas: 0}}
router:
  autoscaling: {{max_replicas: 1}}
  max_in_flight_per_version: {permits}
"""
err = Console(stderr=True)


@dataclass(frozen=True)
class Setting:
    replicas: int
    pass_s: float
    permits: int | None
    jobs: int
    """Of the greedy tenant, all of them interactive; none where it has connections."""
    connections: int
    seconds: float


@dataclass(frozen=True)
class Result:
    setting: Setting
    alone_s: Sequence[float]
    beside_s: Sequence[float]
    greedy_per_s: float
    """What the devices did for it while both asked."""
    failures: Sequence[str]

    @property
    def ratio(self) -> float:
        return percentile(self.beside_s, 0.95) / percentile(self.alone_s, 0.95)

    @property
    def busy(self) -> float:
        """Fraction of the devices' time that was used while both tenants asked."""
        setting = self.setting
        per_s = self.greedy_per_s + LIGHT_SHARE * setting.replicas / setting.pass_s
        return per_s * setting.pass_s / setting.replicas


def percentile(values: Sequence[float], fraction: float) -> float:
    return sorted(values)[min(len(values) - 1, int(fraction * len(values)))]


def write_family(folder: Path, setting: Setting) -> Path:
    (folder / "experts").mkdir()
    (folder / "experts/top.paced.yaml").write_text(EXPERT.format(pass_s=setting.pass_s))
    permits = "null" if setting.permits is None else setting.permits
    family = folder / "family.yaml"
    family.write_text(FAMILY.format(replicas=setting.replicas, permits=permits))
    return family


def make_key(admin: Client, name: str) -> str:
    tenant = admin.create_tenant(NewTenant(name=name))
    return admin.create_key(tenant.id, NewKey(name=name)).token


def whole_request(url: str, key: str) -> bytes:
    request = httpx2.Request(
        "POST",
        f"{url}/v1/tryon",
        data={"expert": "top", "version": "paced"},
        files={
            "person": encoded(photo(), "JPEG"),
            "product": encoded(photo(64, 64), "JPEG"),
            "mask": encoded(box_mask()),
        },
        headers={"Authorization": f"Bearer {key}", "Accept": "image/*"},
    )
    body = request.read()
    head = ["POST /v1/tryon HTTP/1.1", *(f"{k}: {v}" for k, v in request.headers.items())]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


async def call_now_and_then(url: str, key: str, setting: Setting, seed: int) -> list[float]:
    """Independent callers: each comes at its time, whoever still waits."""
    dice = random.Random(seed)
    rate_hz = LIGHT_SHARE * setting.replicas / setting.pass_s
    head, _, body = whole_request(url, key).partition(b"\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in head.decode().splitlines()[1:])
    latencies_s: list[float] = []
    stages: dict[str, list[float]] = {}

    async with httpx2.AsyncClient(timeout=60) as http:

        async def call() -> None:
            started_s = time.perf_counter()
            response = await http.post(f"{url}/v1/tryon", content=body, headers=headers)
            response.raise_for_status()
            latencies_s.append(time.perf_counter() - started_s)
            for entry in response.headers["server-timing"].split(", "):
                stage, _, took_ms = entry.partition(";dur=")
                stages.setdefault(stage, []).append(float(took_ms))

        until_s = time.perf_counter() + setting.seconds
        async with asyncio.TaskGroup() as callers:
            while time.perf_counter() < until_s:
                callers.create_task(call())
                await asyncio.sleep(dice.expovariate(rate_hz))
    p95_ms = {stage: round(percentile(took_ms, 0.95)) for stage, took_ms in stages.items()}
    err.print(f"p95 of each stage, ms: {p95_ms}")
    return latencies_s


def measure(cluster: LocalCluster, port: int, setting: Setting, folder: Path) -> Result:
    with Client(cluster.url, api_key=cluster.api_key) as admin:
        light, greedy = make_key(admin, "light"), make_key(admin, "greedy")
    # The first calls teach the gate what a pass takes.
    asyncio.run(call_now_and_then(cluster.url, light, setting, seed=0))
    alone_s = asyncio.run(call_now_and_then(cluster.url, light, setting, seed=1))
    keep_busy = queue_jobs if setting.jobs else keep_calling
    with keep_busy(cluster.url, port, greedy, setting, folder) as greed:
        beside_s = asyncio.run(call_now_and_then(cluster.url, light, setting, seed=1))
    return Result(setting, alone_s, beside_s, greed.per_s, greed.failures)


@dataclass
class Greed:
    """What the greedy tenant got; known when it has ended."""

    per_s: float = 0.0
    failures: Sequence[str] = ()


@contextmanager
def keep_calling(url: str, port: int, key: str, setting: Setting, folder: Path) -> Iterator[Greed]:
    """So many connections, each with a request that waits."""
    request, greed = folder / "request", Greed()
    request.write_bytes(whole_request(url, key))
    lead_s = 5 * setting.pass_s
    command = [
        *(sys.executable, str(LOAD), "--port", str(port), "--request", str(request)),
        *("--connections", str(setting.connections)),
        *("--seconds", str(setting.seconds + 2 * lead_s)),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as load:
        time.sleep(lead_s)  # until the queue is full
        yield greed
        told = json.loads(load.communicate()[0])
    greed.per_s, greed.failures = told["per_s"], told["failures"]


@contextmanager
def queue_jobs(url: str, port: int, key: str, setting: Setting, folder: Path) -> Iterator[Greed]:
    """So many jobs, all accepted at once and none of them behind interactive work."""
    greed = Greed()
    with Client(url, api_key=key) as client:
        pictures = (photo(), photo(64, 64), box_mask())
        person, product, mask = (client.assets.upload(encoded(each)).id for each in pictures)
        side = math.isqrt(setting.jobs)
        batch = client.batches.create(
            BatchRequest(
                expert="top",
                version="paced",
                products=tuple(BatchProduct(sku=f"s{n}", image=product) for n in range(side)),
                persons=tuple(
                    BatchPerson(name=f"p{n}", image=person, mask=mask) for n in range(side)
                ),
                priority="interactive",
                start=True,
            )
        )
        while client.batches.get(batch.id).counts.succeeded < setting.replicas:
            time.sleep(0.2)
        before, started_s = client.batches.get(batch.id).counts, time.perf_counter()
        yield greed
        after, ended_s = client.batches.get(batch.id).counts, time.perf_counter()
        greed.per_s = (after.succeeded - before.succeeded) / (ended_s - started_s)
        greed.failures = [f"{after.failed} failed jobs"] if after.failed else []
        client.batches.cancel(batch.id)


def run(setting: Setting) -> Result:
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="sm4ll-fair-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        options = LocalOptions(
            family=write_family(folder, setting),
            port=port,
            num_cpus=16,
            data_dir=folder / "data",
        )
        cluster = LocalCluster(options)
        try:
            cluster.start(lambda deployments: None, threading.Event())
            return measure(cluster, port, setting, folder)
        finally:
            cluster.stop()


def describe(result: Result) -> str:
    setting, alone, beside = result.setting, result.alone_s, result.beside_s
    verdict = "met" if result.ratio <= TARGET else "MISSED"
    failures = f"; greedy tenant also saw {', '.join(result.failures)}" if result.failures else ""
    permits = setting.permits or f"default ({max(2, setting.replicas)})"
    return (
        f"| {setting.replicas} | {permits} | {setting.pass_s * 1e3:.0f} ms "
        f"| {percentile(alone, 0.5) * 1e3:.0f} / {percentile(alone, 0.95) * 1e3:.0f} ms "
        f"| {percentile(beside, 0.5) * 1e3:.0f} / {percentile(beside, 0.95) * 1e3:.0f} ms "
        f"| {result.ratio:.2f} ({verdict}) | {result.busy:.0%}{failures} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--pass-s", type=float, default=1.0)
    parser.add_argument("--permits", type=int, default=None, help="instead of the default")
    parser.add_argument("--jobs", type=int, default=10_000, help="0: connections instead")
    parser.add_argument("--connections", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--output", type=Path)
    arguments = vars(parser.parse_args())
    output = arguments.pop("output")
    result = run(Setting(**arguments))
    setting = result.setting
    greed = f"{setting.jobs} jobs" if setting.jobs else f"{setting.connections} connections"
    lines = [
        f"{dt.date.today()}, {os.cpu_count()} cores, one router; {len(result.alone_s)} and "
        f"{len(result.beside_s)} calls of the light tenant ({LIGHT_SHARE:.0%} of the devices), "
        f"{greed} of the greedy one",
        "",
        "| replicas | permits | a pass | alone p50 / p95 | beside p50 / p95 | p95 ratio | busy |",
        "|---|---|---|---|---|---|---|",
        describe(result),
    ]
    report = "\n".join(lines)
    print(report)
    if output is not None:
        output.write_text(report + "\n")


if __name__ == "__main__":
    main()
