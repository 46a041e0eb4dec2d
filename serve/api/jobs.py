"""`/v1/jobs`: work that is accepted now and done later, however many processes die meanwhile."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import JSONResponse, Response

from serve.api.forms import FormModels, PictureAsset, TryOnForm, read_tryon
from serve.api.identity import require
from serve.api.job_cards import CardMaker
from serve.api.paging import DEFAULT_LIMIT, After, Limit
from serve.api.pictures import FetchPicture, fetch_pictures
from serve.api.responses import problems
from serve.api.watching import watch_of
from serve.catalog import Catalog
from serve.choosing import Chooser
from serve.config import FetchConfig
from serve.fetching.post import check_webhook_url
from serve.imaging.limits import ImageLimits
from serve.imaging.spool import Encoded
from serve.jobs.quote import PredictUnits
from serve.jobs.submission import Pictures, Submission
from serve.observing.watch import Stopwatch
from serve.schemas.jobs import JobCard, JobJson, JobOptions, JobPage, JobStatus
from serve.services import Services
from serve.store.claims import Claims
from serve.store.columns import utc_now
from serve.store.engine import Database
from serve.store.ids import derive_id, new_id
from serve.store.jobs import find_place, get_job, list_jobs
from serve.store.tables import Job, JobState
from serve.tenancy.assets import AssetStore
from serve.tenancy.caller import Caller

MayUseJobs = Annotated[Caller, Depends(require("jobs"))]
FORM = FormModels(JobOptions, JobJson)
LOCATION = {"Location": {"schema": {"type": "string"}}}


class JobDesk:
    """What the routes do, bound to the store."""

    def __init__(
        self,
        database: Database,
        assets: AssetStore,
        submission: Submission,
        cards: CardMaker,
        limits: ImageLimits,
        fetch: FetchPicture,
        webhooks: FetchConfig,
        timeout_s: float,
        now: Callable[[], datetime] = utc_now,
    ):
        self.database = database
        self._assets = assets
        self._submission = submission
        self._cards = cards
        self._limits = limits
        self._fetch = fetch
        self._webhooks = webhooks
        self._timeout_s = timeout_s
        self._claims = Claims(now=now)

    async def submit(self, caller: Caller, request: Request) -> JobCard:
        form = await read_tryon(request, self._limits.max_bytes, FORM)
        options = form.options
        assert isinstance(options, JobOptions)
        if options.webhook_url is not None:
            check_webhook_url(options.webhook_url, self._webhooks)
        # Before anything is fetched for nothing.
        job_id = repeatable_id(request, "job") or new_id("job")
        choice = await self._submission.choose(caller, options, job_id)
        pictures = await self._gather(caller, form, watch_of(request.scope))
        job = await self._submission.submit(caller, options, pictures, choice, job_id)
        return await self.describe(job)

    async def repeat(self, caller: Caller, job_id: str, request: Request) -> JobCard:
        repeated_id = repeatable_id(request, "job")
        return await self.describe(await self._submission.repeat(caller, job_id, repeated_id))

    async def _gather(self, caller: Caller, form: TryOnForm, watch: Stopwatch) -> Pictures:
        load = partial(self._assets.load, caller.tenant_id, is_live=True)
        body = await fetch_pictures(form, self._fetch, self._timeout_s, watch, load=load)
        sent = {"person": form.person, "product": form.product, "mask": form.mask}
        known = {name: one.id for name, one in sent.items() if isinstance(one, PictureAsset)}
        person, product = await _read_apart(body.person), await _read_apart(body.product)
        mask = None if body.mask is None else await _read_apart(body.mask)
        return Pictures(person, product, mask, known)

    async def get(self, caller: Caller, job_id: str) -> JobCard:
        async with self.database.reading() as session:
            job = await get_job(session, caller.tenant_id, job_id)
        return await self.describe(job)

    async def page(
        self, caller: Caller, status: JobStatus | None, after: str | None, limit: int
    ) -> JobPage:
        async with self.database.reading() as session:
            jobs = await list_jobs(
                session,
                caller.tenant_id,
                states=states_of(status),
                after=after,
                limit=limit + 1,
            )
        # Where each of them stands would be a count of its own.
        cards = [self._cards.describe(job, None) for job in jobs[:limit]]
        return JobPage(items=tuple(cards), next=cards[-1].id if len(jobs) > limit else None)

    async def cancel(self, caller: Caller, job_id: str) -> JobCard:
        async with self.database.transaction() as session:
            await self._claims.cancel(session, caller.tenant_id, job_id)
        return await self.get(caller, job_id)

    async def describe(self, job: Job) -> JobCard:
        async with self.database.reading() as session:
            place = await find_place(session, job)
        return self._cards.describe(job, place)


async def _read_apart(file: Encoded) -> bytes:
    return file if isinstance(file, bytes) else await asyncio.to_thread(file.read)


def open_job_desk(
    services: Services,
    chooser: Chooser,
    catalog: Catalog,
    limits: ImageLimits,
    fetch: FetchPicture,
    predict: PredictUnits,
) -> JobDesk:
    family = catalog.family
    num_replicas = {
        deployed.version: family.replicas_of(deployed).autoscaling.max_replicas
        for deployed in family.experts
    }
    return JobDesk(
        database=services.database,
        assets=services.assets,
        submission=Submission(
            database=services.database,
            assets=services.assets,
            chooser=chooser,
            limits=limits,
            predict=predict,
        ),
        cards=CardMaker(num_replicas),
        limits=limits,
        fetch=fetch,
        webhooks=family.router.webhooks,
        timeout_s=family.router.default_timeout_s,
    )


def repeatable_id(request: Request, prefix: Literal["job", "bat", "rol"]) -> str | None:
    """With an Idempotency-Key the id of what is made follows from it: a router that takes the
    request over from one that died finds what is there."""
    state = request.scope["state"]
    work_item, first_at = state.get("work_item"), state.get("first_at")
    return None if first_at is None else derive_id(prefix, first_at, work_item)


def states_of(status: JobStatus | None) -> Sequence[JobState]:
    """What is parked has failed, as far as a caller is told."""
    if status is None:
        return ()
    return (JobState.FAILED, JobState.PARKED) if status == "failed" else (JobState(status),)


def build_jobs_router(desk: JobDesk) -> APIRouter:
    """The routes; the stream of events is in `job_events.py`."""
    router = APIRouter(tags=["jobs"])

    @router.post(
        "/v1/jobs",
        summary="Try a product on a person, later",
        status_code=202,
        response_model=JobCard,
        responses={202: {"headers": LOCATION}, **problems(404, 422, 429, 502, 504)},
        openapi_extra={"requestBody": job_body()},
    )
    async def submit(request: Request, caller: MayUseJobs) -> Response:
        """Same body as `POST /v1/tryon`. Once this answers, the job will end, whatever dies."""
        card = await desk.submit(caller, request)
        headers = {"Location": card.links.self}
        return JSONResponse(card.model_dump(mode="json"), 202, headers)

    @router.get(
        "/v1/jobs",
        summary="List jobs",
        response_model=JobPage,
        responses=problems(),
    )
    async def list_all(
        caller: MayUseJobs,
        status: Annotated[JobStatus | None, Query()] = None,
        limit: Limit = DEFAULT_LIMIT,
        after: After = None,
    ) -> JobPage:
        return await desk.page(caller, status, after, limit)

    @router.get(
        "/v1/jobs/{job_id}",
        summary="Show a job",
        response_model=JobCard,
        responses=problems(404),
    )
    async def get(caller: MayUseJobs, job_id: str) -> JobCard:
        return await desk.get(caller, job_id)

    @router.delete(
        "/v1/jobs/{job_id}",
        summary="Cancel a job",
        response_model=JobCard,
        responses=problems(404, 409),
    )
    async def cancel(caller: MayUseJobs, job_id: str) -> JobCard:
        """One that waits is cancelled at once; one that runs stops at its next step."""
        return await desk.cancel(caller, job_id)

    @router.post(
        "/v1/jobs/{job_id}/retry",
        summary="Try a failed job again",
        status_code=202,
        response_model=JobCard,
        responses={202: {"headers": LOCATION}, **problems(404, 409, 422, 429)},
    )
    async def retry(request: Request, caller: MayUseJobs, job_id: str) -> Response:
        """As a new job on the same version; the failed one stays as it is."""
        card = await desk.repeat(caller, job_id, request)
        headers = {"Location": card.links.self}
        return JSONResponse(card.model_dump(mode="json"), 202, headers)

    return router


def job_body() -> dict[str, Any]:
    """Written out: the body is read as it streams in, so FastAPI cannot derive it."""
    binary = {"type": "string", "format": "binary"}
    pictures = {name: binary for name in ("person", "product", "mask")}
    form = {
        "type": "object",
        "required": ["expert", "person", "product"],
        "properties": {**pictures, **JobOptions.model_json_schema()["properties"]},
        "additionalProperties": False,
    }
    return {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": form},
            "application/json": {"schema": JobJson.model_json_schema()},
        },
    }
