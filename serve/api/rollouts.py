"""`/v1/rollouts`: a version on its way to being the default, by itself, and back by itself."""

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import JSONResponse

from serve.api.identity import require
from serve.api.jobs import repeatable_id
from serve.api.paging import DEFAULT_LIMIT, After, Limit
from serve.api.responses import problems
from serve.catalog import Catalog
from serve.config import FetchConfig
from serve.designs import RolloutPlan
from serve.errors import Conflict, NotFound
from serve.experiments.book import RoutingBook
from serve.experiments.steering import Steering
from serve.fetching.post import check_webhook_url
from serve.messages import Expert
from serve.schemas.rollouts import DecisionPage, NewRollout, RolloutCard, RolloutPage
from serve.store.engine import Database
from serve.store.ids import ID
from serve.store.rollout_cards import describe_decision, describe_rollout
from serve.store.rollout_tables import Rollout
from serve.store.rollouts import get_rollout, list_decisions, list_rollouts
from serve.tenancy.caller import Caller

LOCATION = {"Location": {"schema": {"type": "string"}}}
Admin = Annotated[Caller, Depends(require("admin"))]
RolloutId = Annotated[str, Path(pattern=f"^{ID.pattern}$")]
Act = Callable[[str, str], Awaitable[Rollout]]


def build_rollouts_router(
    database: Database,
    catalog: Catalog,
    book: RoutingBook,
    steering: Steering,
    webhooks: FetchConfig,
) -> APIRouter:
    """The routes, bound to the store."""
    router = APIRouter(prefix="/v1/rollouts", tags=["rollouts"])
    _add_beginning(router, catalog, book, steering, webhooks)
    _add_reading(router, database)
    for name, summary, description, act in (
        ("pause", "Decide nothing for a while", "Weights stay as they are.", steering.pause),
        (
            "resume",
            "Go on",
            "A stage that was frozen begins anew: what was seen before no longer counts.",
            steering.resume,
        ),
        (
            "abort",
            "Go back at once and for good",
            "Everybody gets the version it was against within 5 seconds.",
            steering.abort,
        ),
        (
            "approve",
            "Let the present stage be left",
            "Only for stages that ask for it; its numbers must say so too.",
            steering.approve,
        ),
    ):
        _add_act(router, book, name, summary, f"{description} Asked twice, it is done once.", act)
    return router


def _add_beginning(
    router: APIRouter,
    catalog: Catalog,
    book: RoutingBook,
    steering: Steering,
    webhooks: FetchConfig,
) -> None:
    @router.post(
        "",
        status_code=201,
        summary="Roll a version out",
        response_model=RolloutCard,
        responses={201: {"headers": LOCATION}, **problems(404, 409)},
    )
    async def begin(request: Request, caller: Admin, plan: NewRollout) -> Response:
        """It begins when the version is ready, and goes on by itself: upwards while nothing is
        worse, back within 10 seconds of knowing that something is."""
        if plan.webhook_url is not None:
            check_webhook_url(plan.webhook_url, webhooks)
        await book.renew()  # another router may have changed the default a second ago
        seen_default = (await book.fresh()).defaults.get(plan.expert)
        settled = _settle(catalog, plan)
        rollout = await steering.begin(
            caller.key_id,
            caller.tenant_id,
            settled,
            repeatable_id(request, "rol"),
            seen_default=seen_default,
        )
        card = describe_rollout(rollout).model_dump(mode="json")
        return JSONResponse(card, 201, {"Location": f"/v1/rollouts/{rollout.id}"})


def _settle(catalog: Catalog, plan: RolloutPlan) -> RolloutPlan:
    """The plan with what it is against, where both are served.

    Raises:
        NotFound: a version that nobody deployed.
        Conflict: it is against something that is not the default.
    """
    _require_served(catalog, plan.expert, plan.version)
    default = catalog.find_default(plan.expert)
    standing = plan.version if default is None else default.version
    if plan.version == standing:
        raise Conflict(
            f"{plan.version} is the default of {plan.expert} already",
            remedy="roll another version out",
        )
    if plan.against not in (None, standing):
        raise Conflict(
            f"the default of {plan.expert} is {standing}, not {plan.against}: everybody would "
            "change versions at once",
            remedy=f"leave `against` out, or compare the two: POST /v1/experiments ({standing} "
            "stays the default)",
        )
    return RolloutPlan.model_validate({**plan.model_dump(), "against": standing})


def _require_served(catalog: Catalog, expert: Expert, version: str) -> None:
    known = [bundle.version for bundle in catalog if bundle.expert == expert]
    if version not in known:
        raise NotFound(
            f"{version!r} is not deployed; of {expert!r} there is: {', '.join(known) or 'none'}",
            remedy=f"deploy it first: sm4ll experts deploy {version}",
        )


def _add_reading(router: APIRouter, database: Database) -> None:
    @router.get("", summary="List rollouts", responses=problems(404))
    async def list_all(_: Admin, limit: Limit = DEFAULT_LIMIT, after: After = None) -> RolloutPage:
        async with database.reading() as session:
            rows = await list_rollouts(session, limit=limit + 1, after=after)
        items = tuple(map(describe_rollout, rows[:limit]))
        return RolloutPage(items=items, next=items[-1].id if len(rows) > limit else None)

    @router.get("/{rollout_id}", summary="Get a rollout", responses=problems(404))
    async def get(rollout_id: RolloutId, _: Admin) -> RolloutCard:
        async with database.reading() as session:
            return describe_rollout(await get_rollout(session, rollout_id))

    @router.get("/{rollout_id}/decisions", summary="List what was decided", responses=problems(404))
    async def list_log(
        rollout_id: RolloutId,
        _: Admin,
        limit: Limit = DEFAULT_LIMIT,
        after: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None,
    ) -> DecisionPage:
        """Each with the numbers that made it."""
        async with database.reading() as session:
            await get_rollout(session, rollout_id)
            rows = await list_decisions(session, rollout_id, limit=limit + 1, before=after)
        items = tuple(map(describe_decision, rows[:limit]))
        return DecisionPage(
            items=items, next=str(items[-1].sequence) if len(rows) > limit else None
        )


def _add_act(
    router: APIRouter, book: RoutingBook, name: str, summary: str, description: str, act: Act
) -> None:
    async def answer(rollout_id: RolloutId, caller: Admin) -> RolloutCard:
        rollout = await act(caller.key_id, rollout_id)
        await book.renew()
        return describe_rollout(rollout)

    router.add_api_route(
        f"/{{rollout_id}}/{name}",
        answer,
        methods=["POST"],
        name=f"{name}_rollout",
        summary=summary,
        description=description,
        response_model=RolloutCard,
        responses=problems(404, 409),
    )
