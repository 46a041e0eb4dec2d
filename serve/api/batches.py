"""`/v1/batches`: every product on every person, estimated, started, paused and told at the end."""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.responses import JSONResponse, Response

from serve.api.batch_cards import describe_batch, describe_cell, describe_entry, describe_summary
from serve.api.identity import require
from serve.api.jobs import repeatable_id, states_of
from serve.api.paging import DEFAULT_LIMIT, After, Limit
from serve.api.responses import problems
from serve.catalog import Catalog
from serve.choosing import Chooser
from serve.errors import Conflict
from serve.imaging.limits import ImageLimits
from serve.jobs.batches import Batches, UrlRules
from serve.jobs.matrix import read_spec
from serve.jobs.quote import PredictUnits
from serve.jobs.submission import Submission
from serve.schemas.batches import (
    MAX_CELLS,
    BatchCard,
    BatchCounts,
    BatchPage,
    BatchRequest,
    CellPage,
    Manifest,
)
from serve.schemas.jobs import JobStatus
from serve.services import Services
from serve.store.batch_progress import count_cells
from serve.store.batches import get_batch, list_batches, read_cells
from serve.tenancy.caller import Caller

MayUseJobs = Annotated[Caller, Depends(require("jobs"))]
Cell = Annotated[int, Path(ge=0, lt=MAX_CELLS)]
LOCATION = {"Location": {"schema": {"type": "string"}}}
Act = Callable[[Caller, str], Coroutine[Any, Any, object]]


def open_batches(
    services: Services,
    chooser: Chooser,
    catalog: Catalog,
    limits: ImageLimits,
    predict: PredictUnits,
) -> Batches:
    family = catalog.family
    return Batches(
        database=services.database,
        submission=Submission(
            database=services.database,
            assets=services.assets,
            chooser=chooser,
            limits=limits,
            predict=predict,
        ),
        rules=UrlRules(pictures=family.router.fetch, webhooks=family.router.webhooks),
        num_replicas={
            deployed.version: family.replicas_of(deployed).autoscaling.max_replicas
            for deployed in family.experts
        },
    )


def build_batches_router(batches: Batches) -> APIRouter:
    router = APIRouter(tags=["batches"])
    _add_making(router, batches)
    _add_reading(router, batches)
    for name, summary, act, statuses in (
        ("start", "Start a draft", batches.start, (404, 409, 422, 429)),
        ("pause", "Begin no more cells", batches.pause, (404, 409)),
        ("resume", "Go on with a paused batch", batches.resume, (404, 409)),
        ("cancel", "Cancel all that is not done", batches.cancel, (404, 409)),
        ("retry", "Try all failed cells again", batches.retry, (404, 409, 422, 429)),
    ):
        _add_act(router, batches, name, summary, act, statuses)
    return router


async def show(batches: Batches, caller: Caller, batch_id: str) -> BatchCard:
    async with batches.database.reading() as session:
        batch = await get_batch(session, caller.tenant_id, batch_id)
        counts = await count_cells(session, caller.tenant_id, batch_id)
    return describe_batch(batch, counts, await batches.estimate(caller, batch))


def _add_making(router: APIRouter, batches: Batches) -> None:
    @router.post(
        "/v1/batches",
        summary="Try many products on many persons",
        status_code=201,
        response_model=BatchCard,
        responses={201: {"headers": LOCATION}, **problems(404, 422, 429)},
    )
    async def make(request: Request, caller: MayUseJobs, wanted: BatchRequest) -> Response:
        """A draft with an estimate, unless `start` is true. One bad cell spoils no other."""
        batch = await batches.make(caller, wanted, repeatable_id(request, "bat"))
        card = await show(batches, caller, batch.id)
        return JSONResponse(card.model_dump(mode="json"), 201, {"Location": card.links.self})

    @router.post(
        "/v1/batches/{batch_id}/cells/{cell}/retry",
        summary="Try one failed cell again",
        response_model=BatchCard,
        responses=problems(404, 409, 422, 429),
    )
    async def retry_cell(caller: MayUseJobs, batch_id: str, cell: Cell) -> BatchCard:
        await batches.retry(caller, batch_id, cell)
        return await show(batches, caller, batch_id)


def _add_act(
    router: APIRouter,
    batches: Batches,
    name: str,
    summary: str,
    act: Act,
    statuses: tuple[int, ...],
) -> None:
    async def answer(caller: MayUseJobs, batch_id: str) -> BatchCard:
        await act(caller, batch_id)
        return await show(batches, caller, batch_id)

    router.add_api_route(
        f"/v1/batches/{{batch_id}}/{name}",
        answer,
        methods=["POST"],
        name=f"{name}_batch",
        summary=summary,
        description="Asked twice, it is done once.",
        response_model=BatchCard,
        responses=problems(*statuses),
    )


def _add_reading(router: APIRouter, batches: Batches) -> None:
    @router.get(
        "/v1/batches", summary="List batches", response_model=BatchPage, responses=problems()
    )
    async def list_all(
        caller: MayUseJobs, limit: Limit = DEFAULT_LIMIT, after: After = None
    ) -> BatchPage:
        async with batches.database.reading() as session:
            page = await list_batches(session, caller.tenant_id, after=after, limit=limit + 1)
        items = tuple(describe_summary(batch) for batch in page[:limit])
        return BatchPage(items=items, next=items[-1].id if len(page) > limit else None)

    @router.get(
        "/v1/batches/{batch_id}",
        summary="Show a batch",
        response_model=BatchCard,
        responses=problems(404),
    )
    async def get(caller: MayUseJobs, batch_id: str) -> BatchCard:
        return await show(batches, caller, batch_id)

    @router.get(
        "/v1/batches/{batch_id}/cells",
        summary="List the cells of a batch",
        response_model=CellPage,
        responses=problems(404),
    )
    async def list_cells(
        caller: MayUseJobs,
        batch_id: str,
        status: JobStatus | None = None,
        limit: Limit = DEFAULT_LIMIT,
        after: Annotated[int, Query(ge=-1, lt=MAX_CELLS)] = -1,
    ) -> CellPage:
        async with batches.database.reading() as session:
            batch = await get_batch(session, caller.tenant_id, batch_id)
            page = await read_cells(
                session, batch, states=states_of(status), after=after, limit=limit + 1
            )
        spec = read_spec(batch)
        items = tuple(describe_cell(job, spec.place(job.cell or 0)) for job in page[:limit])
        return CellPage(items=items, next=items[-1].cell if len(page) > limit else None)

    @router.get(
        "/v1/batches/{batch_id}/manifest",
        summary="Tell what became of every cell",
        response_model=Manifest,
        responses=problems(404, 409),
    )
    async def manifest(caller: MayUseJobs, batch_id: str) -> Response:
        """Once the batch has finished, or was cancelled and its last cell has stopped."""
        made = await read_manifest(batches, caller, batch_id)
        # Validated once already: ten thousand cells need not be a second time.
        return Response(made.model_dump_json(), media_type="application/json")


async def read_manifest(batches: Batches, caller: Caller, batch_id: str) -> Manifest:
    """
    Raises:
        NotFound: the tenant has no such batch.
        Conflict: it has not ended.
    """
    async with batches.database.reading() as session:
        batch = await get_batch(session, caller.tenant_id, batch_id)
        if batch.finished_at is None:
            raise Conflict(
                f"The batch is {batch.state.value}: "
                f"{batch.num_ended} of {batch.num_cells} cells have ended.",
                remedy="wait for its webhook, or poll its progress",
            )
        counts = await count_cells(session, caller.tenant_id, batch_id)
        jobs = await read_cells(session, batch)
    spec = read_spec(batch)
    return Manifest(
        batch=batch.id,
        status=batch.state.value,
        version=batch.version,
        counts=BatchCounts(**counts),
        finished_at=batch.finished_at,
        cells=tuple(describe_entry(job, spec.place(job.cell or 0)) for job in jobs),
    )
