"""`/v1/experts`: which version of each expert is the cluster's default."""

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Depends

from serve.api.identity import require
from serve.api.responses import problems
from serve.catalog import Catalog
from serve.experiments.book import RoutingBook
from serve.experiments.defaults import Defaults
from serve.messages import EXPERTS, Expert
from serve.schemas.experts import DefaultChange, ExpertCard, ExpertList
from serve.store.experiment_tables import ExpertDefault
from serve.tenancy.caller import Caller

Admin = Annotated[Caller, Depends(require("admin"))]


def build_experts_router(catalog: Catalog, book: RoutingBook, defaults: Defaults) -> APIRouter:
    """The routes, bound to the store."""
    router = APIRouter(tags=["experts"])

    @router.get(
        "/v1/experts",
        summary="List experts and their defaults",
        response_model=ExpertList,
        responses=problems(),
    )
    async def list_all(_: Admin) -> ExpertList:
        await book.fresh()
        rows = await defaults.list()
        known = {bundle.expert for bundle in catalog} | set(rows)
        cards = (describe_expert(catalog, rows, name) for name in EXPERTS if name in known)
        return ExpertList(items=tuple(cards))

    @router.put(
        "/v1/experts/{expert}/default",
        summary="Set an expert's default",
        response_model=ExpertCard,
        responses=problems(404, 409),
    )
    async def change(caller: Admin, expert: Expert, wanted: DefaultChange) -> ExpertCard:
        """On every router within 5 seconds; nothing is restarted. Refused while a rollout of the
        expert is open."""
        await book.fresh()
        bundle = catalog.choose(expert, wanted.version).bundle
        before = catalog.find_default(expert)
        instead_of = None if before is None else before.version
        await defaults.set(caller.key_id, expert, bundle.version, instead_of)
        await book.renew()
        return describe_expert(catalog, await defaults.list(), expert)

    @router.delete(
        "/v1/experts/{expert}/default",
        summary="Let the family file decide again",
        response_model=ExpertCard,
        responses=problems(409),
    )
    async def clear(caller: Admin, expert: Expert) -> ExpertCard:
        """As above; it does nothing where nobody set one."""
        await defaults.clear(caller.key_id, expert)
        await book.renew()
        return describe_expert(catalog, await defaults.list(), expert)

    return router


def describe_expert(
    catalog: Catalog, rows: Mapping[str, ExpertDefault], expert: Expert
) -> ExpertCard:
    default = catalog.find_default(expert)
    version = None if default is None else default.version
    row = rows.get(expert)
    return ExpertCard(
        expert=expert,
        default=version,
        source="cluster" if row is not None and row.version == version else "family",
        set=None if row is None else row.version,
        previous=None if row is None else row.previous,
        changed_by=None if row is None else row.changed_by,
        changed_at=None if row is None else row.changed_at,
        versions=tuple(bundle.version for bundle in catalog if bundle.expert == expert),
    )
