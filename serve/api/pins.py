"""`/v1/pins`: collections whose pictures must be the same when they are made again."""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Response

from serve.api.identity import require
from serve.api.paging import DEFAULT_LIMIT, Limit
from serve.api.responses import problems
from serve.choosing import Chooser
from serve.experiments.pins import PinBook, dump_manifest
from serve.schemas.pins import PinCard, PinPage, PinRequest
from serve.store.columns import utc_now
from serve.store.engine import Database
from serve.store.experiment_tables import Pin
from serve.store.pins import drop_pin, get_pin, list_pins, put_pin
from serve.tenancy.caller import Caller

MayPin = Annotated[Caller, Depends(require("versions"))]
# As `collection` of a request has it; a slash belongs to it.
NAME: dict[str, Any] = {"min_length": 1, "max_length": 200, "pattern": r"^[^\x00-\x1f\x7f]*$"}
Collection = Annotated[str, Path(**NAME)]
PATH = "/v1/pins/{collection:path}"


def build_pins_router(
    database: Database, chooser: Chooser, pins: PinBook, now: Callable[[], datetime] = utc_now
) -> APIRouter:
    """The routes, bound to the store."""
    router = APIRouter(tags=["pins"])

    @router.put(PATH, summary="Pin a collection", response_model=PinCard, responses=problems(404))
    async def put(
        caller: MayPin, collection: Collection, wanted: PinRequest | None = None
    ) -> PinCard:
        """Requests with this `collection` get these versions from now on (on every router within
        5 seconds), whatever experiments, rollouts and defaults do. Pinned again it has these
        versions instead."""
        versions = None if wanted is None else wanted.versions
        manifest = dump_manifest(await chooser.pin(versions, caller.policy))
        async with database.transaction() as session:
            pin = await put_pin(session, caller.tenant_id, collection, manifest, now())
        pins.forget(caller.tenant_id, collection)
        return describe_pin(pin)

    @router.get("/v1/pins", summary="List pins", response_model=PinPage, responses=problems(404))
    async def list_all(
        caller: MayPin,
        limit: Limit = DEFAULT_LIMIT,
        after: Annotated[str | None, Query(**NAME, description="`next` of the page before")] = None,
    ) -> PinPage:
        async with database.reading() as session:
            rows = await list_pins(session, caller.tenant_id, limit=limit + 1, after=after)
        items = tuple(describe_pin(row) for row in rows[:limit])
        return PinPage(items=items, next=items[-1].collection if len(rows) > limit else None)

    @router.get(PATH, summary="Show a pin", response_model=PinCard, responses=problems(404))
    async def get(caller: MayPin, collection: Collection) -> PinCard:
        async with database.reading() as session:
            return describe_pin(await get_pin(session, caller.tenant_id, collection))

    @router.delete(PATH, summary="Free a collection", status_code=204, responses=problems(404))
    async def delete(caller: MayPin, collection: Collection) -> Response:
        """Its requests get what others get, from then on."""
        async with database.transaction() as session:
            await drop_pin(session, caller.tenant_id, collection)
        pins.forget(caller.tenant_id, collection)
        return Response(status_code=204)

    return router


def describe_pin(pin: Pin) -> PinCard:
    return PinCard.model_validate(
        {
            "collection": pin.collection,
            "versions": pin.manifest,
            "created_at": pin.created_at,
            "updated_at": pin.updated_at,
        }
    )
