"""`GET /v1/experiments/{id}/report`: what an experiment has shown so far, as JSON or as a page."""

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, JSONResponse

from serve.api.experiments import ExperimentId
from serve.api.identity import require_any
from serve.api.responses import problems
from serve.designs import ExperimentDesign
from serve.errors import NotFound
from serve.experiments.allocation import load_allocation
from serve.experiments.assignment import may_use_all
from serve.experiments.report import Period, Question, build_report
from serve.imaging.limits import ImageLimits
from serve.reporting.page import render_report
from serve.reporting.thumbnails import make_thumbnail
from serve.schemas.reports import Report
from serve.store.columns import utc_now
from serve.store.engine import Database
from serve.store.experiments import get_experiment, list_ranges
from serve.store.exposures import Seen, read_exposures
from serve.tenancy.assets import AssetStore
from serve.tenancy.caller import Caller

MAX_EXPOSURES = 200_000
HTML = "text/html"
# It holds its own style and pictures, and no script.
SEALED = {
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'",
    "Vary": "Accept",
}
Reader = Annotated[Caller, Depends(require_any("review", "admin"))]
PAGE: dict[str, Any] = {"content": {HTML: {"schema": {"type": "string"}}}}


def build_reports_router(
    database: Database,
    assets: AssetStore,
    limits: ImageLimits,
    now: Callable[[], datetime] = utc_now,
) -> APIRouter:
    """The route, bound to the store."""
    router = APIRouter(tags=["experiments"])
    one_at_a_time = asyncio.Lock()

    @router.get(
        "/v1/experiments/{experiment_id}/report",
        summary="What an experiment has shown so far",
        response_model=Report,
        responses={200: PAGE, **problems(404)},
    )
    async def report(
        request: Request,
        caller: Reader,
        experiment_id: ExperimentId,
        revision: Annotated[
            int | None, Query(ge=1, le=2**31 - 1, description="only under this allocation")
        ] = None,
    ) -> Response:
        """Of all tenants for a key with the scope `admin`, of the key's own otherwise; pictures
        are the key's own tenant's always. With `Accept: text/html` it is one page.

        It may be read every minute: its numbers hold at every look."""
        # A second of a processor that also serves try-ons: never several of them at once.
        async with one_at_a_time:
            question, seen = await _read(database, caller, experiment_id, revision, now())
            made = await run_in_threadpool(build_report, question, seen)
            if HTML not in request.headers.get("accept", ""):
                content = await run_in_threadpool(made.model_dump, mode="json")
                return JSONResponse(content, headers={"Vary": "Accept"})
            thumbnails = await _load_thumbnails(assets, caller.tenant_id, made, limits)
            page = await run_in_threadpool(render_report, made, thumbnails)
            return HTMLResponse(page, headers=SEALED)

    return router


async def _read(
    database: Database,
    caller: Caller,
    experiment_id: str,
    revision: int | None,
    now: datetime,
) -> tuple[Question, list[Seen]]:
    tenant = None if "admin" in caller.scopes else caller.tenant_id
    async with database.reading() as session:
        experiment = await get_experiment(session, experiment_id)
        design = ExperimentDesign.model_validate(experiment.design)
        allocations = await list_ranges(session, experiment_id)
        periods = {
            one.revision: Period(allocation=load_allocation(one.ranges), at=one.at)
            for one in allocations
        }
        seen = await read_exposures(session, experiment_id, tenant_id=tenant, limit=MAX_EXPOSURES)
    audience = design.audience
    is_outsider = tenant is not None and (
        tenant in audience.denied_tenants
        or (audience.tenants is not None and tenant not in audience.tenants)
        or not may_use_all(design, caller.policy)
    )
    if is_outsider and not seen:
        # In the words of the store: what is not for a tenant does not exist for it.
        raise NotFound(
            f"there is no experiment {experiment_id!r}", remedy="GET /v1/experiments lists them"
        )
    question = Question(
        design=design,
        state=experiment.state.value,
        periods=periods,
        caller_tenant=caller.tenant_id,
        tenant=tenant,
        revision=revision,
        now=now,
        is_cut=len(seen) >= MAX_EXPOSURES,
    )
    return question, seen


async def _load_thumbnails(
    assets: AssetStore, tenant_id: str, report: Report, limits: ImageLimits
) -> dict[str, str]:
    found: dict[str, str] = {}
    for asset_id in report.picture_ids():
        try:
            data = await assets.load(tenant_id, asset_id, is_live=True)
        except NotFound:
            continue
        thumbnail = await run_in_threadpool(make_thumbnail, data, limits)
        if thumbnail is not None:
            found[asset_id] = thumbnail
    return found
