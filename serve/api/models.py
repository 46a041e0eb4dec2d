"""`GET /v1/models`: every deployed expert version and how it stands."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Literal

from fastapi import APIRouter, Depends

from serve.api.identity import require
from serve.api.responses import problems
from serve.catalog import Catalog
from serve.experiments.book import RoutingBook
from serve.schemas.models import ModelCard, ModelList
from serve.tenancy.caller import Caller

State = Literal["ready", "starting", "idle"]
ReadStates = Callable[[], Awaitable[Mapping[str, State]]]


def build_models_router(catalog: Catalog, book: RoutingBook, read_states: ReadStates) -> APIRouter:
    router = APIRouter(tags=["models"])

    @router.get("/v1/models", summary="List expert versions", responses=problems())
    async def list_models(caller: Annotated[Caller, Depends(require())]) -> ModelList:
        """What the caller's tenant may use, and how it stands; any valid key may ask."""
        policy = caller.policy
        await book.fresh()  # the defaults among them
        states = await read_states()
        cards = (
            ModelCard(
                version=bundle.version,
                expert=bundle.expert,
                title=bundle.title,
                status=bundle.status,
                state=states.get(bundle.version, "starting"),  # it came this moment
                default=catalog.is_default(bundle, policy),
                backend=bundle.backend.kind,
                preview=bundle.is_preview,
                licence=bundle.licence.name,
                commercial_use=bundle.licence.commercial_use,
                steps=bundle.tiers.model_dump(),
            )
            for bundle in catalog.list_allowed(policy)
        )
        return ModelList(models=tuple(cards))

    return router
