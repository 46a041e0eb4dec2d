"""What one passthrough `/v1/tryon` costs the router in CPU time, in one process, without Ray.

The API as the router builds it (key, limits, experiment, fair queue, ledger and exposures on disk),
called as ASGI; the expert answers at once. Not counted: HTTP parsing and the call of the replica.
CPU time, unlike latency, is the same on a busy machine, so it can be compared before and after.

loop: the event loop's own thread, which is what other requests wait for.
all: the threads of the store included.
"""

import argparse
import asyncio
import cProfile
import logging
import pstats
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from fastapi import FastAPI
from starlette.types import Message

from deployments.bundle import load_family
from serve.api.app import build_api
from serve.api.models import State
from serve.catalog import Catalog
from serve.evidence.witness import Witnesses
from serve.imaging.limits import ImageLimits
from serve.messages import ExpertReply, ExpertRequest, SegmentReply, SegmentRequest
from serve.observing.meter import NO_METER, Meter
from serve.permits import build_gate
from serve.pipeline import Pipeline
from serve.policy import TenantPolicy
from serve.services import Services, open_services
from serve.shadows import open_shadows
from tests.loopback_web import refusing_fetcher
from tests.tenants import LOCAL_TOKEN, add_key, open_local_services

FAMILY = Path(__file__).parent / "gateway.yaml"
EXPERIMENT: dict[str, Any] = {
    "id": "gateway",
    "expert": "top",
    "unit": "request",
    "start": True,
    "arms": [
        {"name": "control", "version": "top@passthrough", "weight": 5_000},
        {"name": "other", "version": "top@passthrough-b", "weight": 5_000},
    ],
}
# Every limit is set, so that every one is checked; none is reached.
POLICY = TenantPolicy(
    requests_per_minute=10**9,
    concurrency=10**6,
    monthly_gpu_seconds=10**9,
    monthly_images=10**9,
)
CHUNK_BYTES = 2**16  # as uvicorn hands bodies on (HIGH_WATER_LIMIT)
NUM_WARM = 200


async def answer_at_once(request: ExpertRequest) -> ExpertReply:
    return ExpertReply(request.crop_hwc[None], None, request.version, generate_ms=1.0)


async def segment_nothing(request: SegmentRequest) -> SegmentReply:
    raise AssertionError("nothing is segmented here")


async def read_states() -> Mapping[str, State]:
    return {}


async def read_waiting() -> tuple[str, ...]:
    return ()


def build_gateway(folder: Path, meter: Meter) -> tuple[FastAPI, Services]:
    """The router's API with an expert that takes no time."""
    family, bundles = load_family(FAMILY)
    catalog, gate, limits = Catalog(family, bundles), build_gate(family, bundles), ImageLimits()
    plain, settings = open_local_services(folder)
    del plain  # it has opened nothing yet
    services = open_services(settings, family.router, meter)
    experts = {version: answer_at_once for version in bundles}
    shadows = open_shadows(
        catalog=catalog,
        segment=segment_nothing,
        experts=experts,
        gate=gate,
        limits=limits,
        services=services,
    )
    pipeline = Pipeline(
        catalog=catalog,
        segment=segment_nothing,
        experts=experts,
        gate=gate,
        threads=ThreadPoolExecutor(2),
        limits=limits,
        witness=Witnesses(services.recorder, shadows),
    )
    api = build_api(
        catalog,
        pipeline,
        limits,
        refusing_fetcher(),
        read_states,
        read_waiting,
        logging.getLogger("bench"),
        services=services,
        predict=gate.predict,
        is_id_echoed_outside=True,
    )
    return api, services


@dataclass(frozen=True)
class Call:
    """One request, ready to be sent to an ASGI application again and again."""

    headers: list[tuple[bytes, bytes]]
    chunks: list[bytes]

    @classmethod
    def tryon(cls, token: str, num_bytes: int) -> "Call":
        request = httpx2.Request(
            "POST",
            "http://bench/v1/tryon",
            data={"expert": "top"},
            files={
                "person": b"\xff" * (num_bytes * 9 // 10),
                "product": b"\xff" * (num_bytes // 10),
            },
            headers={"Authorization": f"Bearer {token}", "Accept-Encoding": "gzip"},
        )
        body = request.read()
        chunks = [body[at : at + CHUNK_BYTES] for at in range(0, len(body), CHUNK_BYTES)]
        return cls([(k.lower().encode(), v.encode()) for k, v in request.headers.items()], chunks)

    async def send(self, api: FastAPI) -> Mapping[str, str]:
        """The headers of the answer, which has to be 200."""
        started: list[Message] = []
        waiting = iter(self.chunks)
        num_left = len(self.chunks)

        async def receive() -> Message:
            nonlocal num_left
            num_left -= 1
            body = next(waiting, b"")
            return {"type": "http.request", "body": body, "more_body": num_left > 0}

        async def send(message: Message) -> None:
            started.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/v1/tryon",
            "raw_path": b"/v1/tryon",
            "query_string": b"",
            "root_path": "",
            "headers": list(self.headers),
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
        }
        await api(scope, receive, send)
        if started[0]["status"] != 200:
            raise RuntimeError(started)
        return {k.decode(): v.decode() for k, v in started[0]["headers"]}


@dataclass(frozen=True)
class Cost:
    """CPU time of one request."""

    loop_us: float
    all_us: float


async def run_calls(api: FastAPI, call: Call, num: int, connections: int) -> None:
    async def keep_sending(count: int) -> None:
        for _ in range(count):
            await call.send(api)

    await asyncio.gather(*(keep_sending(num // connections) for _ in range(connections)))


async def measure(api: FastAPI, call: Call, num: int, connections: int) -> Cost:
    await run_calls(api, call, NUM_WARM, connections)
    loop_s, all_s = time.thread_time(), time.process_time()
    await run_calls(api, call, num, connections)
    loop_s, all_s = time.thread_time() - loop_s, time.process_time() - all_s
    return Cost(loop_s / num * 1e6, all_s / num * 1e6)


async def begin_experiment(api: FastAPI) -> None:
    transport = httpx2.ASGITransport(app=api)
    headers = {"Authorization": f"Bearer {LOCAL_TOKEN}"}
    async with httpx2.AsyncClient(transport=transport, base_url="http://bench") as client:
        answer = await client.post("/v1/experiments", json=EXPERIMENT, headers=headers)
    assert answer.status_code == 201, answer.text


async def bench(arguments: argparse.Namespace, folder: Path, meter: Meter) -> list[str]:
    api, services = build_gateway(folder, meter)
    lines = ["| body | connections | loop us | all us |", "|---|---|---|---|"]
    try:
        token = await add_key(services.database, "bench", policy=POLICY)
        await begin_experiment(api)
        profile = cProfile.Profile() if arguments.profile else None
        for num_bytes in arguments.bytes:
            call = Call.tryon(token, num_bytes)
            headers = await call.send(api)
            assert headers["sm4ll-experiment"] == "gateway", headers
            for connections in (1, 8):
                rounds = [
                    await measure(api, call, arguments.requests, connections) for _ in range(3)
                ]
                best = min(rounds, key=lambda cost: cost.loop_us)  # the least disturbed
                lines.append(
                    f"| {num_bytes} | {connections} | {best.loop_us:.0f} | {best.all_us:.0f} |"
                )
            if profile is not None:
                profile.enable()
                await run_calls(api, call, arguments.requests, 1)
                profile.disable()
        if profile is not None:
            pstats.Stats(profile).sort_stats("tottime").print_stats(60)
            profile.dump_stats(arguments.profile)
    finally:
        await services.close()
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=800, help="in each of three rounds")
    parser.add_argument("--bytes", type=int, nargs="+", default=[1_000, 110_000])
    parser.add_argument("--profile", type=Path, help="write a cProfile of it, print its top")
    parser.add_argument("--meter", choices=("none", "ray"), default="none")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    meter: Meter = NO_METER
    if arguments.meter == "ray":
        from serve.ray_meter import RayMeter

        meter = RayMeter()
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="sm4ll-bench-") as folder:
        report = "\n".join(asyncio.run(bench(arguments, Path(folder), meter)))
    print(report)
    if arguments.output is not None:
        arguments.output.write_text(report + "\n")


if __name__ == "__main__":
    main()
