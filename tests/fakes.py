"""The product in one process: the real pipeline, segmenter and backends, with Ray left out."""

import asyncio
import logging
import tempfile
import threading
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from deployments.bundle import Bundle, load_family
from deployments.expert import ExpertReplica
from deployments.options import ExpertGroup, group_experts
from deployments.segmenters.base import Segmenter, SegmenterPlan
from deployments.segmenters.registry import create_segmenter
from serve.api.app import build_api
from serve.api.models import State
from serve.api.pictures import FetchPicture
from serve.catalog import Catalog
from serve.config import JobsConfig, ReplicaPlan
from serve.errors import Sm4llError
from serve.evidence.witness import Witnesses
from serve.imaging.limits import ImageLimits
from serve.jobs.chores import list_chores
from serve.jobs.routine import Routine
from serve.jobs.runner import Runner
from serve.jobs.windows import plan_windows
from serve.jobs.work import JobWork, build_forget
from serve.messages import ExpertReply, ExpertRequest, SegmentReply, SegmentRequest
from serve.observing.meter import NO_METER, Meter
from serve.permits import build_gate
from serve.pipeline import OnStep, Pipeline
from serve.remembering import PictureMemory
from serve.shadows import open_shadows
from tests.loopback_web import refusing_fetcher
from tests.tenants import KeyAdded, open_local_services


def load_segmenters(bundles: Iterable[Bundle]) -> dict[str, Segmenter]:
    """One segmenter per masker that the bundles name, as the graph deploys them."""
    segmenters = {}
    for bundle in bundles:
        if bundle.masker.id not in segmenters:
            segmenter = create_segmenter(bundle.masker, SegmenterPlan(2**26, bundle.home))
            segmenter.load()
            segmenters[bundle.masker.id] = segmenter
    return segmenters


class Replicas:
    """The experts of a family, each loaded when it is first asked: most tests ask one of them."""

    def __init__(self, groups: Iterable[ExpertGroup]):
        self._groups = {bundle.version: group for group in groups for bundle in group.bundles}
        self._loaded: dict[str, ExpertReplica] = {}
        self._loading = threading.Lock()

    async def generate(self, request: ExpertRequest) -> ExpertReply:
        return await (await self._find(request.version)).generate(request)

    async def follow(self, request: ExpertRequest, on_step: OnStep) -> ExpertReply:
        replica = await self._find(request.version)
        async for told in replica.generate_steps(request):
            if isinstance(told, ExpertReply):
                return told
            on_step(*told)
        raise AssertionError("a stream without a reply")

    async def forget(self, content_hashes: frozenset[str]) -> None:
        for replica in self._loaded.values():
            await replica.forget(content_hashes)

    async def _find(self, version: str) -> ExpertReplica:
        group = self._groups[version]
        if replica := self._loaded.get(group.name):
            return replica
        return await asyncio.to_thread(self._load, group)

    def _load(self, group: ExpertGroup) -> ExpertReplica:
        with self._loading:
            if group.name not in self._loaded:
                plan = ReplicaPlan(name=group.name)
                self._loaded[group.name] = ExpertReplica(group.bundles, plan)
            return self._loaded[group.name]


def build_local_api(
    family_file: Path,
    timeout_s: float | None = None,
    waiting_for: tuple[str, ...] = (),
    fetch: FetchPicture | None = None,
    *,
    is_key_added: bool = True,
    jobs: JobsConfig | None = None,
    meter: Meter = NO_METER,
) -> FastAPI:
    """The API as the router builds it, on direct calls instead of handles.

    Its job runner lives as long as its lifespan: `with TestClient(api)`.

    It has a store of its own (`tests.tenants.open_local_services`): `api.state.services` and
    `api.state.settings`.

    Args:
        is_key_added: requests without a key get that of tenant `local`.
    """
    family, bundles = load_family(family_file)
    if timeout_s is not None:
        router = family.router.model_copy(update={"default_timeout_s": timeout_s})
        family = family.model_copy(update={"router": router})
    catalog = Catalog(family, bundles)
    segmenters = load_segmenters(bundles.values())
    replicas = Replicas(group_experts(family, bundles))

    # One at a time, as in a replica: OpenCV's cascades are not to be shared.
    segmenting = ThreadPoolExecutor(1)

    async def segment(request: SegmentRequest) -> SegmentReply:
        found = segmenters[request.masker].segment
        loop = asyncio.get_running_loop()
        (outcome,) = await loop.run_in_executor(segmenting, found, [request])
        if isinstance(outcome, Sm4llError):
            raise outcome
        return outcome

    memory = PictureMemory(products_bytes=2**24, regions_bytes=2**24)

    async def forget(content_hashes: Collection[str]) -> None:
        memory.forget(content_hashes)
        for segmenter in segmenters.values():
            segmenter.forget(content_hashes)
        await replicas.forget(frozenset(content_hashes))

    async def read_states() -> Mapping[str, State]:
        return {version: "ready" for version in bundles}

    async def read_waiting() -> tuple[str, ...]:
        return waiting_for

    limits = ImageLimits()
    gate = build_gate(family, bundles, meter)
    folder = tempfile.TemporaryDirectory(prefix="sm4ll-api-")
    services, settings = open_local_services(Path(folder.name), meter)
    services.recorder.use_price(family.pricing.usd_per_gpu_second)
    services.tryons.use_price(family.pricing.usd_per_gpu_second)
    experts = {version: replicas.generate for version in bundles}
    shadows = open_shadows(
        catalog=catalog,
        segment=segment,
        experts=experts,
        gate=gate,
        limits=limits,
        services=services,
        memory=memory,
    )
    pipeline = Pipeline(
        catalog=catalog,
        segment=segment,
        experts=experts,
        gate=gate,
        threads=ThreadPoolExecutor(2),
        limits=limits,
        followers={version: replicas.follow for version in bundles},
        witness=Witnesses(services.recorder, shadows),
        memory=memory,
        tryons=services.tryons,
    )
    fetch = fetch or refusing_fetcher()
    api = build_api(
        catalog,
        pipeline,
        limits,
        fetch,
        read_states,
        read_waiting,
        logging.getLogger("tests"),
        services=services,
        forget=forget,
        predict=gate.predict,
    )
    work = JobWork(
        database=services.database,
        assets=services.assets,
        run=pipeline.run,
        fetch=fetch,
        limits=limits,
        catalog=catalog,
        tryons=services.tryons,
    )
    config = jobs or JobsConfig(poll_s=0.02)
    run_jobs_with(
        api,
        Runner(
            database=services.database,
            config=config,
            windows=plan_windows(family, bundles),
            dispatch=work,
            owner="tests",
            forget=build_forget(services.assets),
        ),
        config,
    )
    api.state.services, api.state.settings = services, settings
    api.state.shadows = shadows
    api.state.segmenters = segmenters
    api.state.memory = memory
    api.state.folder = folder  # goes when the API goes
    if is_key_added:
        api.add_middleware(KeyAdded)
    return api


def run_jobs_with(api: FastAPI, runner: Runner, config: JobsConfig) -> None:
    """Start and stop a job runner on the API's own event loop."""
    routine = Routine(list_chores(runner, config))
    lifespan = api.router.lifespan_context

    @asynccontextmanager
    async def with_runner(app: FastAPI) -> AsyncIterator[Any]:
        async with lifespan(app) as state:
            routine.start()
            try:
                yield state
            finally:
                await routine.stop()
                await runner.stop()

    api.router.lifespan_context = with_runner
