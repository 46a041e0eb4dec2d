"""`GET /v1/models`: every deployed expert version and how it stands."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Literal

from fastapi import APIRouter

from serve.catalog import Catalog
from serve.schemas.models import ModelCard, ModelList

State = Literal["ready", "starting", "idle"]
ReadStates = Callable[[], Awaitable[Mapping[str, State]]]


def build_models_router(catalog: Catalog, read_states: ReadStates) -> APIRouter:
    router = APIRouter(tags=["models"])

    @router.get("/v1/models", summary="List expert versions")
    async def list_models() -> ModelList:
        states = await read_states()
        cards = (
            ModelCard(
                version=bundle.version,
                expert=bundle.expert,
                title=bundle.title,
                status=bundle.status,
                state=states[bundle.version],
                default=catalog.is_default(bundle),
                backend=bundle.backend.kind,
                preview=bundle.is_preview,
                licence=bundle.licence.name,
                commercial_use=bundle.licence.commercial_use,
                steps=bundle.tiers.model_dump(),
            )
            for bundle in catalog
        )
        return ModelList(models=tuple(cards))

    return router
