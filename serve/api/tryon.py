"""`POST /v1/tryon`: a person and a product go in, the person wearing the product comes out."""

import secrets
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from serve.admission.ticket import Share
from serve.api.answering import PiecewiseResponse, answer_json
from serve.api.forms import read_tryon
from serve.api.idempotency import note_reference
from serve.api.identity import SECURITY, caller_of
from serve.api.pictures import FetchPicture, fetch_pictures
from serve.api.problems import request_id_of
from serve.api.responses import problems
from serve.api.watching import watch_of
from serve.choosing import Chooser, describe_choice, party_of
from serve.errors import InvalidRequest
from serve.imaging.limits import ImageLimits
from serve.observing.logs import note_fields
from serve.pipeline import Pipeline
from serve.schemas.tryon import TryOnAnswer, TryOnJson, TryOnOptions
from serve.services import Services
from serve.steps import TryOnResult, TryOnWork
from serve.tally import tell_answer
from serve.tenancy.account import EXPIRY_MARGIN_S, Account, budget_of
from serve.tenancy.caller import Caller
from serve.tenancy.ledger import UsageLedger

PROBLEM_STATUSES = (404, 409, 422, 429, 502, 504)


def build_tryon_router(
    pipeline: Pipeline,
    chooser: Chooser,
    limits: ImageLimits,
    fetch: FetchPicture,
    timeout_s: float,
    services: Services,
) -> APIRouter:
    """The route, bound to its pipeline."""
    router = APIRouter(tags=["try-on"])

    @router.post(
        "/v1/tryon",
        summary="Try a product on a person",
        response_class=Response,
        responses=_responses(),
        openapi_extra={"requestBody": _request_body(), "security": SECURITY},
    )
    async def tryon(request: Request) -> Response:
        """Answers the picture, or JSON with picture and receipt for `Accept: application/json`."""
        watch = watch_of(request.scope)
        caller = caller_of(request)
        caller.require("tryon")
        policy = caller.policy
        expires_s = timeout_s + EXPIRY_MARGIN_S
        async with AsyncExitStack() as stack:
            with watch.stage("admit"):
                held = services.limits.hold(caller.tenant_id, policy.concurrency, expires_s)
                await stack.enter_async_context(held)
            with watch.stage("read"):
                form = await read_tryon(request, limits.max_bytes)
            as_json = _wants_json(request.headers.get("accept", "*/*"), form.options)
            request_id = request_id_of(request)
            party = party_of(caller, form.options, request_id)
            with watch.stage("choose"):  # before anything is fetched for nothing
                choice = await chooser.choose(
                    form.options, party, policy, may_name_version=caller.may_name_version
                )
            watch.note(describe_choice(choice))
            bundle = choice.bundle
            note_fields(expert=bundle.expert, version=bundle.version, arm=choice.arm)
            load = partial(services.assets.load, caller.tenant_id, is_live=True)
            body = await fetch_pictures(form, fetch, timeout_s, watch, load=load)
            work = TryOnWork(
                options=body.options,
                person=body.person,
                product=body.product,
                mask=body.mask,
                request_id=request_id,
                timeout_s=body.left_s,
                share=Share(caller.tenant_id, policy.weight, caller.priority()),
                policy=policy,
                party=party,
                choice=choice,
                account=_account(services.ledger, caller, request),
            )
            result = await pipeline.run(work, watch)
        with watch.stage("answer"):
            response = await _respond(request, result, as_json, body.options.output)
        tell_answer(services.tryons, work, result, watch)
        return response

    return router


async def _respond(request: Request, result: TryOnResult, as_json: bool, output: str) -> Response:
    receipt = result.receipt
    pictures = (receipt.person, receipt.product, receipt.mask)
    note_reference(request, *(one.sha256 for one in pictures if one is not None))
    headers = _headers(result)
    if output == "layers":
        return PiecewiseResponse(result.layers, 200, headers, "application/zip")
    if as_json:
        return await answer_json(result, headers)
    return PiecewiseResponse(result.files[0], 200, headers, result.media_type)


def _account(ledger: UsageLedger, caller: Caller, request: Request) -> Account:
    """A replay with the same Idempotency-Key is the same work item, and charged once."""
    work_item = request.scope["state"].get("work_item") or f"tr_{secrets.token_hex(12)}"
    return Account(
        ledger=ledger,
        tenant_id=caller.tenant_id,
        key_id=caller.key_id,
        work_item=work_item,
        budget=budget_of(caller.policy),
    )


def _wants_json(accept: str, options: TryOnOptions) -> bool:
    """Content negotiation between the picture itself and JSON (RFC 9110, section 12.5.1)."""
    quality = {"image": 0.0, "json": 0.0}
    for item in accept.split(","):
        media_range, *parameters = (part.strip().lower() for part in item.split(";"))
        weight = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        try:
            q = float(weight)
        except ValueError:
            q = 0.0
        if media_range in ("application/json", "application/*"):
            quality["json"] = max(quality["json"], q)
        if media_range.startswith("image/"):
            quality["image"] = max(quality["image"], q)
        if media_range == "*/*":
            # A caller who accepts anything wants the picture, unless one answer cannot hold it.
            quality["image"] = max(quality["image"], q * 0.5)
            quality["json"] = max(quality["json"], q * 0.4)
    if options.num_images > 1 and options.output == "image":
        if not quality["json"]:
            raise InvalidRequest(
                f"num_images: {options.num_images} pictures do not fit one image answer",
                remedy="send Accept: application/json",
            )
        return True
    return quality["json"] > quality["image"]


def _headers(result: TryOnResult) -> dict[str, str]:
    receipt = result.receipt
    chosen = {} if receipt.experiment is None else {"Sm4ll-Experiment": receipt.experiment}
    remembered = {"person": receipt.segmentation_cached, "product": receipt.product_cached}
    if names := ", ".join(name for name, is_remembered in remembered.items() if is_remembered):
        chosen["Sm4ll-Cache"] = names
    return {
        "Sm4ll-Id": receipt.id,
        "Sm4ll-Expert": receipt.expert,
        "Sm4ll-Version": receipt.version,
        "Sm4ll-Arm": receipt.arm,
        **chosen,
        "Sm4ll-Seed": str(receipt.seed),
        "Sm4ll-Preview": str(receipt.preview).lower(),
        "Sm4ll-Outside-Max-Diff": str(receipt.outside.max_abs_diff),
    }


def _request_body() -> dict[str, Any]:
    """Written out: the body is read as it streams in, so FastAPI cannot derive it."""
    options = TryOnOptions.model_json_schema()
    binary = {"type": "string", "format": "binary"}
    properties = {
        "person": {
            **binary,
            "description": "JPEG, PNG, WebP, TIFF or HEIC; or as text a data URI, an https URL"
            " or an ast_ id",
        },
        "product": {**binary, "description": "on a plain or transparent background"},
        "mask": {**binary, "description": "same size as person; see mask_convention"},
        **options["properties"],
    }
    form = {
        "type": "object",
        "required": ["expert", "person", "product"],
        "properties": properties,
        "additionalProperties": False,
    }
    return {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": form},
            "application/json": {"schema": TryOnJson.model_json_schema()},
        },
    }


def _responses() -> dict[int | str, dict[str, Any]]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    images = {media: binary for media in ("image/png", "image/webp", "image/jpeg", "image/tiff")}
    header = {"schema": {"type": "string"}}
    names = (
        *("X-Request-Id", "Sm4ll-Version", "Sm4ll-Arm", "Sm4ll-Experiment"),
        *("Sm4ll-Seed", "Sm4ll-Outside-Max-Diff"),
    )
    cache = {
        **header,
        "description": "what was remembered from an earlier request: `person`, `product` or both",
    }
    answer = {
        "description": "The picture; JSON with receipt, or a zip of layers",
        "model": TryOnAnswer,
        "content": {**images, "application/zip": binary},
        "headers": {
            **{name: header for name in (*names, "Server-Timing")},
            "Sm4ll-Cache": cache,
        },
    }
    return {200: answer, **problems(*PROBLEM_STATUSES)}
