"""`/v1/experiments`: which versions are compared, on whom, and who gets which."""

from typing import Annotated, get_args

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import JSONResponse

from serve.api.experiment_cards import answer_question, describe_experiment, list_allocations
from serve.api.identity import require
from serve.api.paging import DEFAULT_LIMIT, Limit
from serve.api.problems import request_id_of
from serve.api.responses import problems
from serve.experiments.assignment import Party
from serve.experiments.book import RoutingBook
from serve.experiments.desk import ExperimentDesk, Verb, read_standing
from serve.policy import TenantPolicy
from serve.schemas.experiments import (
    AllocationList,
    AssignmentAnswer,
    ExperimentCard,
    ExperimentPage,
    NewExperiment,
    Reason,
    WeightsChange,
)
from serve.schemas.tenants import TENANT_ID
from serve.schemas.tryon import Word
from serve.store.engine import Database
from serve.store.experiments import get_experiment, list_experiments, list_ranges
from serve.store.tenants import get_tenant
from serve.tenancy.caller import Caller

SLUG = r"^[a-z0-9][a-z0-9_-]{0,39}$"
LOCATION = {"Location": {"schema": {"type": "string"}}}
ExperimentId = Annotated[str, Path(pattern=SLUG)]
Admin = Annotated[Caller, Depends(require("admin"))]
IN_FORCE = "In force on every router within 5 seconds; nothing is restarted."
SUMMARIES: dict[Verb, str] = {
    "start": "Start a draft",
    "pause": "Assign nobody for a while",
    "resume": "Go on with a paused or frozen one",
    "end": "End it for good",
}


def build_experiments_router(
    database: Database, desk: ExperimentDesk, book: RoutingBook
) -> APIRouter:
    """The routes, bound to the store."""
    router = APIRouter(prefix="/v1/experiments", tags=["experiments"])
    _add_making(router, desk, book)
    _add_reading(router, database)
    _add_changing(router, desk, book)
    _add_question(router, database, desk)
    return router


def _add_making(router: APIRouter, desk: ExperimentDesk, book: RoutingBook) -> None:
    @router.post(
        "",
        status_code=201,
        summary="Compare versions",
        response_model=ExperimentCard,
        responses={
            200: {"model": ExperimentCard, "description": "It was made before, like this"},
            201: {"headers": LOCATION},
            **problems(409),
        },
    )
    async def create(caller: Admin, new: NewExperiment) -> Response:
        """A draft, unless `start` is true. The same design again is the same experiment; another
        under the same id is refused (409)."""
        await book.fresh()
        made = await desk.create(caller.key_id, new.design, start=new.start)
        await book.renew()
        card = describe_experiment(made.standing).model_dump(mode="json")
        headers = {"Location": f"/v1/experiments/{new.id}"}
        return JSONResponse(card, 201 if made.is_new else 200, headers)


def _add_reading(router: APIRouter, database: Database) -> None:
    @router.get("", summary="List experiments", responses=problems(404))
    async def list_all(
        _: Admin,
        limit: Limit = DEFAULT_LIMIT,
        after: Annotated[str | None, Query(pattern=SLUG)] = None,
    ) -> ExperimentPage:
        async with database.reading() as session:
            rows = await list_experiments(session, limit=limit + 1, after=after)
            shown = [await read_standing(session, row) for row in rows[:limit]]
        cards = tuple(map(describe_experiment, shown))
        return ExperimentPage(items=cards, next=cards[-1].id if len(rows) > limit else None)

    @router.get("/{experiment_id}", summary="Get an experiment", responses=problems(404))
    async def get(experiment_id: ExperimentId, _: Admin) -> ExperimentCard:
        async with database.reading() as session:
            row = await get_experiment(session, experiment_id)
            return describe_experiment(await read_standing(session, row))

    @router.get(
        "/{experiment_id}/allocations",
        summary="List what its weights were",
        responses=problems(404),
    )
    async def list_history(experiment_id: ExperimentId, _: Admin) -> AllocationList:
        """The first one first: who got which arm at any time is in here."""
        async with database.reading() as session:
            await get_experiment(session, experiment_id)
            return list_allocations(await list_ranges(session, experiment_id))


def _add_changing(router: APIRouter, desk: ExperimentDesk, book: RoutingBook) -> None:
    @router.put(
        "/{experiment_id}/weights",
        summary="Move the weights",
        description=f"Only units of arms that shrink change hands. {IN_FORCE}",
        responses=problems(404, 409),
    )
    async def weigh(
        experiment_id: ExperimentId, caller: Admin, change: WeightsChange
    ) -> ExperimentCard:
        standing = await desk.weigh(
            caller.key_id,
            experiment_id,
            change.weights,
            reason=change.reason,
            revision=change.revision,
        )
        await book.renew()
        return describe_experiment(standing)

    for verb in get_args(Verb):
        _add_verb(router, desk, book, verb)


def _add_verb(router: APIRouter, desk: ExperimentDesk, book: RoutingBook, verb: Verb) -> None:
    async def act(
        experiment_id: ExperimentId,
        caller: Admin,
        reason: Annotated[Reason, Query(description="kept with it")] = "",
    ) -> ExperimentCard:
        await book.fresh()
        standing = await desk.act(caller.key_id, experiment_id, verb, reason)
        await book.renew()
        return describe_experiment(standing)

    router.add_api_route(
        f"/{{experiment_id}}/{verb}",
        act,
        methods=["POST"],
        name=f"{verb}_experiment",
        summary=SUMMARIES[verb],
        description=f"Asked twice, it is done once. {IN_FORCE}",
        response_model=ExperimentCard,
        responses=problems(404, 409),
    )


def _add_question(router: APIRouter, database: Database, desk: ExperimentDesk) -> None:
    @router.get(
        "/{experiment_id}/assignment",
        summary="Ask who gets which arm",
        responses=problems(404),
    )
    async def explain(
        request: Request,
        experiment_id: ExperimentId,
        caller: Admin,
        unit: Annotated[Word | None, Query(description="a user, as requests name it")] = None,
        sku: Annotated[Word | None, Query()] = None,
        collection: Annotated[Word | None, Query()] = None,
        tenant: Annotated[
            str | None, Query(pattern=TENANT_ID, description="your own when absent")
        ] = None,
        key: Annotated[Word | None, Query(description="the id of a key")] = None,
    ) -> AssignmentAnswer:
        """What a request would get that says this and names no version, and why it would take no
        part. Nothing is written: no exposure comes of it."""
        policy = caller.policy
        if tenant is not None:
            async with database.reading() as session:
                row = await get_tenant(session, tenant)
            policy = TenantPolicy.model_validate(row.policy)
        party = Party(
            tenant_id=tenant or caller.tenant_id,
            request_id=request_id_of(request),
            key_id=key,
            user=unit,
            sku=sku,
            collection=collection,
        )
        standing, found = await desk.explain(experiment_id, party, policy)
        return answer_question(standing, found)
