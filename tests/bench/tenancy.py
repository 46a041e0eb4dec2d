"""The gateway with everything a tenant brings, beside the same gateway with none of it.

tenant: key, rate limit, concurrency, budget, fair queue, a reservation and a settlement on disk.
bare: the same pipeline, expert and imaging threads' work, deployed beside it by this file alone:
no key, no limits, no queue, no ledger. Target: p50 of tenant <= 1.3 x bare's, in one run.

Both are asked in turns, pair by pair, each pair beginning with the other one; the ratio is the
median of the pairs' ratios, and how far they lie apart says what it is worth.
"""

import argparse
import datetime as dt
import logging
import os
import tempfile
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

from fastapi import FastAPI, Request
from ray import serve as rayserve
from ray.serve.handle import DeploymentHandle
from rich.console import Console
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.bundle import Bundle, load_family
from deployments.options import expert_options, group_experts, router_options
from serve.admission.ticket import Share
from serve.api.forms import read_tryon
from serve.api.middleware import BodyLimit, RequestContext
from serve.api.pictures import fetch_pictures
from serve.api.problems import install_problem_handlers, request_id_of
from serve.api.tryon import _headers, _wants_json
from serve.catalog import Catalog
from serve.client import Client
from serve.config import FamilyConfig
from serve.fetching.fetch import Fetcher
from serve.imaging.limits import ImageLimits
from serve.local import LocalCluster, LocalOptions
from serve.local_app import APP_NAME
from serve.messages import ExpertReply, ExpertRequest, SegmentReply, SegmentRequest
from serve.observing.watch import Stopwatch
from serve.pipeline import Pipeline
from serve.policy import TenantPolicy
from serve.schemas.keys import NewKey
from serve.schemas.tenants import NewTenant
from serve.settings import free_port
from serve.steps import TryOnWork
from serve.transports import Transports, map_handle_errors
from tests.bench.gateway_bodies import BODY_BYTES, make_bodies, write_request
from tests.bench.gateway_cells import Answers, run_load

FAMILY = Path(__file__).parent / "family.yaml"
BODIES = ("110 KB", "5 MB")
CONNECTIONS = (1, 8, 32)
TARGET = 1.3
NUM_PAIRS = 5
PREFIX = "/bare"
# Every limit is set, so that every one is checked; none is reached.
POLICY = TenantPolicy(
    requests_per_minute=10**9,
    concurrency=10**6,
    monthly_gpu_seconds=10**9,
    monthly_images=10**9,
)
err = Console(stderr=True)


class OpenGate:
    """Everybody may ask at once, and nothing is learned."""

    def quote(self, request: ExpertRequest) -> float:
        raise AssertionError("nobody is charged")

    @asynccontextmanager
    async def admit(self, request: ExpertRequest, share: Share) -> AsyncIterator[Any]:
        yield SimpleNamespace(learn=lambda reply: None)


class Unmounted:
    """Middleware knows routes by their whole path: no `/bare` before it."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["path"] = scope["path"].removeprefix(PREFIX)
        await self._app(scope, receive, send)


class BareRouter:
    """The ingress as it was before there were tenants."""

    def __init__(
        self,
        family: FamilyConfig,
        bundles: dict[str, Bundle],
        experts: dict[str, DeploymentHandle],
    ):
        self._family = family
        self._limits = ImageLimits()
        self._fetch = Fetcher(family.router.fetch, self._limits.max_bytes)
        self._experts = {version: Transports(handle) for version, handle in experts.items()}
        self._pipeline = Pipeline(
            catalog=Catalog(family, bundles),
            segment=self._segment,
            experts={version: self._caller(version) for version in experts},
            gate=OpenGate(),
            threads=ThreadPoolExecutor(family.router.num_imaging_threads),
            limits=self._limits,
        )

    async def _segment(self, request: SegmentRequest) -> SegmentReply:
        raise AssertionError("the mask comes with the request")

    def _caller(self, version: str) -> Any:
        async def call(request: ExpertRequest) -> ExpertReply:
            with map_handle_errors(version):
                handle = self._experts[version].choose(request.num_bytes)
                reply: ExpertReply = await handle.generate.remote(request)
            return reply

        return call

    def __serve_build_asgi_app__(self) -> FastAPI:
        router = self._family.router
        app = FastAPI()
        install_problem_handlers(app, logging.getLogger("ray.serve"))
        app.add_middleware(BodyLimit, max_body_bytes=router.max_body_mib * 2**20)
        app.add_middleware(RequestContext, is_echoed_outside=True)
        app.add_middleware(Unmounted)

        @app.post("/v1/tryon", response_class=Response)
        async def tryon(request: Request) -> Response:
            watch = Stopwatch()
            with watch.stage("read"):
                form = await read_tryon(request, self._limits.max_bytes)
            as_json = _wants_json(request.headers.get("accept", "*/*"), form.options)
            assert not as_json
            body = await fetch_pictures(form, self._fetch, router.default_timeout_s, watch)
            work = TryOnWork(
                options=body.options,
                person=body.person,
                product=body.product,
                mask=body.mask,
                request_id=request_id_of(request),
                timeout_s=body.left_s,
            )
            result = await self._pipeline.run(work, watch)
            return Response(result.files[0], 200, _headers(result), result.media_type)

        return app


@dataclass(frozen=True)
class Row:
    """One line of the table: what each pair of runs found."""

    body: str
    connections: int
    pairs: list[dict[str, Answers]]

    def middle(self, mode: str, value: str) -> float:
        return float(median(getattr(pair[mode], value) for pair in self.pairs))

    @property
    def ratios(self) -> list[float]:
        return sorted(pair["tenant"].p50_ms / pair["bare"].p50_ms for pair in self.pairs)

    @property
    def ratio(self) -> float:
        return median(self.ratios)


def deploy_bare() -> None:
    """Beside the family, with the family's own expert."""
    family, bundles = load_family(FAMILY)
    experts = {}
    for group in group_experts(family, bundles):
        name = str(expert_options(group)["name"])
        handle = rayserve.get_deployment_handle(name, APP_NAME)
        experts.update({bundle.version: handle for bundle in group.bundles})
    options = {**router_options(family.router), "name": "BareRouter"}
    ingress = rayserve.ingress()(BareRouter)
    bound = rayserve.deployment(ingress, **options).bind(family, bundles, experts)
    rayserve.run(bound, name="bare", route_prefix=PREFIX)


def make_key(url: str, admin_key: str) -> str:
    with Client(url, api_key=admin_key) as client:
        client.create_tenant(NewTenant(id="bench", name="Benchmark", policy=POLICY))
        return client.create_key("bench", NewKey(name="benchmark")).token


def bench_size(
    cluster: LocalCluster, key: str, port: int, label: str, seconds: float, folder: Path
) -> tuple[list[Row], list[str]]:
    bodies = make_bodies(BODY_BYTES[label])
    paths = {"bare": f"{PREFIX}/v1/tryon", "tenant": "/v1/tryon"}
    notes, rows = [], []
    for mode, path in paths.items():
        fields = {"expert": "top", "version": "passthrough"}
        headers = {"Authorization": f"Bearer {key}"}
        write_request(folder / mode, path, bodies, fields, headers)
        timed = run_load(port, folder / mode, 1, 0.5).stages_ms
        said = ", ".join(f"{name} {ms:.1f} ms" for name, ms in timed.items())
        notes.append(f"{label} {mode}: {said}")
    for connections in CONNECTIONS:
        pairs: list[dict[str, Answers]] = []
        for mode in paths:
            run_load(port, folder / mode, connections, min(1.0, seconds))
        for index in range(NUM_PAIRS):
            # What else the machine does meanwhile, or grows into, meets both alike.
            turns = list(paths) if index % 2 == 0 else list(paths)[::-1]
            each_s = seconds / NUM_PAIRS
            pairs.append(
                {mode: run_load(port, folder / mode, connections, each_s) for mode in turns}
            )
        rows.append(Row(label, connections, pairs))
        spread = f"{rows[-1].ratios[0]:.2f} to {rows[-1].ratios[-1]:.2f}"
        err.print(f"  {label}, {connections}: x {rows[-1].ratio:.2f} ({spread})")
    return rows, notes


def table(rows: list[Row], notes: list[str]) -> str:
    lines = [
        "| body | connections | bare p50 ms | tenant p50 ms | ratio | of the pairs | bare p99 ms "
        "| tenant p99 ms | bare req/s | tenant req/s | |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        verdict = "met" if row.ratio <= TARGET else "missed"
        lines.append(
            f"| {row.body} | {row.connections} | {row.middle('bare', 'p50_ms'):.2f} "
            f"| {row.middle('tenant', 'p50_ms'):.2f} | {row.ratio:.2f} "
            f"| {row.ratios[0]:.2f} to {row.ratios[-1]:.2f} | {row.middle('bare', 'p99_ms'):.1f} "
            f"| {row.middle('tenant', 'p99_ms'):.1f} | {row.middle('bare', 'per_s'):.0f} "
            f"| {row.middle('tenant', 'per_s'):.0f} | {verdict} |"
        )
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    facts = f"{os.cpu_count()} cores, load {load}, SQLite, {dt.date.today().isoformat()}"
    head = (
        f"Target: tenant p50 <= {TARGET} x bare, median of {NUM_PAIRS} pairs. Measured on {facts}."
    )
    return "\n".join([head, "", *lines, "", *(f"- {note}" for note in notes)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    port = free_port()
    data = tempfile.TemporaryDirectory(prefix="sm4ll-bench-", ignore_cleanup_errors=True)
    cluster = LocalCluster(LocalOptions(family=FAMILY, port=port, data_dir=Path(data.name)))
    rows: list[Row] = []
    notes: list[str] = []
    try:
        cluster.start(lambda deployments: None, threading.Event())
        key = make_key(cluster.url, cluster.api_key or "")
        deploy_bare()
        with tempfile.TemporaryDirectory() as folder:
            for label in BODIES:
                err.print(f"{label} ...")
                found = bench_size(cluster, key, port, label, arguments.seconds, Path(folder))
                rows += found[0]
                notes += found[1]
    finally:
        cluster.stop()
        data.cleanup()
    report = table(rows, notes)
    print(report)
    if arguments.output is not None:
        arguments.output.write_text(report + "\n")


if __name__ == "__main__":
    main()
