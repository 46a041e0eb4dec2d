"""The ingress deployment: hosts the HTTP application and owns the handles to everything else."""

import asyncio
import logging
from collections.abc import Awaitable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from fastapi import FastAPI
from ray import serve as rayserve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from deployments.bundle import Bundle
from serve.admission.load import report_gate
from serve.api.models import State
from serve.beginnings import expect_answers, expect_tryons
from serve.catalog import Catalog
from serve.config import DeployedVersion, FamilyConfig, VersionId
from serve.errors import StoreUnavailable
from serve.evidence.witness import Witnesses
from serve.experiments.book import REFRESH_AGE_S
from serve.experiments.versions import Wish
from serve.fetching.fetch import Fetcher
from serve.fleet import FleetWatch
from serve.imaging.limits import ImageLimits
from serve.imaging.room import return_large_arrays
from serve.jobs.run import JobOutcome, JobRun
from serve.jobs.work import JobWork
from serve.messages import SegmentReply, SegmentRequest
from serve.newcomers import Newcomers
from serve.observing.logs import log_as, write_json_logs
from serve.permits import Seats
from serve.pipeline import Pipeline
from serve.ray_meter import RayMeter
from serve.remembering import PictureMemory
from serve.served import app_of, expert_name, segmenter_name
from serve.services import open_services, require_current_schema
from serve.settings import Settings
from serve.shadows import open_shadows
from serve.tenancy.forgetting import TwiceTold
from serve.trace_headers import tolerate_any
from serve.transports import (
    JudgeCaller,
    Transports,
    create_expert_caller,
    create_expert_follower,
    map_handle_errors,
)

PING_TIMEOUT_S = 2.0


class Router:
    """Serves the API. Built late (`__serve_build_asgi_app__`), so the routes close over handles."""

    def __init__(
        self,
        family: FamilyConfig,
        bundles: Mapping[VersionId, Bundle],
        segmenters: Mapping[str, DeploymentHandle],
        experts: Mapping[VersionId, DeploymentHandle],
        runner: DeploymentHandle,
        judge: DeploymentHandle | None = None,
    ):
        """
        Args:
            runner: never called: it calls this. Being named here makes it part of the application.
            judge: asked about pictures in experiments, where one is configured.
        """
        write_json_logs()
        self._catalog = Catalog(family, bundles)
        config = family.router
        self._limits = ImageLimits(
            max_bytes=config.max_image_mib * 2**20,
            max_pixels=config.max_megapixels * 1_000_000,
            max_side_px=config.max_side_px,
        )
        self._fetch = Fetcher(config.fetch, self._limits.max_bytes)
        self._segmenters = {masker: Transports(handle) for masker, handle in segmenters.items()}
        self._experts = {version: Transports(handle) for version, handle in experts.items()}
        return_large_arrays()
        self._threads = ThreadPoolExecutor(config.num_imaging_threads, thread_name_prefix="imaging")
        self._logger = logging.getLogger("ray.serve")
        tolerate_any()
        settings = Settings()
        require_current_schema(settings)
        self._meter = RayMeter()
        self._services = open_services(settings, config, self._meter)
        self._services.recorder.use_price(family.pricing.usd_per_gpu_second)
        self._services.tryons.use_price(family.pricing.usd_per_gpu_second)
        expect_answers(self._meter)
        for version in self._experts:
            expect_tryons(self._meter, version)
        if judge is not None:
            self._services.recorder.use_judge(JudgeCaller(judge))
        self._seats = Seats(family, bundles, self._meter)
        self._services.sampler.also(self._seats.look)
        self._gate = self._seats.gate
        self._fleet = FleetWatch()
        here = rayserve.get_replica_context()
        self._app_name = here.app_name
        self._routers = self._reach(here.deployment, here.app_name)
        self._memory = PictureMemory(
            products_bytes=config.product_cache_mib * 2**20,
            regions_bytes=config.region_cache_mib * 2**20,
            meter=self._meter,
        )
        self._forget = TwiceTold(
            self._tell_forget, max(config.default_timeout_s, family.jobs.run_timeout_s)
        )
        self._services.users.append(self._forget.close)
        self._family_maskers = frozenset(segmenters)
        self._callers = {
            version: create_expert_caller(version, self._experts[version])
            for version in self._experts
        }
        self._followers = {
            version: create_expert_follower(version, self._experts[version])
            for version in self._experts
        }
        self._newcomers = Newcomers(
            catalog=self._catalog,
            seats=self._seats,
            family_versions=tuple(bundles),
            connect=self._connect,
            disconnect=self._disconnect,
            keep_s=config.default_timeout_s,
            logger=self._logger,
        )
        self._services.routing.on_change(self._newcomers.follow)
        self._shadows = open_shadows(
            catalog=self._catalog,
            segment=self._segment,
            experts=self._callers,
            gate=self._gate,
            limits=self._limits,
            services=self._services,
            memory=self._memory,
        )
        self._pipeline = Pipeline(
            catalog=self._catalog,
            segment=self._segment,
            experts=self._callers,
            gate=self._gate,
            threads=self._threads,
            limits=self._limits,
            followers=self._followers,
            witness=Witnesses(self._services.recorder, self._shadows),
            tryons=self._services.tryons,
            memory=self._memory,
        )
        self._work = JobWork(
            database=self._services.database,
            assets=self._services.assets,
            run=self._pipeline.run,
            fetch=self._fetch,
            limits=self._limits,
            catalog=self._catalog,
            tryons=self._services.tryons,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        # The task that builds the graph imports this module, and waits for no API.
        from serve.api.app import build_api

        return build_api(
            self._catalog,
            self._pipeline,
            self._limits,
            self._fetch,
            self._read_states,
            self._read_waiting,
            self._logger,
            services=self._services,
            predict=self._gate.predict,
            forget=self._forget,
            is_id_echoed_outside=True,  # by Serve's own middleware, which never skips
        )

    async def run_job(self, run: JobRun) -> JobOutcome:
        """One attempt at a job, for the runner; it stops at the next step when the call is
        cancelled."""
        log_as(request_id=run.job_id, job=run.job_id, tenant=run.tenant_id)
        await self._hear_of(run.version)
        return await self._work(run)

    async def _hear_of(self, version: VersionId) -> None:
        """The router that accepted the job may have heard of an added version before this one."""
        book = self._services.routing
        await book.fresh()
        if self._catalog.get(version) is None:
            await asyncio.sleep(REFRESH_AGE_S)
            await book.fresh()
            await book.flush()

    # async: Serve would call it in another thread otherwise, while the gate's work changes.
    async def record_autoscaling_stats(self) -> dict[str, float]:
        """The load at this router's gate; Serve calls it twice a second and tells the autoscaler.

        What that decided comes back here: permits follow the replicas. And a router that nobody
        asks learns which versions there are.
        """
        with suppress(StoreUnavailable):
            await self._services.routing.fresh()
        if fleet := await self._fleet.read():
            self._seats.follow(fleet)
        return report_gate(self._gate)

    def _connect(self, wish: Wish) -> None:
        """Have handles to an added version, and to its segmenter where the family has none."""
        version, masker_id = wish.version, wish.bundle.masker.id
        name = expert_name(version)
        self._experts[version] = self._reach(name, app_of(self._app_name, name))
        expect_tryons(self._meter, version)
        self._callers[version] = create_expert_caller(version, self._experts[version])
        self._followers[version] = create_expert_follower(version, self._experts[version])
        if masker_id not in self._family_maskers:
            name = segmenter_name(masker_id)
            self._segmenters[masker_id] = self._reach(name, app_of(self._app_name, name))

    def _disconnect(self, wish: Wish) -> None:
        for held in (self._experts, self._callers, self._followers):
            held.pop(wish.version, None)
        masker_id = wish.bundle.masker.id
        others = {one.bundle.masker.id for one in self._newcomers.versions.values()}
        if masker_id not in self._family_maskers | others:
            self._segmenters.pop(masker_id, None)

    def _reach(self, name: str, app_name: str) -> Transports:
        # Without asking the controller, on the loop, whether it exists: it is ready.
        handle = rayserve.get_deployment_handle(
            name, app_name, _check_exists=False, _record_telemetry=False
        )
        return Transports(handle)

    async def _segment(self, request: SegmentRequest) -> SegmentReply:
        with map_handle_errors(f"the segmenter {request.masker}"):
            handle = self._segmenters[request.masker].choose(request.num_bytes)
            reply: SegmentReply = await handle.segment.remote(request)
        return reply

    async def forget(self, content_hashes: frozenset[str]) -> int:
        """Drop what this router remembers of these contents; says how many entries."""
        return self._memory.forget(content_hashes)

    async def _tell_forget(self, content_hashes: Collection[str]) -> None:
        """What was erased is remembered by no replica any more, router or other.

        One that cannot be reached is logged, not waited for: its memory ends with it at the latest.
        """
        gone = frozenset(content_hashes)
        told = {
            **{f"segmenter {name}": one for name, one in self._segmenters.items()},
            **self._experts,
        }
        calls = (transports.tell_all("forget", gone) for transports in told.values())
        routers = self._routers.tell_all("forget", gone, is_up=True)
        outcomes = await asyncio.gather(routers, *calls, return_exceptions=True)
        for name, outcome in zip(("routers", *told), outcomes, strict=True):
            if isinstance(outcome, Exception):
                self._logger.error("%s was not told what to forget: %r", name, outcome)

    async def _answers(self, transports: Transports) -> bool:
        try:
            async with asyncio.timeout(PING_TIMEOUT_S):
                await _awaited(transports.choose(0).ping.remote())
        except (TimeoutError, RayTaskError, RayActorError, DeploymentUnavailableError):
            return False
        return True

    async def _read_waiting(self) -> tuple[str, ...]:
        """What must answer before the family is ready, and does not yet."""
        wanted = {
            deployed.version: self._experts[deployed.version]
            for deployed in self._catalog.family.experts
            if self._is_kept_up(deployed)
        }
        if self._catalog.family.segmenter.autoscaling.min_replicas >= 1:
            for masker, transports in self._segmenters.items():
                wanted[f"segmenter {masker}"] = transports
        answers = await asyncio.gather(*map(self._answers, wanted.values()))
        return tuple(name for name, answered in zip(wanted, answers, strict=True) if not answered)

    def _is_kept_up(self, deployed: DeployedVersion) -> bool:
        return self._catalog.family.replicas_of(deployed).autoscaling.min_replicas >= 1

    async def _read_states(self) -> Mapping[VersionId, State]:
        waiting = await self._read_waiting()
        states: dict[VersionId, State] = {}
        for deployed in self._catalog.family.experts:
            # Pinging a version that scaled to zero would start it.
            is_idle = not self._is_kept_up(deployed)
            ready: State = "starting" if deployed.version in waiting else "ready"
            states[deployed.version] = "idle" if is_idle else ready
        return {**states, **await self._read_added_states()}

    async def _read_added_states(self) -> Mapping[VersionId, State]:
        wishes = self._newcomers.versions
        kept_up = [v for v, wish in wishes.items() if wish.deployed.autoscaling.min_replicas >= 1]
        answers = await asyncio.gather(*(self._answers(self._experts[v]) for v in kept_up))
        states: dict[VersionId, State] = dict.fromkeys(wishes, "idle")
        for version, answered in zip(kept_up, answers, strict=True):
            states[version] = "ready" if answered else "starting"
        return states


async def _awaited(response: Awaitable[Any]) -> Any:
    return await response


IngressRouter = rayserve.ingress()(Router)
"""Router with its HTTP application attached, as Serve deploys it."""
