"""`/v1/versions`: expert versions that are added to the running cluster, and taken away again."""

import json
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query
from pydantic import ValidationError

from serve.api.identity import require
from serve.api.paging import DEFAULT_LIMIT, Limit
from serve.api.problems import invalid_fields
from serve.api.responses import problems
from serve.errors import InvalidRequest
from serve.experiments.versions import ServedVersions, Wish, read_wish
from serve.schemas.versions import VERSION_NAME, NewVersion, VersionCard, VersionPage
from serve.store.engine import Database
from serve.store.experiment_tables import ServedVersion
from serve.store.served import get_served, list_served
from serve.tenancy.caller import Caller

ADMIN_ONLY = "Needs a key with the scope `admin`: versions are the cluster's, not a tenant's."
MAX_WISH_BYTES = 256 * 1024

Admin = Annotated[Caller, Depends(require("admin"))]
VersionPath = Annotated[str, Path(pattern=VERSION_NAME, max_length=80)]


def build_versions_router(database: Database, versions: ServedVersions) -> APIRouter:
    router = APIRouter(prefix="/v1/versions", tags=["versions"])

    @router.post(
        "", status_code=202, summary="Serve another version",
        description=f"{ADMIN_ONLY} Its replicas are started beside everything else, which goes on "
        "as it is; `GET` it until its state is `ready` or `failed`. A version that failed is tried "
        "again when it is sent again, changed or not; any other never changes.",
        responses=problems(409),
    )  # fmt: skip
    async def add(new: NewVersion, caller: Admin) -> VersionCard:
        return _card(await versions.add(caller.key_id, _read(new)))

    @router.get(
        "", summary="List added versions",
        description=f"{ADMIN_ONLY} Those of the family file are not among them; "
        "`GET /v1/models` lists all that run.",
        responses=problems(404),
    )  # fmt: skip
    async def list_all(
        caller: Admin,
        limit: Limit = DEFAULT_LIMIT,
        after: Annotated[str | None, Query(pattern=VERSION_NAME, max_length=80)] = None,
    ) -> VersionPage:
        async with database.reading() as session:
            rows = await list_served(session, limit=limit + 1, after=after)
        cards = tuple(map(_card, rows[:limit]))
        return VersionPage(items=cards, next=cards[-1].version if len(rows) > limit else None)

    @router.get(
        "/{version}", summary="Get an added version", description=ADMIN_ONLY,
        responses=problems(404),
    )  # fmt: skip
    async def get(version: VersionPath, caller: Admin) -> VersionCard:
        async with database.reading() as session:
            return _card(await get_served(session, version))

    @router.delete(
        "/{version}", status_code=202, summary="Serve a version no more",
        description=f"{ADMIN_ONLY} Requests that have it go on to their end. Refused while "
        "requests that name no version may get it: as a default, an arm, in a rollout, by a pin.",
        responses=problems(404, 409),
    )  # fmt: skip
    async def remove(version: VersionPath, caller: Admin) -> VersionCard:
        return _card(await versions.remove(caller.key_id, version))

    return router


def _read(new: NewVersion) -> Wish:
    """
    Raises:
        InvalidRequest: names the field.
    """
    try:
        told = json.dumps(new.model_dump(), allow_nan=False, ensure_ascii=False).encode()
    except ValueError as exc:
        raise InvalidRequest(
            "a number is not finite, or a text is no Unicode", remedy="say it in plain JSON"
        ) from exc
    if len(told) > MAX_WISH_BYTES:
        raise InvalidRequest(f"the bundle is described in more than {MAX_WISH_BYTES // 1024} KiB")
    if b"\\u0000" in told:
        raise InvalidRequest("a text contains a NUL character", remedy="leave it out")
    try:
        return read_wish(new.bundle, new.deployed, new.home)
    except ValidationError as exc:
        raise invalid_fields(exc) from exc


def _card(row: ServedVersion) -> VersionCard:
    try:
        fingerprint = read_wish(row.bundle, row.deployed, row.home).bundle.fingerprint
    except ValidationError:
        fingerprint = None
    return VersionCard(
        version=row.version,
        state=row.state.value,
        reason=row.reason or None,
        bundle=row.bundle,
        bundle_sha256=fingerprint,
        deployed=row.deployed,
        home=row.home,
        created_by=row.created_by,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
