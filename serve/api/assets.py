"""`/v1/assets`: pictures that are uploaded once and used by id, and their deletion."""

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import TypeAdapter, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.responses import JSONResponse, Response

from serve.api.forms import read_multipart
from serve.api.identity import require_any
from serve.api.paging import DEFAULT_LIMIT, After, Limit
from serve.api.problems import invalid_fields
from serve.api.responses import problems
from serve.errors import InvalidRequest
from serve.imaging.inspection import inspect_picture
from serve.imaging.limits import ImageLimits
from serve.imaging.spool import read_encoded
from serve.schemas.assets import AssetCard, AssetDeletion, AssetPage, Kind, Subject
from serve.store.tables import Asset, AssetKind
from serve.tenancy.assets import AssetStore, check_uploads_kept
from serve.tenancy.caller import Caller
from serve.tenancy.erasure import Erasure

SUBJECT: TypeAdapter[str] = TypeAdapter(Subject)
MAY_USE = require_any("tryon", "jobs")
User = Annotated[Caller, Depends(MAY_USE)]
KEPT_BY_CALLER = {"Cache-Control": "private, max-age=3600"}
EXTENSIONS = {"image/jpeg": "jpg", "application/zip": "zip"}


def build_assets_router(assets: AssetStore, erasure: Erasure, limits: ImageLimits) -> APIRouter:
    """The routes, bound to the store and to what deletes from all places."""
    router = APIRouter(tags=["assets"])

    @router.post(
        "/v1/assets",
        summary="Upload a picture",
        status_code=201,
        response_model=AssetCard,
        responses={
            200: {"model": AssetCard, "description": "It was uploaded before"},
            201: {"headers": {"Location": {"schema": {"type": "string"}}}},
            **problems(422),
        },
        openapi_extra={"requestBody": _request_body()},
    )
    async def upload(
        request: Request,
        caller: User,
        subject: Annotated[
            str, Query(max_length=128, description="as the form part, where the body is the file")
        ] = "",
    ) -> Response:
        """The same bytes again, for the same subject, are the same asset, kept longer."""
        check_uploads_kept(caller.policy)
        data, named = await _read_upload(request, limits.max_bytes)
        facts = inspect_picture(data, limits)
        stored = await assets.keep(
            caller.tenant_id,
            caller.policy,
            AssetKind.INPUT,
            data,
            facts.media_type,
            _check_subject(subject if named is None else named),
            width_px=facts.width_px,
            height_px=facts.height_px,
        )
        card = describe_asset(stored.asset).model_dump(mode="json")
        headers = {"Location": f"/v1/assets/{stored.asset.id}"}
        return JSONResponse(card, 201 if stored.is_new else 200, headers)

    @router.get(
        "/v1/assets",
        summary="List pictures",
        response_model=AssetPage,
        responses=problems(),
    )
    async def list_all(
        caller: User,
        kind: Kind | None = None,
        subject: Annotated[Subject | None, Query()] = None,
        limit: Limit = DEFAULT_LIMIT,
        after: After = None,
    ) -> AssetPage:
        page = await assets.page(
            caller.tenant_id,
            kind=None if kind is None else AssetKind(kind),
            subject=subject,
            after=after,
            limit=limit + 1,
        )
        items = tuple(describe_asset(asset) for asset in page[:limit])
        return AssetPage(items=items, next=items[-1].id if len(page) > limit else None)

    @router.get(
        "/v1/assets/{asset_id}",
        summary="Describe a picture",
        response_model=AssetCard,
        responses=problems(404),
    )
    async def get(caller: User, asset_id: str) -> AssetCard:
        return describe_asset(await assets.find(caller.tenant_id, asset_id))

    @router.get(
        "/v1/assets/{asset_id}/content",
        summary="Download a picture",
        response_class=Response,
        responses=_content_responses(),
    )
    async def content(request: Request, caller: User, asset_id: str) -> Response:
        """The bytes as they were uploaded or made. Their ETag is their SHA-256."""
        asset = await assets.find(caller.tenant_id, asset_id)
        headers = {"ETag": f'"{asset.sha256}"', **KEPT_BY_CALLER, **_as_file(asset)}
        if _has_already(request.headers.get("if-none-match", ""), asset.sha256):
            return Response(None, 304, headers)
        data = await assets.load(caller.tenant_id, asset_id, is_live=True)
        return Response(data, 200, headers, asset.media_type)

    @router.delete(
        "/v1/assets/{asset_id}",
        summary="Delete a picture",
        response_model=AssetDeletion,
        responses=problems(404),
    )
    async def delete(caller: User, asset_id: str) -> AssetDeletion:
        """Row, bytes and what replicas remember of them are gone when this answers; the audit
        log keeps the proof."""
        deleted = await erasure.delete(caller.tenant_id, asset_id, caller.key_id)
        return AssetDeletion(
            id=deleted.id,
            kind=deleted.kind.value,
            sha256=deleted.sha256,
            num_bytes=deleted.num_bytes,
            is_blob_deleted=deleted.is_blob_deleted,
            deleted_at=datetime.now(UTC),
        )

    return router


def describe_asset(asset: Asset) -> AssetCard:
    return AssetCard(
        id=asset.id,
        kind=asset.kind.value,
        sha256=asset.sha256,
        num_bytes=asset.num_bytes,
        media_type=asset.media_type,
        width=asset.width_px,
        height=asset.height_px,
        subject=asset.subject,
        created_at=asset.created_at,
        expires_at=asset.expires_at,
    )


async def _read_upload(request: Request, max_bytes: int) -> tuple[bytes, str | None]:
    """The file, and the subject where the form names one."""
    content_type, parameters = parse_options_header(request.headers.get("content-type", ""))
    if content_type == b"multipart/form-data":
        boundary = parameters.get(b"boundary", b"")
        parts = await read_multipart(request, boundary, max_bytes, ("file",))
        unknown = sorted(set(parts) - {"file", "subject"})
        if unknown or "file" not in parts:
            raise InvalidRequest(
                f"{unknown[0][:80]}: not a field of this" if unknown else "file: missing",
                remedy="send a form part named 'file', and 'subject' if you like",
            )
        named = parts.get("subject")
        data = await asyncio.to_thread(read_encoded, parts["file"])
        return data, named.decode("utf-8", "replace") if isinstance(named, bytes) else None
    if content_type.startswith(b"image/") or content_type == b"application/octet-stream":
        return await request.body(), None
    raise InvalidRequest(
        f"content type {content_type.decode('latin-1')[:80] or 'missing'!r} is not read here",
        remedy="send multipart/form-data, or the file itself with its image/... type",
    )


def _check_subject(subject: str) -> str:
    try:
        return SUBJECT.validate_python(subject)
    except ValidationError as exc:
        error = invalid_fields(exc)
        fields = tuple(("subject", message) for _, message in error.fields)
        raise InvalidRequest(f"subject: {fields[0][1]}", fields=fields) from exc


def _as_file(asset: Asset) -> dict[str, str]:
    """A browser saves it, or shows it in a page that asks for it; it never is a page itself."""
    extension = EXTENSIONS.get(asset.media_type, asset.media_type.rpartition("/")[2])
    return {
        "Content-Disposition": f'attachment; filename="{asset.id}.{extension}"',
        "Content-Security-Policy": "default-src 'none'; sandbox",
    }


def _has_already(if_none_match: str, sha256: str) -> bool:
    """RFC 9110, section 13.1.2; compared weakly, as it says."""
    tags = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return "*" in tags or f'"{sha256}"' in tags


def _request_body() -> dict[str, Any]:
    """Written out: the body is read as it streams in, so FastAPI cannot derive it."""
    binary = {"type": "string", "format": "binary"}
    form = {
        "type": "object",
        "required": ["file"],
        "properties": {
            "file": {**binary, "description": "JPEG, PNG, WebP, TIFF or HEIC"},
            "subject": {
                "type": "string",
                "maxLength": 128,
                "description": "whose picture it is, as you call them: `/v1/erasures` finds it",
            },
        },
        "additionalProperties": False,
    }
    content = {"multipart/form-data": {"schema": form}, "image/*": {"schema": binary}}
    return {"required": True, "content": content}


def _content_responses() -> dict[int | str, dict[str, Any]]:
    text = {"schema": {"type": "string"}}
    headers = {"ETag": text, "Cache-Control": text, "Content-Disposition": text}
    binary = {"schema": {"type": "string", "format": "binary"}}
    files = {"description": "The file", "content": {"image/*": binary}, "headers": headers}
    unchanged = {"description": "You have it: If-None-Match named its ETag", "headers": headers}
    return {200: files, 304: unchanged, **problems(404)}
