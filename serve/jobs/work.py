"""One attempt at a job, inside a router: inputs from the store, the same pipeline and gate as a
synchronous call, results into the store.

Ends nothing: what it answers, or raises, the runner writes down.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, Protocol

from serve.admission.ticket import Share
from serve.catalog import Catalog
from serve.choosing import describe_choice, load_choice
from serve.errors import InvalidRequest
from serve.imaging.limits import ImageLimits, check_num_bytes
from serve.jobs.progress import ProgressWriter
from serve.jobs.routine import end_all
from serve.jobs.run import JobOutcome, JobRun
from serve.observing.tracing import TRACEPARENT
from serve.observing.tryons import TryOns
from serve.observing.watch import Stopwatch
from serve.schemas.tryon import TryOnOptions
from serve.steps import TryOnResult, TryOnWork
from serve.store.columns import utc_now
from serve.store.engine import Database
from serve.store.events import append_event
from serve.store.leases import Claim
from serve.store.tables import AssetKind
from serve.tally import tell_answer
from serve.tenancy.assets import AssetStore, PictureStore

ZIP = "application/zip"

FetchPicture = Callable[[str], Awaitable[bytes]]


class RunTryOn(Protocol):
    """The pipeline."""

    async def __call__(self, work: TryOnWork, watch: Stopwatch, /) -> TryOnResult: ...


class Pictures(PictureStore, Protocol):
    """The tenants' assets; see `serve.tenancy.assets.AssetStore`."""

    async def load(self, tenant_id: str, asset_id: str, /) -> bytes: ...


class JobWork:
    """Runs attempts; whatever happens to one, nothing of it is written about a job that is
    somebody else's by then."""

    def __init__(
        self,
        *,
        database: Database,
        assets: Pictures,
        run: RunTryOn,
        fetch: FetchPicture,
        limits: ImageLimits,
        catalog: Catalog,
        tryons: TryOns | None = None,
        now: Callable[[], datetime] = utc_now,
    ):
        self._database = database
        self._assets = assets
        self._run = run
        self._fetch = fetch
        self._limits = limits
        self._catalog = catalog
        self._tryons = tryons or TryOns()
        self._now = now

    async def __call__(self, job: JobRun) -> JobOutcome:
        """In a trace of its own, linked to that of the request that made the job: one may have made
        thousands, days before (OpenTelemetry messaging conventions: a link, not a parent).

        Raises:
            Sm4llError: why there is no result.
        """
        watch = Stopwatch()
        with watch.record("attempt", linked_to=job.request.get(TRACEPARENT)) as span:
            span.note({"sm4ll.job": job.job_id, "sm4ll.tenant": job.tenant_id})
            return await self._attempt(job, watch)

    async def _attempt(self, job: JobRun, watch: Stopwatch) -> JobOutcome:
        loop = asyncio.get_running_loop()
        ends_at_s = loop.time() + job.timeout_s
        options = read_options(job)
        kept = job.request.get("choice")
        choice = load_choice(self._catalog, options.expert, job.version, kept)
        watch.note(describe_choice(choice))
        with watch.stage("fetch"):
            person, product, mask = await self._load_all(job)
        writer = ProgressWriter(self._event_writer(job))
        work = TryOnWork(
            options=options,
            person=person,
            product=product,
            mask=mask,
            request_id=job.job_id,
            timeout_s=max(0.001, ends_at_s - loop.time()),
            share=Share(job.tenant_id, job.policy.weight, job.priority),
            policy=job.policy,
            subject=job.subject,
            progress=writer,
            choice=choice,
        )
        result = await self._run_followed(work, writer, watch)
        with watch.stage("answer"):
            outputs = await self._store_all(job, result)
        tell_answer(self._tryons, work, result, watch)
        upstream = result.receipt.upstream
        return JobOutcome(
            result={"outputs": outputs, "receipt": result.receipt.model_dump(mode="json")},
            gpu_ms=result.gpu_ms,
            images=len(result.files),
            upstream_microusd=None if upstream is None else round(upstream.usd * 1e6),
        )

    async def _run_followed(
        self, work: TryOnWork, writer: ProgressWriter, watch: Stopwatch
    ) -> TryOnResult:
        """With its steps written as they come; once one is refused, nobody wants the rest."""
        writing = asyncio.create_task(writer.run())
        running = asyncio.create_task(self._run(work, watch))
        try:
            await asyncio.wait([writing, running], return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                writing.result()
            result = await running
            writer.close()
            await writing
            return result
        finally:
            await end_all([writing, running])

    def _event_writer(self, job: JobRun) -> Callable[[str, dict[str, Any]], Awaitable[object]]:
        async def write(kind: str, data: dict[str, Any]) -> None:
            async with self._database.transaction() as session:
                await append_event(
                    session,
                    job.tenant_id,
                    job.job_id,
                    kind,
                    data,
                    self._now(),
                    lease_token=job.lease_token,
                )

        return write

    async def _load_all(self, job: JobRun) -> tuple[bytes, bytes, bytes | None]:
        async def load(name: str) -> bytes | None:
            reference = job.request.get(name)
            return None if reference is None else await self._load(job.tenant_id, name, reference)

        person, product, mask = await asyncio.gather(load("person"), load("product"), load("mask"))
        if person is None or product is None:
            raise InvalidRequest("the job has no person or no product")
        return person, product, mask

    async def _load(self, tenant_id: str, name: str, reference: Mapping[str, str]) -> bytes:
        if "asset" in reference:
            return await self._assets.load(tenant_id, reference["asset"])
        if "url" not in reference:
            raise InvalidRequest(f"{name}: neither an asset nor a URL")
        data = await self._fetch(reference["url"])
        check_num_bytes(data, self._limits)
        return data

    async def _store_all(self, job: JobRun, result: TryOnResult) -> list[dict[str, Any]]:
        files = [(file, result.media_type) for file in result.files]
        if result.layers is not None:
            files = [(result.layers, ZIP)]
        return [await self._store(job, result, file, media) for file, media in files]

    async def _store(
        self, job: JobRun, result: TryOnResult, file: bytes, media_type: str
    ) -> dict[str, Any]:
        asset = await self._assets.store(
            job.tenant_id,
            job.policy,
            AssetKind.RESULT,
            file,
            media_type,
            job.subject,
            width_px=result.width,
            height_px=result.height,
        )
        return {
            "asset": asset.id,
            "media_type": media_type,
            "width": result.width,
            "height": result.height,
            "sha256": hashlib.sha256(file).hexdigest(),
        }


def build_forget(assets: AssetStore) -> Callable[[Claim], Awaitable[None]]:
    """Drops the pictures that a job was given, where they have expired and no other needs them."""

    async def forget(claim: Claim) -> None:
        given = (claim.request.get(name) or {} for name in ("person", "product", "mask"))
        ids = [reference["asset"] for reference in given if "asset" in reference]
        await assets.drop_expired(claim.tenant_id, asset_ids=ids)

    return forget


def read_options(job: JobRun) -> TryOnOptions:
    """With the version that was chosen when the job was accepted."""
    options = TryOnOptions.model_validate(job.request["options"])
    return options.model_copy(update={"version": job.version})
